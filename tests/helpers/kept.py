"""Backups of a tree that changes, and the tree as it was at each of them, kept aside."""

import json
import os
from typing import Any

from helpers.place import Place
from helpers.trees import Listing, assert_same, in_whole_seconds, list_tree, write
from sandpoint.models import Backup


class Kept:
    """Backups of a place's tree, with the states to compare them with."""

    def __init__(self, place: Place, *, on_overlay: bool = False) -> None:
        """Say whether states are kept from an overlay too, which shows whole seconds."""
        self.place = place
        self._on_overlay = on_overlay
        self.states: dict[str, Listing] = {}

    def build(self, files: int = 60) -> None:
        """Build a tree of small files in six folders."""
        for number in range(files):
            write(self.place.tree / f"dir{number % 6}" / f"file{number}", f"file {number}\n" * number)
        (self.place.tree / "link").symlink_to("dir0/file0")
        os.link(self.place.tree / "dir1" / "file1", self.place.tree / "dir2" / "linked")

    def change(self, number: int, *, edits: int = 12) -> None:
        """Make changes as no other number does: files edited, added, removed, moved, linked, of another mode."""
        tree = self.place.tree
        for each in range(edits):
            write(tree / f"dir{each % 6}" / f"file{(12 * number + each) % 60}", f"change {number} {each}\n" * each)
        write(tree / f"new{number}" / "deep" / "inside", f"new {number}\n")
        write(tree / f"new{number}" / "beside", os.urandom(2000))
        (tree / f"new{number - 1}" / "beside").unlink(missing_ok=True)
        if (tree / f"new{number - 2}").is_dir():
            (tree / f"new{number - 2}" / "deep").rename(tree / f"new{number}" / "from before")
        (tree / "link").unlink(missing_ok=True)
        (tree / "link").symlink_to(f"dir0/file{number}")
        (tree / "dir3").chmod(0o700 + number % 64)
        (tree / "dir2" / "linked").unlink(missing_ok=True)
        os.link(tree / f"new{number}" / "beside", tree / "dir2" / "linked")
        swapped = tree / "file or folder"
        if swapped.is_dir():
            (swapped / "inside").unlink()
            swapped.rmdir()
            swapped.write_text(f"{number}\n")
        else:
            swapped.unlink(missing_ok=True)
            write(swapped / "inside", f"{number}\n")

    def take(self, **options: Any) -> Backup:
        """Back up the tree as it is."""
        state = list_tree(self.place.tree)
        backup = self.place.create(**options)
        self.states[backup.id] = state
        return backup

    def grow(self, number: int, start: int = 0, **options: Any) -> list[Backup]:
        """Change the tree and back it up, again and again; return the backups, oldest first."""
        made = []
        for each in range(start, start + number):
            self.change(each)
            made.append(self.take(**options))
        return made

    def adopt(self, state: Listing) -> list[str]:
        """Return the ids of backups that nobody told of, which are to bring back this state."""
        new = [backup_id for backup_id in self.place.ids() if backup_id not in self.states]
        self.states |= dict.fromkeys(new, state)
        return new

    def assert_each_verifies(self) -> None:
        """Fail unless each visible backup is whole."""
        for backup_id in self.place.ids():
            verified = self.place.run(self.place.service.verify, backup_id)
            assert verified.ok, verified.problem

    def assert_brings_back(self, *backup_ids: str) -> None:
        """Fail unless some backups, by default all, bring their states back by copy."""
        for backup_id in backup_ids or self.place.ids():
            self.place.restore(backup_id, dir=self.place.base / "other", undo=False)
            expected, found = self.states[backup_id], list_tree(self.place.base / "other")
            if self._on_overlay:
                expected, found = in_whole_seconds(expected), in_whole_seconds(found)
            assert_same(expected, found)

    def assert_each_is_shown(self) -> None:
        """Fail unless each visible backup shows its state as an overlay."""
        other = self.place.base / "shown"
        for backup_id in self.place.ids():
            self.place.restore(backup_id, dir=other, mode="overlay", undo=False)
            assert_same(in_whole_seconds(self.states[backup_id]), in_whole_seconds(list_tree(other)))
        if other.exists():
            self.place.unmount(other, undo=False)

    def assert_nothing_unneeded(self) -> None:
        """Fail unless the store holds what visible backups need, and no more."""
        files = (path for path in self.place.store.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.place.store)) for path in files}
        assert found - {"lock"} == self.place.needed()
        assert all(any(folder.iterdir()) for folder in (self.place.store / "backups").iterdir())


def layer_keys(place: Place, backup_id: str) -> list[str]:
    """Return the keys of a backup's layers, bottom first."""
    metadata = json.loads((place.store / "backups" / backup_id / "meta.json").read_text())
    return [layer["key"] for layer in metadata["layers"]]
