"""The index of the last capture: what it spares, and that nothing is believed of it that it cannot know."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from helpers.place import Place
from helpers.trees import assert_same, build_small, list_tree, write
from sandpoint.engine import capture_deltas, compare
from sandpoint.engine.contents import Roots, differing
from sandpoint.engine.index import read_index, write_index
from sandpoint.engine.manifest import CLOCK_GRAIN_NS, Entry, Manifest
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check


class Reads:
    """The files whose bytes were compared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[bytes] = []

        def counted(first: Roots, second: Roots, files: Sequence[Entry], check: Check, **options: bool) -> set[bytes]:
            self.paths += [entry.path for entry in files]
            return differing(first, second, files, check, **options)

        monkeypatch.setattr(capture_deltas, "differing", counted)
        monkeypatch.setattr(compare, "differing", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def place(place: Place) -> Place:
    place.tree.mkdir()
    build_small(place.tree)
    for number in range(600):
        write(place.tree / "many" / str(number), f"{number}\n")
    place.create()
    return place


def restamp(place: Place) -> None:
    """Move every stamp, there and back again, and wait until none is too young to prove anything."""
    for path in place.tree.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o7777
            path.chmod(mode ^ 0o100)
            path.chmod(mode)
    while is_young(path):
        time.sleep(0.005)


def is_young(path: Path) -> bool:
    return time.time_ns() - path.lstat().st_ctime_ns < 2 * CLOCK_GRAIN_NS


def index_of(place: Place) -> Path:
    (path,) = (place.state / "captures").glob("*.index")
    return path


def test_what_was_compared_once_is_known_by_its_stamp(place: Place, reads: Reads) -> None:
    restamp(place)
    first = place.create()
    assert len(reads.paths) > 600
    reads.paths.clear()
    second = place.create()
    assert (first.kind, second.kind, reads.paths) == ("delta", "delta", [])


@pytest.mark.parametrize("undo", [True, False])
def test_a_restore_knows_what_a_capture_has_compared(place: Place, reads: Reads, undo: bool) -> None:
    wanted = list_tree(place.tree)
    backup = place.ids()[0]
    restamp(place)
    place.create()
    write(place.tree / "many" / "0", "9\n")
    place.create()
    reads.paths.clear()
    place.restore(backup, undo=undo)
    assert set(reads.paths) <= {b"many/0"}
    assert_same(wanted, list_tree(place.tree))


def test_what_is_written_after_the_capture_is_seen_though_the_size_and_times_are_the_same(place: Place) -> None:
    backup = place.ids()[0]
    place.create()
    path = place.tree / "many" / "1"
    before = path.stat()
    write(path, "X\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert place.diff(backup).modified == ("many/1",)
    assert place.restore(backup).changes.modified == ("many/1",)  # type: ignore[union-attr]
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("damage", ["gone", "torn", "noise", "of another backup"])
def test_one_that_is_not_fit_is_not_used(place: Place, damage: str) -> None:
    index = index_of(place)
    content = index.read_bytes()
    write(place.tree / "many" / "2", "changed\n")
    if damage == "gone":
        index.unlink()
    elif damage == "of another backup":
        place.create()
        index.write_bytes(content)
        write(place.tree / "many" / "2", "again\n")
    else:
        index.write_bytes(content[: len(content) // 2] if damage == "torn" else os.urandom(1000))
    backup = place.create()
    assert backup.kind == "delta"
    wanted = list_tree(place.tree)
    place.restore(backup.id, dir=place.base / "other", undo=False)
    assert_same(wanted, list_tree(place.base / "other"))


def test_stamps_of_another_device_prove_nothing(place: Place, reads: Reads) -> None:
    index = read_index(State(str(place.state)), str(place.tree))
    assert index is not None
    header = msgspec.structs.replace(index.tree.header, device=index.tree.header.device + 1)
    tree = Manifest(header, index.tree.entries, index.tree.layers)
    write_index(State(str(place.state)), str(place.tree), replace(index, tree=tree))
    assert place.create().kind == "delta"
    assert len(reads.paths) > 600
