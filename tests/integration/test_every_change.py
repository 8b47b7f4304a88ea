"""Every kind of change is carried by a delta: of a directory as it is, and of an overlay."""

import os
from pathlib import Path

import pytest

from helpers.changes import CHANGES, build_varied
from helpers.place import Place
from helpers.trees import assert_same, in_whole_seconds, list_tree


@pytest.fixture
def place(fast: Path) -> Place:
    place = Place(fast)
    place.tree.mkdir()
    build_varied(place.tree)
    return place


@pytest.mark.parametrize("name", CHANGES)
def test_in_a_directory(place: Place, name: str) -> None:
    first, before = place.create(), list_tree(place.tree)
    CHANGES[name](place.tree)
    state = list_tree(place.tree)
    backup = place.create()
    assert (backup.kind, backup.parent_id) == ("delta", first.id)
    place.restore(first.id)
    assert_same(before, list_tree(place.tree))
    place.restore(backup.id, undo=False)
    assert_same(state, list_tree(place.tree))
    place.restore(backup.id, mode="overlay", undo=False)
    assert_same(in_whole_seconds(state), in_whole_seconds(list_tree(place.tree)))


@pytest.mark.parametrize("name", CHANGES)
def test_on_an_overlay(place: Place, name: str) -> None:
    first = place.create()
    place.restore(first.id, mode="overlay", undo=False)
    if name.endswith("acl added"):  # the kernel sets ACLs on what lies in the upper layer only: a chown brings it there
        for path in (place.tree / "file", place.tree / "dir"):
            os.chown(path, path.stat().st_uid, path.stat().st_gid)
    CHANGES[name](place.tree)
    state = in_whole_seconds(list_tree(place.tree))
    backup = place.create()
    assert (backup.kind, backup.parent_id) == ("delta", first.id)
    again = place.create()
    assert again.size_bytes == 0
    place.restore(backup.id, dir=place.base / "copy", undo=False)
    assert_same(state, in_whole_seconds(list_tree(place.base / "copy")))
    place.restore(again.id, mode="overlay", undo=False)
    assert_same(state, in_whole_seconds(list_tree(place.tree)))
