"""Backups of an overlay: each holds what has changed since the one before, whatever became of that meanwhile."""

import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any

import pytest

from helpers.place import Place, unmount_all
from helpers.trees import assert_same, list_tree
from sandpoint.engine import linux
from sandpoint.models import Backup


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    for folder in ("kept", "emptied", "gone"):
        (place.tree / folder).mkdir(parents=True)
        for name in ("a", "b"):
            (place.tree / folder / name).write_bytes(os.urandom(20_000))
    os.link(place.tree / "kept" / "a", place.tree / "linked")
    for path in (place.tree, *place.tree.rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # an overlay shows whole seconds
    place.restore(place.create().id, mode="overlay", undo=False)
    yield place
    unmount_all(tmp_path)


def names(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]


def size(root: Path) -> int:
    files = [path.lstat() for path in names(root)]
    return sum({status.st_ino: status.st_size for status in files if S_ISREG(status.st_mode)}.values())


def check(place: Place, backup: Backup, state: Path) -> None:
    """See that a backup brings a state back that was copied aside, to the nanosecond."""
    other = place.base / "other"
    place.restore(backup.id, dir=other, undo=False)
    assert_same(list_tree(state), list_tree(other))
    assert (backup.file_count, backup.total_bytes) == (len(names(state)), size(state))
    shutil.rmtree(other)


def backed_up(place: Place, name: str, **options: Any) -> tuple[Backup, Path]:
    aside = place.base / "aside" / name
    subprocess.run(["cp", "-a", f"{place.tree}/.", _made(aside)], check=True)
    return place.create(**options), aside


def _made(folder: Path) -> str:
    folder.mkdir(parents=True)
    return str(folder)


def test_each_backup_holds_what_is_new(place: Place) -> None:
    (place.tree / "large").write_bytes(os.urandom(500_000))
    first, _ = backed_up(place, "first")
    (place.tree / "small").write_text("small\n")
    second, state = backed_up(place, "second")
    third = place.create()
    assert (first.kind, second.kind, third.kind) == ("delta", "delta", "delta")
    assert second.parent_id == first.id
    assert first.size_bytes > 500_000 > 50_000 > second.size_bytes > third.size_bytes == 0
    check(place, second, state)
    check(place, third, state)


def _file_in_a_new_folder(tree: Path) -> None:
    (tree / "more").mkdir()
    (tree / "more" / "new").write_text("new\n")


def _another_folder(tree: Path) -> None:
    shutil.rmtree(tree / "gone")
    (tree / "gone").mkdir()


def _all_new(tree: Path) -> None:
    _empty(tree)
    (tree / "kept").mkdir()
    (tree / "kept" / "a").write_text("anew\n")


def _names_go(tree: Path) -> None:
    for path in (tree / "new", tree / "socket", tree / "kept" / "new"):
        path.unlink(missing_ok=True)


CAME: dict[str, Callable[[Path], object]] = {
    "a file": lambda tree: (tree / "new").write_text("new\n"),
    "a file in a new folder": _file_in_a_new_folder,
    "a file in a folder": lambda tree: (tree / "kept" / "new").write_text("new\n"),
    "another text": lambda tree: (tree / "kept" / "b").write_text("another\n"),
    "a folder less": lambda tree: shutil.rmtree(tree / "gone"),
    "another folder": _another_folder,
    "a folder's new name": lambda tree: (tree / "gone").rename(tree / "moved"),
    "a socket": lambda tree: os.mknod(tree / "socket", 0o140600),
    "a link": lambda tree: os.link(tree / "kept" / "b", tree / "emptied" / "c"),
    "a link less": lambda tree: os.unlink(tree / "linked"),
    "an attribute": lambda tree: os.setxattr(tree / "kept" / "a", "user.note", b"x"),
}
"""What happens before the first backup of the overlay."""


def _empty(tree: Path) -> None:
    for path in tree.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("came", CAME)
def test_what_comes_and_what_goes_again(place: Place, came: str) -> None:
    made = []
    for number, step in enumerate((CAME[came], _names_go, _empty, _all_new)):
        step(place.tree)
        made.append(backed_up(place, str(number)))
    assert {backup.kind for backup, _ in made} == {"delta"}
    for backup, state in made:
        check(place, backup, state)


def test_at_the_limit_of_a_chain_its_last_layers_are_written_as_one(tmp_path: Path, place: Place) -> None:
    place = Place(tmp_path, chain_layers=3)
    made = []
    for number in range(8):
        (place.tree / f"new {number}").write_text("new\n" * number)
        if number % 3 == 2:
            (place.tree / f"new {number - 1}").unlink()
        made.append(backed_up(place, str(number)))
        assert made[-1][0].kind == "delta"
    for backup, state in made:
        check(place, backup, state)
    assert len({backup.parent_id for backup, _ in made}) < len(made)  # some are built on the same one


def test_a_chain_at_its_limit_may_be_cut_below_what_the_overlay_shows(tmp_path: Path, place: Place) -> None:
    place.unmount(undo=False)
    place = Place(tmp_path, chain_layers=3)
    for name in ("second", "third"):
        (place.tree / name).write_text(name)
        shown = place.create()
    place.restore(shown.id, mode="overlay", undo=False)
    same, state = backed_up(place, "same")
    assert same.kind == "delta"
    check(place, same, state)
    (place.tree / "second").unlink()
    (place.tree / "third").write_text("other")
    backup, state = backed_up(place, "changed")
    assert backup.kind == "delta"
    check(place, backup, state)


def test_where_no_layer_can_be_mounted_any_more_all_is_captured(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_image: bytes, _attached: object) -> None:
        raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")

    (place.tree / "new").write_text("new\n")
    with monkeypatch.context() as patched:
        patched.setattr(linux, "loop_device", busy)
        backup, state = backed_up(place, "full")
    assert backup.kind == "full"
    check(place, backup, state)


def test_one_that_is_deleted_is_not_built_on(place: Place) -> None:
    (place.tree / "new").write_text("new\n")
    gone, _ = backed_up(place, "gone")
    (place.tree / "new").unlink()
    place.run(place.service.delete, gone.id)
    place.run(place.service.prune)
    backup, state = backed_up(place, "after")
    assert backup.kind == "delta"
    check(place, backup, state)


def test_deltas_on_a_full_one_of_the_overlay(place: Place) -> None:
    (place.tree / "new").write_bytes(os.urandom(300_000))
    with open(place.tree / "kept" / "b", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = b"one "
        full, _ = backed_up(place, "full", full=True)
        mapped[:4] = b"two "  # the page is mapped and was written to before: only its writing out stamps this one
        (place.tree / "gone" / "a").unlink()
        delta, state = backed_up(place, "delta")
    assert (full.kind, delta.kind, delta.parent_id) == ("full", "delta", full.id)
    assert delta.size_bytes < 60_000
    check(place, delta, state)
    mapped_again, state = backed_up(place, "again")
    check(place, mapped_again, state)


def test_what_comes_to_be_ignored_is_no_longer_backed_up(place: Place) -> None:
    place.unmount(undo=False)
    subprocess.run(["git", "init", "--quiet", str(place.tree)], check=True)
    place.restore(place.create(use_gitignore=True).id, mode="overlay", undo=False)
    (place.tree / "build").mkdir()
    (place.tree / "build" / "log").write_text("one\n")
    (place.tree / "kept" / "log").write_text("one\n")
    with_it = place.create(use_gitignore=True)
    (place.tree / ".gitignore").write_text("log\n")
    (place.tree / "kept" / "log").write_text("two\n")
    without = place.create(use_gitignore=True)
    assert (with_it.kind, without.kind) == ("delta", "delta")
    assert place.diff(with_it.id, without.id).removed == ("build/log", "kept/log")
    other = place.base / "other"
    place.restore(without.id, dir=other, undo=False)
    assert not (other / "kept" / "log").exists()


def test_what_was_written_to_an_overlay_is_kept_though_the_directory_below_is_as_wanted(place: Place) -> None:
    place.unmount(undo=False)
    below = place.create()
    place.restore(below.id, mode="overlay", undo=False)
    (place.tree / "written").write_text("to the overlay\n")
    result = place.restore(below.id, mode="copy")
    assert (result.unmounted, bool(result.changes)) == (True, False)
    assert not (place.tree / "written").exists()
    assert result.undo_id is not None
    place.restore(result.undo_id)
    assert (place.tree / "written").read_text() == "to the overlay\n"


def test_an_overlay_to_which_nothing_was_written_leaves_nothing_to_undo(place: Place) -> None:
    place.unmount(undo=False)
    below = place.create()
    place.restore(below.id, mode="overlay", undo=False)
    result = place.restore(below.id, mode="copy")
    assert (result.unmounted, result.undo_id) == (True, None)
    assert place.ids()[0] == below.id
