"""Regressions: hostile trees and stores find no way out of the directory while it is restored."""

import os
import stat
import uuid
from pathlib import Path

import pytest

from helpers.engine import entry, folder, opened
from sandpoint.engine import restore as restore_engine
from sandpoint.engine.manifest import Header
from sandpoint.engine.removal import remove_tree
from sandpoint.engine.roots import HOST
from sandpoint.engine.state import State, staging_folder
from sandpoint.errors import SandboxUnavailableError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is able to do harm here")


def other_mount(tmp_path: Path) -> Path:
    """A work folder on another filesystem than the directory, so that staging lies inside it."""
    work = Path("/dev/shm") / f"sandpoint-{uuid.uuid4().hex}"
    work.mkdir()
    return work


def test_a_staging_folder_that_was_exchanged_for_a_link_is_not_written_through(tmp_path: Path) -> None:
    directory, outside, work = tmp_path / "tree", tmp_path / "outside", other_mount(tmp_path)
    directory.mkdir()
    outside.mkdir()
    try:
        with opened(directory) as root, staging_folder(HOST, root, str(directory), str(work)) as staging:
            (made,) = directory.iterdir()
            made.rename(directory / "aside")
            made.symlink_to(outside)
            Path(staging.filled_at, "tree").mkdir()
            assert [path.name for path in (directory / "aside").iterdir()] == ["tree"]
        assert list(outside.iterdir()) == []
    finally:
        for path in work.iterdir():
            path.unlink()
        work.rmdir()


def test_a_staging_folder_inside_is_ours_alone_and_goes(tmp_path: Path) -> None:
    work = other_mount(tmp_path)
    try:
        with opened(tmp_path) as root, staging_folder(HOST, root, str(tmp_path), str(work)) as staging:
            assert stat.S_IMODE(os.stat(staging.path).st_mode) == 0o700
            Path(staging.path, "left").mkdir()
        assert list(tmp_path.iterdir()) == []
    finally:
        (work / "inside.json").unlink()
        work.rmdir()


@as_root
@pytest.mark.parametrize("path", [b"../outside", b"..", b"link/x", b"/outside", b"d/../../outside"])
def test_a_header_that_names_what_lies_outside_changes_nothing_there(tmp_path: Path, path: bytes) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for made in (root, outside, root / "d"):
        made.mkdir()
    (outside / "x").touch()
    (root / "link").symlink_to(outside)
    before = [os.lstat(each) for each in (tmp_path, outside, outside / "x")]
    hostile = Header(1, stamps=True, beyond_squashfs=(folder(b""), entry(path, stat.S_IFDIR | 0o777, uid=4242)))
    with opened(root) as fd, pytest.raises(OSError, match=r"."):
        restore_engine._dress(fd, hostile, acls=True)
    after = [os.lstat(each) for each in (tmp_path, outside, outside / "x")]
    assert [(s.st_mode, s.st_uid) for s in after] == [(s.st_mode, s.st_uid) for s in before]


@as_root
def test_a_header_makes_no_directory_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    hostile = Header(1, stamps=True, mounts=(b"../made",), beyond_squashfs=(folder(b""), folder(b"../made")))
    with opened(tmp_path / "root") as fd, pytest.raises(OSError, match=r"."):
        restore_engine._dress(fd, hostile, acls=True)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_queue_that_cannot_be_written_is_a_known_error(tmp_path: Path) -> None:
    (tmp_path / "turns").touch()
    with pytest.raises(SandboxUnavailableError, match="set SANDPOINT_STATE_DIR"):
        State(str(tmp_path)).draw_ticket()


@pytest.mark.parametrize("mode", [0o700, 0o500])
def test_a_tree_deeper_than_pythons_stack_is_removed(tmp_path: Path, mode: int) -> None:
    deep = tmp_path / "tree"
    deep.mkdir()
    for _ in range(1500):
        deep = deep / "d"
        deep.mkdir()
    deep.chmod(mode)
    remove_tree(str(tmp_path / "tree"))
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_may_not_be_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "f").touch()
    for path in (tmp_path / "tree" / "d", tmp_path / "tree"):
        path.chmod(0o000)
    remove_tree(str(tmp_path / "tree"))
    assert list(tmp_path.iterdir()) == []
