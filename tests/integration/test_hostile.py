"""An attacker inside the tree, against a backup run by root: nothing outside is ever read or written.

The attacker owns the tree and swaps its files, folders and links as fast as he can while it is captured and restored.
"""

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.place import Place, tmpfs
from helpers.trees import Listing, assert_same, build_small, list_tree, write
from sandpoint.errors import SandpointError

SECRET = b"TOP SECRET, of root alone\n"
ROUNDS = 6
MOST_SECONDS = 60.0
ATTACKER = 65534

Attack = Callable[[Path, Path, int], None]


def swap(first: Path, second: Path) -> None:
    """Exchange two names, by way of a third."""
    aside = first.with_name(f"{first.name}.aside")
    with suppress(OSError):
        first.rename(aside)
        second.rename(first)
        aside.rename(second)


def swap_folder_and_link(tree: Path, outside: Path, number: int) -> None:
    with suppress(OSError):
        (tree / "src.link").symlink_to(outside)
    swap(tree / "src", tree / "src.link")


def swap_file_and_link(tree: Path, outside: Path, number: int) -> None:
    with suppress(OSError):
        (tree / "lib.link").symlink_to(outside / "secret")
    swap(tree / "target", tree / "lib.link")


def swap_folders_above(tree: Path, outside: Path, number: int) -> None:
    with suppress(OSError):
        (tree / "a.link").symlink_to(outside.parent)
    swap(tree / "a", tree / "a.link")


def replace_staging(tree: Path, outside: Path, number: int) -> None:
    for found in tree.glob(".sandpoint-*"):
        with suppress(OSError):
            found.rename(tree / f"stolen{number}")
            found.symlink_to(outside)


ATTACKS: tuple[Attack, ...] = (swap_folder_and_link, swap_file_and_link, swap_folders_above, replace_staging)


def attack_until(attack: Attack, tree: Path, outside: Path, stop: float) -> None:
    """Run as the attacker's process."""
    os.setgroups([])
    os.setgid(ATTACKER)
    os.setuid(ATTACKER)
    number = 0
    while time.monotonic() < stop:
        with suppress(OSError):
            attack(tree, outside, number)
        number += 1


@contextmanager
def attacked(attack: Attack, tree: Path, outside: Path) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(
        target=attack_until, args=(attack, tree, outside, time.monotonic() + MOST_SECONDS), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@pytest.fixture
def outside(place: Place) -> Path:
    """What lies outside of the tree: names as in the tree, contents and owner that are root's."""
    outside = place.base / "outside" / "src"
    write(outside / "secret", SECRET, mode=0o600)
    write(outside / "app.py", SECRET, mode=0o600)
    write(outside / "lib" / "util.py", SECRET, mode=0o600)
    write(outside / "b" / "file", SECRET, mode=0o600)
    return outside


def build(tree: Path) -> None:
    build_small(tree)
    for number in range(60):
        write(tree / "src" / "many" / f"file{number}", f"{number}\n")
        write(tree / "a" / "src" / "b" / f"file{number}", f"{number}\n")
    write(tree / "a" / "src" / "b" / "file", "harmless\n")
    write(tree / "target", "harmless\n")
    own(tree)


def own(tree: Path) -> None:
    """Give the tree to the attacker, with the way to it."""
    for path in (tree, *tree.rglob("*")):
        os.lchown(path, ATTACKER, ATTACKER)
    for above in (tree, *tree.parents):
        if above.stat().st_uid == 0 and above.name.startswith(("pytest", "test", "popen")):
            above.chmod(0o711)


def rebuild(tree: Path) -> None:
    for path in list(tree.iterdir()):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    build(tree)


def assert_outside_is_untouched(before: Listing, outside: Path) -> None:
    assert_same(before, list_tree(outside.parent))


def assert_no_secret(place: Place, backup_id: str) -> None:
    """Look into every restored file; the layer itself is compressed."""
    other = place.base / "restored"
    place.restore(backup_id, dir=other, undo=False)
    for path in other.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.read_bytes() != SECRET, f"{path} was read from outside"


@pytest.mark.parametrize("attack", ATTACKS[:3], ids=lambda attack: attack.__name__)
def test_nothing_outside_is_read_into_a_backup(place: Place, outside: Path, attack: Attack) -> None:
    build(place.tree)
    before = list_tree(outside.parent)
    made = []
    began = time.monotonic()
    with attacked(attack, place.tree, outside):
        for _ in range(ROUNDS):
            with suppress(SandpointError):
                made.append(place.create().id)
    assert time.monotonic() - began < MOST_SECONDS
    made.append(place.create().id)  # under attack one may fail; once it is over none does
    for backup_id in made:
        assert_no_secret(place, backup_id)
    assert_outside_is_untouched(before, outside)
    place.assert_clean()


def _break(tree: Path) -> None:
    with suppress(OSError):
        for path in (tree / "src").glob("*.py"):
            path.unlink()
        shutil.rmtree(tree / "src" / "many", ignore_errors=True)
        (tree / "target").write_text("changed\n")
        (tree / "a" / "src" / "b" / "file").write_text("changed\n")
        (tree / "a" / "src" / "b" / "file1").chmod(0o777)


@pytest.mark.parametrize("staged", ["beside", "inside"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_outside_is_written_by_a_restore(place: Place, outside: Path, attack: Attack, staged: str) -> None:
    if staged == "beside":
        _restore_attacked(place, outside, attack)
    else:  # the tree is another filesystem, so that files are staged inside of it
        with tmpfs(place.tree, size="16m"):
            _restore_attacked(place, outside, attack)


def _restore_attacked(place: Place, outside: Path, attack: Attack) -> None:
    build(place.tree)
    backup = place.create()
    before = list_tree(outside.parent)
    began = time.monotonic()
    for _ in range(ROUNDS):
        rebuild(place.tree)  # the attacker's links are gone: the next lines write as root
        _break(place.tree)
        with attacked(attack, place.tree, outside), suppress(SandpointError):
            place.restore(backup.id, undo=False)
        assert_outside_is_untouched(before, outside)
    assert time.monotonic() - began < MOST_SECONDS
    rebuild(place.tree)
    place.restore(backup.id)
    assert not place.diff(backup.id)


def test_links_out_of_the_tree_are_kept_as_links(place: Place, outside: Path) -> None:
    build_small(place.tree)
    (place.tree / "out").symlink_to(outside)
    (place.tree / "secret").symlink_to(outside / "secret")
    before, secret = list_tree(place.tree), list_tree(outside.parent)
    backup = place.create()
    shutil.rmtree(place.tree / "src")
    (place.tree / "src").symlink_to(outside)
    (place.tree / "out").unlink()

    place.restore(backup.id)

    assert_same(before, list_tree(place.tree))
    assert_outside_is_untouched(secret, outside)
    assert_no_secret(place, backup.id)


def test_a_fifo_does_not_block(place: Place) -> None:
    build_small(place.tree)
    backup = place.create()
    (place.tree / "README.md").unlink()
    os.mkfifo(place.tree / "README.md")
    began = time.monotonic()
    again = place.create()
    place.restore(backup.id)
    place.restore(again.id)
    assert time.monotonic() - began < MOST_SECONDS
