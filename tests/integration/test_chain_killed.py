"""A process killed at any moment of an operation on a chain: no visible backup is damaged, the next run heals.

Every change that an operation makes is a moment; see `helpers.killer`. What each backup is to bring back is kept aside.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers.kept import Kept, layer_keys
from helpers.killer import KillerProcess, points
from helpers.place import Place
from helpers.trees import Listing, assert_same, differences, in_whole_seconds, list_tree

Healer = Callable[[Kept], object]


def by_diff(kept: Kept) -> None:
    kept.place.diff(kept.place.ids()[-1], dir=str(kept.place.tree))


def by_read(kept: Kept) -> None:
    kept.place.run(read, kept.place, kept.place.ids()[-1], "dir0/file0")


async def read(place: Place, backup_id: str, path: str) -> None:
    async with await place.service.open_file(backup_id, path):
        pass


def by_prune(kept: Kept) -> None:
    kept.place.run(kept.place.service.prune)


def by_create(kept: Kept) -> None:
    kept.place.run(kept.place.service.delete, kept.place.create().id)


HEALERS: Sequence[Healer] = (by_diff, by_read, by_prune, by_create)


def heal(kept: Kept, at: int) -> None:
    """Run one operation or another after the kill, and fail if it leaves anything behind or damages a backup."""
    place = kept.place
    healer = HEALERS[at % len(HEALERS)]
    healer(kept)
    cleared = [place.state] if healer in (by_diff, by_read) else [place.state, place.store]
    left = [found for found in place.leftovers() if any(found.startswith(f"{folder}/") for folder in cleared)]
    assert left == [], (at, healer)
    kept.assert_each_verifies()


def assert_some_come_back(kept: Kept, at: int, *backup_ids: str) -> None:
    """All of them at some of the kills, and what the kill itself left at each."""
    kept.assert_brings_back(*backup_ids[at % 4 > 0 :])


def thin_out(kept: Kept) -> None:
    """Leave the newest few, and fail if more of the store stays than they need."""
    kept.place.run(kept.place.service.prune, keep_last=3)
    kept.place.assert_clean()
    kept.assert_nothing_unneeded()


def assert_all_is_well(kept: Kept) -> None:
    """Fail unless each backup comes back in both ways, and nothing is left when all are gone."""
    kept.assert_brings_back()
    kept.assert_each_is_shown()
    for backup_id in kept.place.ids():
        kept.place.run(kept.place.service.delete, backup_id)
    kept.place.run(kept.place.service.prune)
    kept.place.assert_clean()
    kept.assert_nothing_unneeded()


# -- captures --


@pytest.mark.parametrize("chain_layers", [16, 4], ids=["one more layer", "the newest layers anew as one"])
def test_a_delta(fast: Path, killer: KillerProcess, chain_layers: int) -> None:
    place = Place(fast, chain_layers=chain_layers)
    kept = Kept(place)
    kept.build()
    kept.grow(4)
    counts = set()

    def killed_at(at: int) -> bool:
        if len(layer_keys(place, place.ids()[0])) > 6:
            kept.take(full=True)
        kept.change(100 + at)
        state = list_tree(place.tree)
        before = place.ids()
        killed = killer.run(place.base, place.state, "create", str(place.tree), at=at, chain_layers=chain_layers)
        assert_same(state, list_tree(place.tree))
        new = kept.adopt(state)
        assert place.ids() == new + before
        heal(kept, at)
        taken = kept.take()
        assert taken.kind == "delta"
        assert taken.size_bytes > 0 or new
        place.assert_clean()
        assert_some_come_back(kept, at, taken.id, *new)
        counts.add(len(layer_keys(place, taken.id)))
        thin_out(kept)
        return killed

    assert points(killed_at) > 20
    assert max(counts) == 4 if chain_layers == 4 else max(counts) > 6
    assert_all_is_well(kept)
    place.assert_unmounted()


def test_a_delta_on_an_overlay(fast: Path, killer: KillerProcess) -> None:
    place = Place(fast)
    kept = Kept(place, on_overlay=True)
    kept.build()
    shown = kept.grow(4)[-1]
    place.restore(shown.id, mode="overlay", undo=False)

    def killed_at(at: int) -> bool:
        kept.change(100 + at)
        state = list_tree(place.tree)
        before = place.ids()
        killed = killer.run(place.base, place.state, "create", str(place.tree), at=at)
        assert_same(state, list_tree(place.tree))
        new = kept.adopt(state)
        assert place.ids() == new + before
        heal(kept, at)
        assert_same(state, list_tree(place.tree))
        assert place.mounts() == [str(place.tree)]
        taken = kept.take()
        assert taken.kind == "delta"
        assert taken.parent_id in (shown.id, *new)
        place.assert_clean()
        assert_some_come_back(kept, at, taken.id, *new)
        for each in (taken.id, *new):
            place.run(place.service.delete, each)
        kept.assert_nothing_unneeded()
        return killed

    assert points(killed_at) > 20
    place.unmount(undo=False)
    assert_all_is_well(kept)
    place.assert_unmounted()


# -- restores: killed once the undo is there; before that it is a capture as any other --

RESTORE = "sandpoint.engine.restore.restore"


def test_a_copy_restore_with_undo(fast: Path, killer: KillerProcess) -> None:
    place = Place(fast)
    kept = Kept(place)
    kept.build()
    last = kept.grow(4)[-1]
    after = kept.states[last.id]

    def killed_at(at: int) -> bool:
        for number in range(4):  # one of each layer
            (place.tree / "dir0" / f"file{12 * number}").unlink()
        kept.change(100 + at, edits=2)
        before = list_tree(place.tree)
        killed = killer.run(place.base, place.state, "restore", last.id, at=at, since=RESTORE)
        (undo,) = kept.adopt(before)
        found = list_tree(place.tree)
        if not killed:
            assert_same(after, found)
        assert_nothing_in_between(before, after, found)
        heal(kept, at)
        assert_same(found, list_tree(place.tree))
        if at % 2:
            place.restore(undo, undo=False)
            assert_same(before, list_tree(place.tree))
        place.restore(last.id, undo=False)
        assert_same(after, list_tree(place.tree))
        drop(kept, undo)
        return killed

    assert points(killed_at) > 60
    assert_all_is_well(kept)
    place.assert_unmounted()


def assert_nothing_in_between(before: Listing, after: Listing, found: Listing) -> None:
    """Fail unless each entry has the contents that it had or is to have, and none is another."""
    for path, item in found.items():
        states = [state[path] for state in (before, after) if path in state]
        assert (item.kind, item.sha256, item.target) in [(each.kind, each.sha256, each.target) for each in states], path
    assert {path for path, item in before.items() if path in after and after[path].kind == item.kind} <= found.keys()


def drop(kept: Kept, backup_id: str) -> None:
    """Delete a backup, and fail if anything of it or of the operation stays."""
    kept.place.run(kept.place.service.delete, backup_id)
    kept.place.run(kept.place.service.prune)
    kept.place.assert_clean()
    kept.assert_nothing_unneeded()


@pytest.mark.parametrize("over", ["a plain directory", "an overlay"])
def test_an_overlay_restore_with_undo(fast: Path, killer: KillerProcess, over: str) -> None:
    place = Place(fast)
    kept = Kept(place, on_overlay=True)
    kept.build()
    wanted, last = kept.grow(4)[-2:]
    after = in_whole_seconds(kept.states[wanted.id])
    plain = over == "a plain directory"

    def killed_at(at: int) -> bool:
        if not plain:
            place.restore(last.id, mode="overlay", undo=False)
        kept.change(100 + at, edits=2)
        before = list_tree(place.tree)
        killed = killer.run(place.base, place.state, "restore", wanted.id, at=at, since=RESTORE, mode="overlay")
        (undo,) = kept.adopt(before)
        heal(kept, at)
        found = in_whole_seconds(list_tree(place.tree))
        is_done = found == after
        assert is_done or killed
        assert is_done or found == in_whole_seconds(before), differences(after, found)
        assert place.mounts() == ([str(place.tree)] if is_done or not plain else [])
        if at % 4 == 0:
            kept.assert_brings_back(undo)
        if plain and is_done:
            place.unmount(undo=False)
        if plain:
            assert_same(before, list_tree(place.tree))
        drop(kept, undo)
        return killed

    assert points(killed_at) > 20
    if not plain:
        place.unmount(undo=False)
    assert_all_is_well(kept)
    place.assert_unmounted()


# -- prune and delete --


class Chains:
    """Three chains, of which one is needed up to its middle, one not at all, and one by a backup without a layer."""

    def __init__(self, place: Place) -> None:
        self.kept = Kept(place)
        self.kept.build(20)
        names = (None, None, "keep", None, None, None, None, None)
        self.made = []
        for number, name in enumerate(names):
            self.kept.change(number, edits=4)
            self.made.append(self.kept.take(name=name, full=number in (0, 4, 6)).id)
        self.made.append(self.kept.take(name="keep").id)
        self.wanted = {self.made[2], self.made[8]}
        self._store = place.store
        self._aside = place.base / "aside"
        shutil.copytree(place.store, self._aside)

    def again(self) -> None:
        """Bring the store back as it was."""
        shutil.rmtree(self._store)
        shutil.copytree(self._aside, self._store)


def test_a_prune(fast: Path, killer: KillerProcess) -> None:
    place = Place(fast)
    chains = Chains(place)
    kept = chains.kept
    state = list_tree(place.tree)

    def killed_at(at: int) -> bool:
        chains.again()
        if at % 2:
            killer.run(place.base, place.state, "create", str(place.tree), at=at)
            kept.adopt(state)
        before = set(place.ids())
        killed = killer.run(place.base, place.state, "prune", at=at, keep_names=["keep"])
        left = set(place.ids())
        assert chains.wanted <= left <= before
        kept.assert_each_verifies()
        heal(kept, at)
        removed = place.run(place.service.prune, keep_names=["keep"]).removed
        assert set(removed) == left - chains.wanted
        place.assert_clean()
        kept.assert_nothing_unneeded()
        if at % 4 == 0:
            kept.assert_brings_back()
        return killed

    assert points(killed_at) > 20
    assert set(place.ids()) == chains.wanted
    assert_all_is_well(kept)


@pytest.mark.parametrize("number", [0, 3, 5], ids=["others need it", "the last of its chain", "the last of another"])
def test_a_delete(fast: Path, killer: KillerProcess, number: int) -> None:
    place = Place(fast)
    chains = Chains(place)
    kept = chains.kept
    gone = chains.made[number]
    others = set(chains.made) - {gone}

    def killed_at(at: int) -> bool:
        chains.again()
        killed = killer.run(place.base, place.state, "delete", gone, at=at)
        assert set(place.ids()) - {gone} == others
        heal(kept, at)
        if gone in place.ids():
            place.run(place.service.delete, gone)
        by_prune(kept)
        place.assert_clean()
        kept.assert_nothing_unneeded()
        return killed

    assert points(killed_at) > 3
    assert set(place.ids()) == others
    assert_all_is_well(kept)
