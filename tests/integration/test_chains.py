"""Deltas one by one: when one is taken, what it holds, and what is found out about a chain that is not whole."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.place import OverlayKind, Place, unmount_all
from helpers.trees import Listing, assert_same, build_small, in_whole_seconds, list_tree, write
from sandpoint.chains import ChainLimits
from sandpoint.errors import BackupIntegrityError, BackupRestoreError
from sandpoint.models import Backup
from sandpoint.service import BackupService
from sandpoint.stores.local import LocalStore


@pytest.fixture
def place(place: Place) -> Place:
    place.tree.mkdir()
    build_small(place.tree)
    return place


def change(place: Place, text: str) -> None:
    write(place.tree / "src" / "app.py", text)


def layers(place: Place, backup: Backup) -> list[Path]:
    metadata = json.loads((place.store / "backups" / backup.id / "meta.json").read_text())
    return [place.store / layer["key"] for layer in metadata["layers"]]


def assert_brings_back(place: Place, backup: Backup) -> None:
    expected = list_tree(place.tree)
    place.restore(backup.id, dir=place.base / "other", undo=False)
    assert_same(expected, list_tree(place.base / "other"))


def test_a_second_backup_holds_what_has_changed(place: Place) -> None:
    first = place.create()
    change(place, "changed\n")
    (place.tree / "README.md").unlink()
    second = place.create()
    assert (first.kind, second.kind, second.parent_id) == ("full", "delta", first.id)
    assert [len(layers(place, each)) for each in (first, second)] == [1, 2]
    assert_brings_back(place, second)


def test_where_nothing_has_changed_nothing_is_written_but_the_metadata(place: Place) -> None:
    first, second = place.create(), place.create()
    assert (second.kind, second.parent_id, second.size_bytes) == ("delta", first.id, 0)
    assert os.listdir(place.store / "backups" / second.id) == ["meta.json"]
    assert layers(place, second) == layers(place, first)
    assert (second.file_count, second.total_bytes) == (first.file_count, first.total_bytes)
    assert_brings_back(place, second)


@pytest.mark.parametrize("options", [{"full": True}, {"excludes": ["*.log"]}], ids=["asked for", "other excludes"])
def test_a_full_one_is_taken_instead(place: Place, options: dict[str, Any]) -> None:
    place.create()
    second = place.create(**options)
    assert (second.kind, second.parent_id) == ("full", None)


def test_a_large_change_is_a_full_backup(place: Place) -> None:
    place.create()
    (place.tree / "large").write_bytes(os.urandom(3 << 20))
    assert place.create().kind == "full"


@pytest.mark.parametrize("number", [0, 1, 2], ids=["the full one", "in the middle", "the last"])
@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_an_altered_layer_anywhere_is_found_before_anything_is_touched(place: Place, number: int, mode: str) -> None:
    for text in ("one\n", "two\n", "three\n"):
        change(place, text)
        last = place.create()
    layer = layers(place, last)[number]
    layer.chmod(0o600)
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)
    change(place, "worse\n")
    before = list_tree(place.tree)
    with pytest.raises(BackupIntegrityError):
        place.restore(last.id, mode=mode, undo=False)
    assert_same(before, list_tree(place.tree))
    assert place.create().kind == "full"  # nothing is built on it


def test_a_missing_layer_is_found_and_not_built_on(place: Place) -> None:
    first = place.create()
    change(place, "changed\n")
    second = place.create()
    layers(place, first)[0].unlink()
    before = list_tree(place.tree)
    with pytest.raises(BackupIntegrityError):
        place.restore(second.id, undo=False)
    assert_same(before, list_tree(place.tree))
    third = place.create()
    assert third.kind == "full"
    assert_brings_back(place, third)


def test_a_child_outlives_its_parents(place: Place) -> None:
    first = place.create()
    change(place, "changed\n")
    second = place.create()
    change(place, "changed again\n")
    third = place.create()
    for gone in (first, second):
        place.run(place.service.delete, gone.id)
    place.run(place.service.prune)
    assert_brings_back(place, third)
    place.run(place.service.delete, third.id)
    assert os.listdir(place.store / "backups") == []


def test_after_an_undo_that_was_not_needed_the_next_one_is_a_delta(place: Place) -> None:
    first = place.create()
    assert place.restore(first.id).undo_id is None
    change(place, "changed\n")
    assert place.create().kind == "delta"


def limited(place: Place, **limits: float) -> BackupService:
    chosen = ChainLimits(**({"layers": 16, "hours": 24.0, "share": 0.5} | limits))  # type: ignore[arg-type]
    return BackupService(place.sandbox, LocalStore(str(place.store)), chain_limits=chosen)


def test_a_chain_that_is_long_enough_is_written_anew_from_its_last_layers(place: Place) -> None:
    place.service = limited(place, layers=4)
    counts = []
    for number in range(12):
        change(place, f"{number}\n")
        write(place.tree / f"new-{number}", "new\n")
        last = place.create()
        counts.append(len(layers(place, last)))
        assert_brings_back(place, last)
    assert counts[:4] == [1, 2, 3, 4]
    assert max(counts) == 4
    assert place.create(full=False).kind == "delta"


def test_an_old_chain_is_not_continued(place: Place) -> None:
    place.create()
    place.service = limited(place, hours=1e-9)
    change(place, "changed\n")
    assert place.create().kind == "full"


def test_more_layers_than_mount_options_can_say(place: Place) -> None:
    place.service = limited(place, layers=300)
    for number in range(120):
        change(place, f"{number}\n")
        last = place.create()
    assert len(layers(place, last)) == 120
    before = list_tree(place.tree)
    change(place, "worse\n")
    place.restore(last.id, mode="overlay", undo=False)
    assert_same(in_whole_seconds(before), in_whole_seconds(list_tree(place.tree)))


def shown(tree: Path) -> Listing:
    """List a tree as far as every overlay shows it: fuse-overlayfs gives files of several layers one inode number."""
    return {path: replace(item, links=(path,)) for path, item in in_whole_seconds(list_tree(tree)).items()}


def test_fuse_would_confuse_the_hard_links_of_a_chain(tmp_path: Path) -> None:
    place = Place(tmp_path, overlay="fuse")
    place.tree.mkdir()
    build_small(place.tree)
    os.link(place.tree / "README.md", place.tree / "linked")
    place.create()
    change(place, "changed\n")
    last = place.create()
    try:
        with pytest.raises(BackupRestoreError, match="hard links"):
            place.restore(last.id, mode="overlay", undo=False)
        place.assert_clean()
        assert place.mounts() == []
    finally:
        unmount_all(tmp_path)


@pytest.mark.parametrize("kind", ["kernel", "fuse"])
def test_an_overlay_of_a_chain_shows_the_last_state(tmp_path: Path, kind: OverlayKind) -> None:
    place = Place(tmp_path / kind, overlay=kind)
    place.tree.mkdir(parents=True)
    build_small(place.tree)
    try:
        place.create()
        for number in range(5):
            change(place, f"{number}\n")
            write(place.tree / f"new-{number}", "new\n")
            (place.tree / f"new-{number - 2}").unlink(missing_ok=True)
            last = place.create()
        expected = shown(place.tree)
        change(place, "worse\n")
        place.restore(last.id, mode="overlay", undo=False)
        assert_same(expected, shown(place.tree))
        change(place, "on the overlay\n")
        state = shown(place.tree)
        taken = place.create()
        assert taken.kind == ("delta" if kind == "kernel" else "full")
        place.restore(taken.id, dir=tmp_path / "other", undo=False)
        assert_same(state, shown(tmp_path / "other"))
    finally:
        unmount_all(tmp_path)
