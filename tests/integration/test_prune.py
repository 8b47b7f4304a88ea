"""Pruning real backups: what stays is whole, whoever works beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.cli import Program
from helpers.crowd import states
from helpers.place import Place
from helpers.trees import Listing, assert_same, list_tree, write

CROWD_SECONDS = os.environ.get("CROWD_SECONDS", "10")


def assert_each_whole(place: Place, expected: dict[str, Listing]) -> None:
    """Fail unless each visible backup is whole and brings its own state back."""
    for backup_id in place.ids():
        verified = place.run(place.service.verify, backup_id)
        assert verified.ok, verified.problem
        place.restore(backup_id, dir=place.base / "other", undo=False)
        assert_same(expected[backup_id], list_tree(place.base / "other"))


def assert_nothing_is_left(place: Place) -> None:
    """Delete all, and fail if anything stays in the store."""
    for backup_id in place.ids():
        place.run(place.service.delete, backup_id)
    place.run(place.service.prune)
    assert [list((place.store / folder).iterdir()) for folder in ("backups", "incoming")] == [[], []]


class Chain:
    """Backups of a tree that changes a little each time; every third one is full."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.states: dict[str, Listing] = {}
        for number in range(20):
            write(place.tree / f"file{number}", os.urandom(100).hex())

    def grow(self, number: int) -> list[str]:
        """Take backups; return their ids, oldest first."""
        made = []
        for _ in range(number):
            write(self.place.tree / f"file{len(self.states) % 20}", f"{len(self.states)}")
            state = list_tree(self.place.tree)
            made.append(self.place.create(full=len(self.states) % 3 == 0).id)
            self.states[made[-1]] = state
        return made


@pytest.fixture
def chain(place: Place) -> Chain:
    return Chain(place)


def test_what_stays_is_whole_and_what_nobody_needs_goes(place: Place, chain: Chain) -> None:
    made = chain.grow(6)
    foreseen = place.run(place.service.prune, keep_last=2, dry_run=True)
    assert sorted(place.ids()) == made
    before = _bytes_in(place.store)
    result = place.run(place.service.prune, keep_last=2)
    assert (result.removed, result.freed_bytes) == (foreseen.removed, foreseen.freed_bytes)
    assert set(result.removed) == set(made[:4])
    assert result.abandoned == ()
    assert before - _bytes_in(place.store) > result.freed_bytes > 0  # the metadata is gone too
    assert sorted(place.ids()) == made[4:]
    assert_each_whole(place, chain.states)
    assert_nothing_is_left(place)


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_next_backup_after_a_prune_of_all_is_whole(place: Place, chain: Chain) -> None:
    chain.grow(3)
    place.run(place.service.prune, keep_names=["none"])
    assert place.ids() == []
    chain.grow(2)
    assert_each_whole(place, chain.states)


def test_by_the_command_line(place: Place, chain: Chain) -> None:
    made = chain.grow(3)
    sandpoint = Program(SANDPOINT_STORE=place.store.as_uri(), SANDPOINT_STATE_DIR=str(place.state))
    told = sandpoint("prune", "--keep-last", "1", "--dir", str(place.tree), "--dry-run")
    assert (told.status, told.err) == (0, "")
    assert [line.split()[:2] for line in told.out.splitlines()[1:4]] == [
        ["keep", made[2]],
        ["remove", made[1]],
        ["remove", made[0]],
    ]
    assert sorted(place.ids()) == made
    assert set(sandpoint("prune", "--keep-last", "1", "--json").json["removed"]) == {*made[:2]}
    assert place.ids() == made[2:]
    refused = sandpoint("prune", "--keep-last", "0", "--json")
    assert refused.json["error"]["code"] == "INVALID_BACKUP_CONFIG"
    assert refused.status != 0
    assert_each_whole(place, chain.states)


# -- beside others --


def test_beside_creates_and_deletes_of_other_processes(place: Place) -> None:
    (place.base / "states").mkdir()
    for tree in ("one", "two", "three"):
        for number in range(10):
            write(place.base / tree / "dir0" / f"file{number}", f"{tree} {number}")
    crowd = [
        ("create", "state-a", "one"),
        ("create", "state-a", "two"),
        ("create", "state-b", "three"),
        ("delete", "state-b"),
        ("prune", "state-a"),
        ("prune", "state-c"),
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "helpers.crowd", role, str(place.base), state, CROWD_SECONDS, *rest],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role, state, *rest in crowd
    ]
    ends = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(crowd), [err for _, err in ends if err]
    assert all(int(rounds) > 0 for rounds, _ in ends)
    place.run(place.service.prune)
    was, last = list_tree(place.base / "one"), place.create(place.base / "one")  # who deletes may have left none
    assert_each_whole(place, states(place.base) | {last.id: was})
    assert_nothing_is_left(place)
