"""`create` with `if_changed`: one look where nothing has changed, and a backup like any other where something has."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.killer import KillerProcess, points
from helpers.place import Place, unmount_all
from helpers.trees import assert_same, list_tree, write
from sandpoint.models import Backup


@pytest.fixture
def built(place: Place) -> Place:
    for number in range(20):
        write(place.tree / f"dir{number % 4}" / f"file{number}", f"{number}\n" * number)
    (place.tree / "link").symlink_to("dir0")
    (place.tree / "hard").hardlink_to(place.tree / "dir1" / "file1")
    return place


def again(place: Place, **options: Any) -> Backup:
    return place.create(if_changed=True, **options)


def test_the_first_is_made_and_the_next_is_the_same_one(built: Place) -> None:
    first = again(built)
    assert not first.unchanged
    second = again(built, name="other", metadata={"k": "v"})
    assert second == first.model_copy(update={"unchanged": True})
    assert built.ids() == [first.id]
    built.assert_clean()


def link_beside(tree: Path) -> Path:
    link = tree / "beside"
    link.symlink_to("dir1")
    return link


def copy_beside(tree: Path) -> Path:
    return Path(shutil.copy2(tree / "hard", tree / "beside"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda tree: write(tree / "dir0" / "file4", "other"),
    "mode": lambda tree: (tree / "dir0" / "file4").chmod(0o600),
    "mtime": lambda tree: os.utime(tree / "dir0" / "file4", (1, 1)),
    "new": lambda tree: write(tree / "new", ""),
    "gone": lambda tree: (tree / "dir0" / "file4").unlink(),
    "empty folder": lambda tree: (tree / "folder").mkdir(),
    "link": lambda tree: os.replace(link_beside(tree), tree / "link"),
    "unlinked": lambda tree: os.replace(copy_beside(tree), tree / "hard"),
    "folder's time": lambda tree: os.utime(tree / "dir2", (1, 1)),
    "attribute": lambda tree: os.setxattr(tree / "dir0" / "file4", "user.k", b"v"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("on_overlay", [False, True], ids=["copy", "overlay"])
def test_every_change_makes_one(built: Place, change: str, on_overlay: bool) -> None:
    try:
        first = again(built)
        if on_overlay:
            built.restore(first.id, mode="overlay", undo=False)
            assert again(built).unchanged
        CHANGES[change](built.tree)
        second = again(built)
        assert (second.unchanged, second.id in {first.id}) == (False, False)
        before = list_tree(built.tree)
        assert again(built).id == second.id
        write(built.tree / "later", "x")
        built.restore(second.id, mode="copy", undo=False)
        assert not built.diff(second.id)
        assert list_tree(built.tree).keys() == before.keys()
    finally:
        unmount_all(built.base)


def test_a_change_that_is_taken_back_is_none(built: Place) -> None:
    first = again(built)
    file = built.tree / "dir0" / "file4"
    status, content = file.stat(), file.read_bytes()
    folder = file.parent.stat()
    file.write_text("other")
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert again(built).id == first.id


@pytest.mark.parametrize("options", [{"excludes": ("*.log",)}, {"use_gitignore": True}, {"ttl": 2 * 259_200 + 10}])
def test_one_that_would_not_do_does_not_count(built: Place, options: dict[str, object]) -> None:
    first = again(built)
    second = again(built, **options)
    assert second.id != first.id
    assert again(built, **options).id == second.id


def test_one_that_is_over_half_its_life_is_renewed(built: Place) -> None:
    first = again(built, ttl=1000)
    assert again(built, ttl=1000).unchanged
    assert again(built, ttl=1800).unchanged
    assert not again(built, ttl=2200).unchanged
    assert first.id in built.ids()


def test_one_that_was_deleted_or_damaged_does_not_count(built: Place) -> None:
    first = again(built)
    built.run(built.service.delete, first.id)
    second = again(built)
    assert not second.unchanged
    layer = built.store / "backups" / second.id / "data.sqsh"
    layer.write_bytes(layer.read_bytes()[:-1])
    third = again(built)
    assert not third.unchanged
    assert built.run(built.service.verify, third.id).ok


def test_another_directorys_does_not_count(built: Place) -> None:
    first = again(built)
    built.restore(first.id, dir=built.base / "copy")
    second = built.create(built.base / "copy", if_changed=True)
    assert (second.unchanged, second.dir) == (False, str(built.base / "copy"))


def test_after_a_restore_what_was_brought_back_counts(built: Place) -> None:
    first = again(built)
    write(built.tree / "later", "x")
    second = again(built)
    assert built.restore(first.id).undo_id is not None
    assert again(built).id == first.id
    write(built.tree / "later", "y")
    built.restore(second.id)
    assert again(built).id == second.id
    assert again(built).id == second.id
    write(built.tree / "later", "z")
    third = again(built)
    assert (third.unchanged, third.parent_id) == (False, second.id)


def test_on_an_overlay_only_what_it_shows_counts(built: Place) -> None:
    first = again(built)
    file = built.tree / "dir0" / "file4"
    status, content = file.stat(), file.read_bytes()
    file.write_bytes(content[::-1].replace(b"4", b"5"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    way_back = built.restore(first.id).undo_id
    assert way_back is not None
    try:
        built.restore(way_back, mode="overlay", undo=False)
        assert file.read_bytes() != content
        assert again(built).id == way_back
    finally:
        unmount_all(built.base)


def mount_itself(point: Path) -> None:
    subprocess.run(["mount", "--bind", str(point), str(point)], check=True)


@pytest.mark.parametrize("point", ["dir1", "dir1/file5"])
def test_what_a_mount_hid_counts_when_it_has_come_to_light(built: Place, point: str) -> None:
    hidden = built.tree / point
    mount_itself(hidden)
    try:
        first = again(built)
        assert again(built).unchanged
    finally:
        unmount_all(built.base)
    second = again(built)
    assert (second.unchanged, second.parent_id) == (False, first.id)
    before = list_tree(built.tree)
    copy = built.base / "copy"
    built.restore(second.id, dir=copy)
    assert list_tree(copy).keys() == before.keys()
    assert (copy / "dir1" / "file5").read_bytes() == (built.tree / "dir1" / "file5").read_bytes()


def test_at_the_end_of_a_chain_nothing_is_written_either(tmp_path: Path) -> None:
    place = Place(tmp_path, chain_layers=2)
    write(place.tree / "file", "0")
    for number in range(1, 6):
        last = again(place)
        assert again(place).id == last.id
        write(place.tree / "file", str(number))
    assert len(place.ids()) == 5


@pytest.mark.parametrize("options", [{"full": True}])
def test_full_is_what_is_made_if_something_is(built: Place, options: dict[str, object]) -> None:
    first = again(built)
    assert again(built, **options).id == first.id
    write(built.tree / "new", "x")
    assert again(built, **options).kind == "full"


def test_where_stamps_prove_nothing_bytes_are_compared(built: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandpoint.engine.place._has_stamps", lambda *_: False)
    first = again(built)
    assert again(built).id == first.id
    file = built.tree / "dir0" / "file4"
    status, folder = file.stat(), file.parent.stat()
    file.write_bytes(file.read_bytes()[::-1].replace(b"4", b"5"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert not again(built).unchanged


def test_killed_at_any_point_it_is_all_or_nothing(built: Place, killer: KillerProcess) -> None:
    known = {again(built).id}
    number = 0

    def killed_at(at: int) -> bool:
        nonlocal number
        number += 1
        write(built.tree / "changing", str(number))
        killed = killer.run(built.base, built.state, "create", str(built.tree), at=at, if_changed=True)
        for new in set(built.ids()) - known:
            assert built.run(built.service.verify, new).ok
        known.update(built.ids())
        known.add(again(built).id)
        assert again(built).unchanged
        built.assert_clean()
        return killed

    assert points(killed_at) > 10
    assert set(built.ids()) == known


def test_killed_in_a_look_it_leaves_nothing(built: Place, killer: KillerProcess) -> None:
    first = again(built)
    before = list_tree(built.tree)

    def killed_at(at: int) -> bool:
        killed = killer.run(built.base, built.state, "create", str(built.tree), at=at, if_changed=True)
        assert built.ids() == [first.id]
        assert again(built).unchanged
        built.assert_clean()
        return killed

    assert points(killed_at) >= 1
    assert_same(before, list_tree(built.tree))
