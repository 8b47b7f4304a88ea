"""Chains of deltas with no space left, and with damage in the store: found in time, and nothing is made worse."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from helpers.kept import Kept, layer_keys
from helpers.place import Place, tmpfs
from helpers.trees import assert_same, in_whole_seconds, list_tree, write
from sandpoint.errors import (
    BackupCreateError,
    BackupIntegrityError,
    BackupRestoreError,
    SandboxUnavailableError,
    StoreUnavailableError,
)
from sandpoint.models import Backup

# -- space --

NO_SPACE = (BackupCreateError, BackupRestoreError, StoreUnavailableError, SandboxUnavailableError)
SMALL = "2m,nr_inodes=400"
_PAGE = 4096
_ENOUGH = 60


@contextmanager
def nearly_full(folder: Path, left: int, *, of_files: bool) -> Iterator[None]:
    """Leave a filesystem so many blocks, or so many files, and no more."""
    free = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.mkdir()
    if of_files:
        for number in range(free.f_favail - 1 - left):
            (ballast / f"{number}").touch()
    else:
        with open(ballast / "file", "xb") as file:
            os.posix_fallocate(file.fileno(), 0, (free.f_bavail - left) * _PAGE)
    try:
        yield
    finally:
        shutil.rmtree(ballast)


def failures(attempt: Callable[[], object], full: Path, check: Callable[[], None], *, of_files: bool) -> int:
    """Attempt something with no space left, then with a little more each time, and return how often it failed."""
    for left in range(_ENOUGH):
        with nearly_full(full, left, of_files=of_files):
            try:
                attempt()
                return left
            except NO_SPACE as error:
                told = str(error)
        assert "no space" in told.lower(), told
        check()
    raise AssertionError("it does not work with as much space as this either")


what_is_short = pytest.mark.parametrize("of_files", [False, True], ids=["blocks", "files"])


@what_is_short
@pytest.mark.parametrize("on", ["a plain tree", "an overlay"])
def test_no_space_in_the_store_for_a_delta(fast: Path, on: str, of_files: bool) -> None:
    place = Place(fast)
    kept = Kept(place, on_overlay=on == "an overlay")
    kept.build()
    with tmpfs(place.store, size=SMALL):
        last = kept.grow(3)[-1]
        if on == "an overlay":
            place.restore(last.id, mode="overlay", undo=False)
        kept.change(3)
        state = list_tree(place.tree)
        mounts = place.mounts()

        def check() -> None:
            assert set(place.ids()) == kept.states.keys()
            place.assert_clean()
            kept.assert_nothing_unneeded()
            kept.assert_each_verifies()
            assert_same(state, list_tree(place.tree))
            assert place.mounts() == mounts

        assert failures(kept.take, place.store, check, of_files=of_files) > 2
        newest = place.ids()[0]
        assert layer_keys(place, newest)[:-1] == layer_keys(place, last.id)
        kept.assert_brings_back()
        if on == "an overlay":
            place.unmount(undo=False)


@what_is_short
@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_no_space_in_the_store_for_an_undo(fast: Path, mode: str, of_files: bool) -> None:
    place = Place(fast)
    kept = Kept(place, on_overlay=True)
    kept.build()
    with tmpfs(place.store, size=SMALL):
        wanted, last = kept.grow(3)[-2:]
        if mode == "overlay":
            place.restore(last.id, mode="overlay", undo=False)
        kept.change(3)
        state = list_tree(place.tree)
        mounts = place.mounts()

        def check() -> None:
            assert set(place.ids()) == kept.states.keys()
            place.assert_clean()
            kept.assert_nothing_unneeded()
            assert_same(state, list_tree(place.tree))
            assert place.mounts() == mounts

        assert failures(lambda: place.restore(wanted.id, mode=mode), place.store, check, of_files=of_files) > 2
        kept.adopt(state)
        kept.assert_each_verifies()
        kept.assert_brings_back()
        if mode == "overlay":
            place.unmount(undo=False)


@what_is_short
@pytest.mark.parametrize("on", ["a plain tree", "an overlay"])
def test_no_space_for_the_state_of_a_delta(fast: Path, on: str, of_files: bool) -> None:
    """It may work without any: what it notes there only saves time."""
    place = Place(fast, state=fast / "small" / "state")
    kept = Kept(place, on_overlay=on == "an overlay")
    kept.build()
    with tmpfs(fast / "small", size=SMALL) as small:
        last = kept.grow(3)[-1]
        if on == "an overlay":
            place.restore(last.id, mode="overlay", undo=False)
        kept.change(3)
        state = list_tree(place.tree)

        def check() -> None:
            assert set(place.ids()) == kept.states.keys()
            place.assert_clean()
            assert_same(state, list_tree(place.tree))

        failures(kept.take, small, check, of_files=of_files)
        assert kept.take().kind == "delta"
        kept.assert_each_verifies()
        kept.assert_brings_back()
        place.assert_clean()
        if on == "an overlay":
            place.unmount(undo=False)


@what_is_short
@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_no_space_for_the_state_of_a_restore(fast: Path, mode: str, of_files: bool) -> None:
    place = Place(fast, state=fast / "small" / "state")
    kept = Kept(place, on_overlay=True)
    kept.build()
    with tmpfs(fast / "small", size=SMALL) as small:
        wanted, _ = kept.grow(3)[-2:]
        kept.change(3)
        state = list_tree(place.tree)

        def check() -> None:
            assert set(place.ids()) == kept.states.keys()
            place.assert_clean()
            assert_same(state, list_tree(place.tree))
            assert place.mounts() == [str(small)]

        assert failures(lambda: place.restore(wanted.id, mode=mode), small, check, of_files=of_files) > 0
        kept.adopt(state)
        place.diff(wanted.id)
        place.assert_clean()
        found = list_tree(place.tree)
        assert_same(in_whole_seconds(kept.states[wanted.id]), in_whole_seconds(found))
        kept.assert_each_verifies()
        kept.assert_brings_back()
        if mode == "overlay":
            place.unmount(undo=False)
            assert_same(state, list_tree(place.tree))


@what_is_short
def test_no_space_for_the_state_of_a_first_backup(fast: Path, of_files: bool) -> None:
    place = Place(fast, state=fast / "small" / "state")
    kept = Kept(place)
    kept.build()
    with tmpfs(fast / "small", size=SMALL) as small:

        def check() -> None:
            assert place.ids() == []
            place.assert_clean()

        assert failures(kept.take, small, check, of_files=of_files) > 0
        kept.assert_brings_back()


# -- damage --

Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def damaged(file: Path, damage: Damage) -> Iterator[None]:
    content = file.read_bytes()
    file.chmod(0o600)
    damage(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        file.write_bytes(content)


@pytest.fixture
def four(fast: Path) -> tuple[Kept, list[Backup]]:
    """Four backups, each with a file `only{n}` that is in its layer alone."""
    kept = Kept(Place(fast))
    kept.build()
    made = []
    for number in range(4):
        write(kept.place.tree / f"only{number}", f"{number}\n" * 1000)
        made += kept.grow(1, number, name="kept")
    return kept, made


async def read(place: Place, backup_id: str, path: str) -> bytes:
    async with await place.service.open_file(backup_id, path) as stream:
        return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["data.sqsh", "manifest.zst"])
def test_damage_anywhere_in_a_chain(four: tuple[Kept, list[Backup]], name: str, damage: Damage) -> None:
    kept, made = four
    place, last = kept.place, made[-1]
    kept.change(4)
    (place.tree / "only0").unlink()
    state = list_tree(place.tree)
    for number, backup in enumerate(made):
        with damaged(place.store / "backups" / backup.id / name, damage):
            attempts: list[Callable[[], object]] = [
                lambda: place.restore(last.id),
                lambda: place.restore(last.id, undo=False),
                lambda: place.restore(last.id, mode="overlay"),
                lambda: place.restore(last.id, mode="overlay", undo=False),
                lambda: anyio.run(read, place, last.id, f"only{number}"),  # noqa: B023
                lambda: place.run(place.service.diff_contents, last.id),
            ]
            for index, attempt in enumerate(attempts):
                with pytest.raises(BackupIntegrityError, match=f"{backup.id}/{name}"):
                    attempt()
                assert place.mounts() == [], index
                place.assert_clean()
            assert_same(state, list_tree(place.tree))
            verified = [place.run(place.service.verify, each.id) for each in made]
            assert [each.ok for each in verified] == [True] * number + [False] * (4 - number)
            assert all(f"{backup.id}/{name}" in (each.problem or "") for each in verified[number:])
            assert set(place.ids()) == kept.states.keys()

            taken = kept.take()
            assert (taken.kind, taken.parent_id) == ("full", None)
            kept.assert_brings_back(*[each.id for each in made[:number]], taken.id)
        place.run(place.service.delete, taken.id)
        del kept.states[taken.id]
    kept.assert_brings_back()
    kept.assert_each_verifies()
    assert kept.take().kind == "delta"


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_start(path: Path) -> None:
    path.write_bytes(b"[" + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [cut_in_half, spoil_start])
def test_what_damaged_metadata_may_name_is_not_freed(four: tuple[Kept, list[Backup]], damage: Damage) -> None:
    kept, made = four
    place = kept.place
    first, second, third, fourth = (backup.id for backup in made)
    with damaged(place.store / "backups" / second / "meta.json", damage):
        before = _files(place)
        assert place.run(place.service.delete, fourth).freed_bytes == 0
        with pytest.raises(BackupIntegrityError, match=second):
            place.run(place.service.prune, keep_last=1)
        assert place.ids() == [third]
        gone = {f"backups/{backup_id}/meta.json" for backup_id in (first, fourth)}
        assert _files(place) == before - gone
        kept.assert_brings_back(third)
        taken = kept.take()
        assert taken.kind == "delta"
    kept.assert_brings_back(second, third, taken.id)
    place.run(place.service.prune, keep_last=1)
    place.assert_clean()
    kept.assert_nothing_unneeded()
    kept.assert_brings_back(taken.id)


@pytest.mark.parametrize("damage", [cut_in_half, Path.unlink])
def test_what_others_need_of_a_backup_without_metadata_stays(four: tuple[Kept, list[Backup]], damage: Damage) -> None:
    kept, made = four
    place = kept.place
    first, second, third, fourth = (backup.id for backup in made)
    damage(place.store / "backups" / second / "meta.json")
    if damage is not Path.unlink:
        place.run(place.service.delete, second)
    place.run(place.service.prune)
    assert place.ids() == [fourth, third, first]
    kept.assert_each_verifies()
    kept.assert_brings_back()
    place.run(place.service.prune, keep_last=1)
    kept.assert_nothing_unneeded()
    kept.assert_brings_back(fourth)


def _files(place: Place) -> set[str]:
    return {str(path.relative_to(place.store)) for path in place.store.rglob("*") if path.is_file()}
