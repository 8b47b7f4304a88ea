"""Stamps of a tree that are looked at again: whatever moved is named, by one process or by several."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpoint.engine import stamps as engine
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Manifest
from sandpoint.engine.stamps import Stamps
from sandpoint.engine.walk import walk_tree


def nothing() -> None:
    """Stop nothing."""


@pytest.fixture(params=[1, 3], ids=["one process", "several"])
def shares(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(engine, "_SHARE", 80 // request.param)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(request.param)))
    return int(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    for number in range(80):
        folder = tmp_path / f"dir{number % 8}"
        folder.mkdir(exist_ok=True)
        (folder / f"file{number}").write_text("content")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def walk(root: int) -> Manifest:
    time.sleep(0.1)  # stamps of just now prove nothing
    return walk_tree(root, Rules(), started_ns=time.time_ns(), stamps=True)


def test_nothing_moved(root: int, shares: int) -> None:
    with Stamps(root, walk(root), nothing) as stamps:
        assert stamps.moved(nothing) == []
        assert stamps.moved(nothing) == []


def test_each_that_moved_is_named(root: int, shares: int, tmp_path: Path) -> None:
    with Stamps(root, walk(root), nothing) as stamps:
        (tmp_path / "dir0" / "file0").write_text("CONTENT")
        os.utime(tmp_path / "dir1" / "file1", ns=(1, 1))
        (tmp_path / "dir2" / "file2").unlink()
        (tmp_path / "dir3").rename(tmp_path / "other")
        (tmp_path / "dir4").chmod(0o700)
        in_renamed = {b"dir3/" + os.fsencode(name) for name in os.listdir(tmp_path / "other")}
        expected = {b"", b"dir0/file0", b"dir1/file1", b"dir2", b"dir2/file2", b"dir3", b"dir4"} | in_renamed
        assert set(stamps.moved(nothing)) == expected


def test_a_stamp_too_young_to_prove_anything_counts_as_moved(root: int, shares: int, tmp_path: Path) -> None:
    tree = walk(root)
    (tmp_path / "dir0" / "file0").write_text("CONTENT")
    with Stamps(root, walk_tree(root, Rules(), started_ns=tree.header.started_ns, stamps=True), nothing) as stamps:
        assert b"dir0/file0" in stamps.moved(nothing)


def test_what_changed_between_the_walk_and_the_first_look_counts_as_moved(
    root: int, shares: int, tmp_path: Path
) -> None:
    tree = walk(root)
    (tmp_path / "dir0" / "file0").write_text("CONTENT")
    with Stamps(root, tree, nothing) as stamps:
        assert stamps.moved(nothing) == [b"dir0/file0"]


def test_a_check_stops_the_wait(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_SHARE", 20)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    with Stamps(root, walk(root), nothing) as stamps:
        os.kill(stamps._others[0].pid, 19)

        def stop() -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            stamps.moved(stop)
