"""Going back a step, and again: chains with edits between, on directories and on overlays of ours."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.place import Place, unmount_all
from helpers.trees import write
from sandpoint.errors import BackupIntegrityError, BackupNotFoundError, InvalidBackupConfigError
from sandpoint.models import UndoResult


@pytest.fixture(params=["directory", "overlay"])
def there(place: Place, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place with a first state; its tree is a plain directory or an overlay of ours."""
    write(place.tree / "kept", "the same all the time\n")
    to(place, "0")
    if request.param == "overlay":
        origin = place.create(name="origin")
        place.restore(origin.id, mode="overlay", undo=False)
    yield place
    unmount_all(place.base)


def to(place: Place, state: str) -> None:
    write(place.tree / "state", state)


def state(place: Place) -> str:
    return (place.tree / "state").read_text()


def step(place: Place, number: str) -> str:
    """What a hook and an agent do: a backup if anything has changed, then an edit."""
    backup = place.create(if_changed=True, name="auto")
    to(place, number)
    return backup.id


def undo(place: Place, *, dry_run: bool = False) -> UndoResult:
    return place.run(place.service.undo, str(place.tree), dry_run=dry_run)


def back(place: Place) -> str:
    """Undo, and return the state that this brings."""
    undo(place)
    return state(place)


def test_what_was_done_since_the_last_backup_goes_first_and_then_step_by_step(there: Place) -> None:
    first, second, third = (step(there, number) for number in "123")
    result = undo(there)
    assert (state(there), result.id, result.backup.id, result.backup.name) == ("2", third, third, "auto")
    assert result.changes is None or result.changes.modified == ("state",)
    assert undo(there).id == second
    assert state(there) == "1"
    assert undo(there).id == first
    assert state(there) == "0"
    with pytest.raises(BackupNotFoundError, match="oldest one"):
        undo(there)
    assert state(there) == "0"
    assert (there.tree / "kept").read_text() == "the same all the time\n"


def test_a_backup_of_the_present_state_moves_the_start(there: Place) -> None:
    step(there, "1")
    there.create(name="mine")
    assert back(there) == "0"


def test_what_was_undone_is_not_come_upon_again_after_new_work(there: Place) -> None:
    for number in ("1", "2", "bad"):
        step(there, number)
    assert [back(there), back(there)] == ["2", "1"]
    for number in ("3", "4"):
        step(there, number)
    assert [back(there), back(there), back(there)] == ["3", "1", "0"]


def test_a_hook_after_an_undo_changes_nothing_about_the_next_one(there: Place) -> None:
    for number in "123":
        step(there, number)
    seen = []
    for _ in range(3):
        assert back(there) not in seen
        seen.append(state(there))
        assert there.create(if_changed=True, name="auto").unchanged
    assert seen == ["2", "1", "0"]


def test_each_step_can_be_taken_back(there: Place) -> None:
    step(there, "1")
    step(there, "2")
    undo_id = undo(there).undo_id
    assert undo_id is not None
    mode = "overlay" if there.mounts() else "copy"
    there.restore(undo_id, mode=mode)
    assert state(there) == "2"
    assert [back(there), back(there)] == ["1", "0"]


def test_backups_of_the_same_state_are_one_step(there: Place) -> None:
    step(there, "1")
    for _ in range(3):
        there.create(name="mine")
    assert back(there) == "0"


def test_a_dry_run_tells_and_changes_nothing(there: Place) -> None:
    backup_id = step(there, "1")
    before = there.ids()
    planned = undo(there, dry_run=True)
    assert (planned.id, planned.dry_run, planned.undo_id) == (backup_id, True, None)
    assert planned.changes is not None
    assert planned.changes.modified == ("state",)
    assert (state(there), there.ids()) == ("1", before)


def test_an_overlay_stays_one(place: Place) -> None:
    to(place, "0")
    origin = place.create()
    place.restore(origin.id, mode="overlay", undo=False)
    try:
        to(place, "1")
        assert undo(place).mode == "overlay"
        assert place.mounts() == [str(place.tree)]
        assert state(place) == "0"
    finally:
        unmount_all(place.base)
    assert undo_is_copy(place)


def undo_is_copy(place: Place) -> bool:
    to(place, "2")
    return undo(place).mode == "copy"


def test_a_directory_that_was_deleted_comes_back(place: Place) -> None:
    to(place, "0")
    backup = place.create()
    shutil.rmtree(place.tree)
    result = undo(place)
    assert (result.id, result.undo_id, state(place)) == (backup.id, None, "0")


def test_backups_that_are_over_are_passed_by(place: Place) -> None:
    to(place, "0")
    kept = place.create()
    to(place, "1")
    place.create(ttl=0.001)
    to(place, "2")
    assert undo(place).id == kept.id


