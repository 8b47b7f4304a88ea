"""A host that works on a bucket together with others: it backs up, restores, deletes and prunes for so many steps.

Started as `python -m helpers.hosts ROLE BASE STEPS`, the bucket in the environment. What each backup held when it was
made is kept in `../states`, by its id.
"""

import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.place import Place
from helpers.trees import Listing, assert_same, in_whole_seconds, list_tree, write
from sandpoint.errors import BackupNotFoundError
from sandpoint.settings import read_settings
from sandpoint.stores import open_store


class Host:
    """A tree and a state directory of its own."""

    def __init__(self, base: Path) -> None:
        self.states = base.parent / "states"
        self.place = Place(base, store=open_store(read_settings().store))
        self.chance = random.Random(base.name)
        for number in range(20):
            write(self.place.tree / f"dir{number % 3}" / f"file{number}", f"{base.name} {number}" * 50)

    def create(self) -> None:
        """Change the tree and back it up, keeping what it was aside."""
        for _ in range(self.chance.randrange(4)):
            write(
                self.place.tree / f"dir{self.chance.randrange(3)}" / f"new{self.chance.randrange(9)}", self._content()
            )
        was = list_tree(self.place.tree)
        backup = self.place.create(full=self.chance.random() < 0.2)
        self._keep(backup.id, was)

    def _content(self) -> str:
        return self.chance.randbytes(500).hex()

    def _keep(self, backup_id: str, was: Listing) -> None:
        part = self.states / f".{backup_id}"
        part.write_bytes(pickle.dumps(was))
        part.rename(self.states / backup_id)  # others read it as soon as it is there

    def restore(self) -> None:
        """Bring any host's backup back beside the tree, by copy or as an overlay."""
        backup_id = self._any()
        if backup_id is None or not (self.states / backup_id).exists():
            return
        other = self.place.base / "other"
        mode = self.chance.choice(["copy", "overlay"])
        try:
            self.place.restore(backup_id, dir=other, undo=False, mode=mode)
        except BackupNotFoundError:
            return
        was = pickle.loads((self.states / backup_id).read_bytes())
        assert_same(in_whole_seconds(was), in_whole_seconds(list_tree(other)))
        if mode == "overlay":
            self.place.unmount(other, undo=False)

    def verify(self) -> None:
        """Read any host's backup."""
        backup_id = self._any()
        if backup_id is not None:
            verified = self.place.run(self.place.service.verify, backup_id)
            assert verified.ok or backup_id not in self.place.ids(), verified.problem

    def delete(self) -> None:
        """Delete any host's backup."""
        backup_id = self._any()
        if backup_id is not None:
            self.place.run(self.place.service.delete, backup_id)

    def prune(self) -> None:
        """Leave but the newest few."""
        directory = self.chance.choice([None, str(self.place.tree)])
        self.place.run(self.place.service.prune, keep_last=self.chance.choice([None, 2, 3]), dir=directory)

    def _any(self) -> str | None:
        there = self.place.ids()
        return self.chance.choice(there) if there else None


DUTIES: dict[str, list[Callable[[Host], None]]] = {
    "worker": [Host.create, Host.create, Host.create, Host.restore, Host.verify, Host.delete, Host.prune],
    "pruner": [Host.prune],
}


def main() -> None:
    """Play the role; an error that nobody foresaw ends it. Prints how often a backup was gone."""
    role, base, steps = sys.argv[1:]
    host = Host(Path(base))
    gone = 0
    for number in range(int(steps)):
        try:
            DUTIES[role][number % len(DUTIES[role])](host)
        except BackupNotFoundError:
            gone += 1  # another was faster
    print(gone)


if __name__ == "__main__":
    main()
