"""A process killed at any moment of an operation: nothing half is listed, the next operation heals, all can go on.

Every change that an operation makes to the filesystem, the mount table or by a program is counted, and the operation
is run once for each of them, killed just before it.
"""

import shutil
from pathlib import Path

import pytest

from helpers.killer import KillerProcess, points
from helpers.place import Place, tmpfs, unmount_all
from helpers.trees import Listing, assert_same, differences, in_whole_seconds, list_tree, write


def build(tree: Path) -> None:
    for folder in range(10):
        for file in range(20):
            write(tree / f"dir{folder}" / f"file{file}", f"{folder}.{file}\n" * file)
    (tree / "dir0" / "link").symlink_to("file1")
    (tree / "dir1" / "hard").hardlink_to(tree / "dir2" / "file5")
    (tree / "empty").mkdir()


def damage(tree: Path) -> None:
    shutil.rmtree(tree / "dir3", ignore_errors=True)
    write(tree / "dir4" / "file4", "changed\n")
    write(tree / "new" / "file", "new\n")
    (tree / "dir0" / "link").unlink(missing_ok=True)
    write(tree / "dir0" / "link" / "now a folder", "x\n")
    (tree / "dir1" / "file7").chmod(0o600)
    shutil.rmtree(tree / "empty", ignore_errors=True)
    (tree / "empty").write_text("now a file\n")


def heal(place: Place, backup_id: str) -> None:
    """Run an operation that changes nothing: whatever is put right is put right by its turn."""
    place.diff(backup_id)


@pytest.mark.parametrize("full", [False, True], ids=["nothing changed", "full"])
def test_create(place: Place, killer: KillerProcess, full: bool) -> None:
    build(place.tree)
    before = list_tree(place.tree)
    known = {place.create().id}

    def killed_at(at: int) -> bool:
        killed = killer.run(place.base, place.state, "create", str(place.tree), at=at, full=full)
        for new in set(place.ids()) - known:
            assert place.run(place.service.verify, new).ok
            known.add(new)
        again = place.create()
        known.add(again.id)
        place.assert_clean()
        return killed

    assert points(killed_at) > 10
    assert_same(before, list_tree(place.tree))
    place.assert_unmounted()
    assert set(place.ids()) == known
    place.restore(place.ids()[0], dir=place.base / "other")
    assert_same(before, list_tree(place.base / "other"))


@pytest.mark.parametrize("undo", [False, True], ids=["without undo", "with undo"])
def test_copy_restore(place: Place, killer: KillerProcess, undo: bool) -> None:
    build(place.tree)
    before = list_tree(place.tree)
    backup = place.create()

    def killed_at(at: int) -> bool:
        damage(place.tree)
        killed = killer.run(place.base, place.state, "restore", backup.id, at=at, undo=undo)
        _assert_all_whole(place)
        for each in place.ids()[:-1]:
            place.run(place.service.delete, each)
        place.restore(backup.id, undo=False)
        assert_same(before, list_tree(place.tree))
        place.run(place.service.prune)  # what the kill left in the store goes with the next write or prune
        place.assert_clean()
        return killed

    assert points(killed_at) > 30
    place.assert_unmounted()


def test_copy_restore_that_stages_inside_the_directory(place: Place, killer: KillerProcess) -> None:
    """The state directory is on another filesystem, so that the staging folder must be in the tree."""
    with tmpfs(place.tree):
        build(place.tree)
        before = list_tree(place.tree)
        backup = place.create()

        def killed_at(at: int) -> bool:
            damage(place.tree)
            killed = killer.run(place.base, place.state, "restore", backup.id, at=at, undo=False)
            heal(place, backup.id)
            place.assert_clean()
            place.restore(backup.id, undo=False)
            assert_same(before, list_tree(place.tree))
            return killed

        assert points(killed_at) > 30
        place.assert_clean()


def _assert_all_whole(place: Place) -> None:
    for backup_id in place.ids():
        assert place.run(place.service.verify, backup_id).ok


def _view(place: Place) -> Listing:
    return in_whole_seconds(list_tree(place.tree))


@pytest.mark.parametrize("kind", ["kernel", "fuse"])
def test_overlay_restore_over_an_overlay(tmp_path: Path, killer: KillerProcess, kind: str) -> None:
    """At no moment is what lies below seen for good: healing shows the old overlay, as written to, or the new."""
    place = Place(tmp_path, overlay="kernel" if kind == "kernel" else "fuse")
    build(place.tree)
    new = _view(place)
    backup = place.create()
    write(place.tree / "below", "what lies below\n")
    below = _view(place)

    def killed_at(at: int) -> bool:
        place.restore(backup.id, mode="overlay", undo=False)
        write(place.tree / "written", "to the overlay\n")
        old = _view(place)
        killed = killer.run(
            place.base, place.state, "restore", backup.id, at=at, overlay=kind, mode="overlay", undo=False
        )
        heal(place, backup.id)
        if kind == "kernel":
            assert _view(place) in (old, new), differences(new, _view(place))
        place.restore(backup.id, mode="overlay", undo=False)
        assert_same(new, _view(place))
        if kind == "kernel":
            assert place.mounts() == [str(place.tree)]
        place.run(place.service.prune)
        place.assert_clean_but_lower()
        return killed

    try:
        assert points(killed_at) > 15
        place.unmount(undo=False)
        assert_same(below, _view(place))
        place.run(place.service.prune)
        place.assert_clean()
    finally:
        _take_all_down(place)
    place.assert_unmounted()


def _take_all_down(place: Place) -> None:
    unmount_all(place.base)


def test_copy_restore_over_an_overlay(place: Place, killer: KillerProcess) -> None:
    build(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    damage(place.tree)

    def killed_at(at: int) -> bool:
        place.restore(backup.id, mode="overlay", undo=False)
        write(place.tree / "written", "to the overlay\n")
        killed = killer.run(place.base, place.state, "restore", backup.id, at=at, mode="copy", undo=False)
        heal(place, backup.id)
        place.restore(backup.id, mode="copy", undo=False)
        assert_same(before, list_tree(place.tree))
        assert place.mounts() == []
        place.assert_clean()
        damage(place.tree)
        return killed

    assert points(killed_at) > 30
    place.assert_unmounted()


def test_unmount(place: Place, killer: KillerProcess) -> None:
    build(place.tree)
    backup = place.create()
    write(place.tree / "below", "what lies below\n")
    below = list_tree(place.tree)

    def killed_at(at: int) -> bool:
        place.restore(backup.id, mode="overlay", undo=False)
        write(place.tree / "written", "to the overlay\n")
        overlay = list_tree(place.tree)
        killed = killer.run(place.base, place.state, "unmount", str(place.tree), at=at)
        heal(place, backup.id)
        found = list_tree(place.tree)
        assert found in (overlay, below), differences(below, found)
        if found == overlay:
            place.unmount(undo=False)
        assert_same(below, list_tree(place.tree))
        place.run(place.service.prune)
        place.assert_clean()
        _assert_all_whole(place)
        return killed

    assert points(killed_at) > 10
    place.assert_unmounted()