def test_a_restore_of_one_file_is_undone_as_such(place: Place) -> None:
    to(place, "0")
    old = place.create()
    to(place, "1")
    write(place.tree / "new work", "hours of it")
    place.create()
    write(place.tree / "new work", "and more")
    place.restore(old.id, paths=["state"])
    assert state(place) == "0"
    undo(place)
    assert (state(place), (place.tree / "new work").read_text()) == ("1", "and more")
    undo(place)
    assert (state(place), (place.tree / "new work").read_text()) == ("1", "hours of it")


def test_other_directories_and_their_backups_do_not_count(place: Place) -> None:
    other = place.base / "other"
    write(other / "state", "other")
    to(place, "0")
    place.create()
    to(place, "1")
    place.create(other)
    undo(place)
    assert (state(place), (other / "state").read_text()) == ("0", "other")
    with pytest.raises(BackupNotFoundError, match="no backup that can be restored"):
        place.run(place.service.undo, str(place.base / "neither"))


def test_the_nearest_directory_with_backups(place: Place) -> None:
    inner = place.tree / "a" / "b"
    write(inner / "file", "x")

    def nearest(directory: Path) -> str | None:
        return place.run(place.service.nearest, str(directory))

    assert nearest(inner) is None
    place.create()
    assert nearest(inner) == nearest(place.tree) == str(place.tree)
    place.create(place.tree / "a")
    assert nearest(inner) == str(place.tree / "a")
    assert nearest(place.base) is None
    assert nearest(Path(f"{place.tree}x")) is None


def test_a_directory_whose_backups_are_over_is_passed_by_for_one_above(place: Place) -> None:
    inner = place.tree / "inner"
    write(inner / "file", "x")
    place.create()
    place.create(inner, ttl=0.001)
    assert place.run(place.service.nearest, str(inner)) == str(place.tree)


@pytest.mark.parametrize("lost", ["data.sqsh", "manifest.zst"])
def test_a_step_that_is_damaged_is_not_passed_by_in_silence(place: Place, lost: str) -> None:
    to(place, "0")
    oldest = place.create()
    to(place, "1")
    damaged = place.create(full=True)
    (place.store / "backups" / damaged.id / lost).unlink()
    to(place, "2")
    with pytest.raises(BackupIntegrityError, match=f"delete backup {damaged.id}"):
        undo(place)
    assert state(place) == "2"
    place.run(place.service.delete, damaged.id)
    assert undo(place).id == oldest.id
    assert state(place) == "0"


def test_trim_leaves_the_ways_back(place: Place) -> None:
    to(place, "0")
    step(place, "1")
    undo(place)
    before = place.ids()
    with pytest.raises(InvalidBackupConfigError, match="ways back"):
        place.run(place.service.trim, str(place.tree), name="undo", keep=1)
    assert place.ids() == before


def test_trim_deletes_the_oldest_of_one_name_and_directory_only(place: Place) -> None:
    other = place.base / "other"
    write(other / "file", "x")
    to(place, "0")
    mine = place.create(name="mine").id
    elsewhere = place.create(other, name="auto").id
    taken = [step(place, str(number)) for number in range(1, 8)][1:]
    over = place.create(name="auto", ttl=0.001).id
    result = place.run(place.service.trim, str(place.tree), name="auto", keep=3)
    assert result.removed == (over, *reversed(taken[:-3]))
    assert set(place.ids()) == {mine, elsewhere, *taken[-3:]}
    for backup_id in place.ids():
        assert place.run(place.service.verify, backup_id).ok
    place.assert_clean()
    assert place.run(place.service.trim, str(place.tree), name="auto", keep=3).removed == ()


def test_a_look_at_a_repository_between_two_steps_is_no_step(place: Place) -> None:
    kept = write(place.tree / "kept", "the same all the time\n")
    to(place, "0")
    git(place, "init", "-q")
    git(place, "add", ".")
    for number in "123":
        step(place, number)
    seen = []
    for _ in range(3):
        seen.append(back(place))
        before = (place.tree / ".git/index").read_bytes()
        shutil.copy2(kept, place.base / "new")  # another inode with the same to it, as from a restore
        (place.base / "new").replace(kept)
        git(place, "status")
        assert (place.tree / ".git/index").read_bytes() != before
    assert seen == ["2", "1", "0"]
    with pytest.raises(BackupNotFoundError, match="oldest one"):
        undo(place)


def test_what_git_was_told_about_its_index_is_a_step(place: Place) -> None:
    to(place, "0")
    git(place, "init", "-q")
    git(place, "add", ".")
    step(place, "1")
    place.create()
    git(place, "rm", "-r", "-f", "-q", "--cached", ".")
    assert back(place) == "1"
    assert "state" in git(place, "ls-files")
    assert back(place) == "0"


def git(place: Place, *arguments: str) -> str:
    argv = ["git", "-C", str(place.tree), *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
