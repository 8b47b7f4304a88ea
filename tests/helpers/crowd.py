"""A process that does one thing to a store again and again while others do other things.

Started as `python -m helpers.crowd ROLE BASE STATE SECONDS`, with the directory's name in BASE for a creator.
"""

import pickle
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from helpers.place import Place
from helpers.trees import Listing, list_tree, write
from sandpoint.errors import BackupNotFoundError


def states(base: Path) -> dict[str, Listing]:
    """Return what creators backed up, by the backups' ids."""
    return {path.name: pickle.loads(path.read_bytes()) for path in (base / "states").iterdir()}


def create(place: Place, chance: random.Random, directory: str = "") -> None:
    """Change the tree and back it up, keeping what it was aside."""
    tree = place.base / directory
    for _ in range(chance.randrange(3)):
        write(tree / f"dir{chance.randrange(3)}" / f"file{chance.randrange(6)}", chance.randbytes(200).hex())
    was = list_tree(tree)
    backup = place.create(tree, full=chance.random() < 0.1)
    (place.base / "states" / backup.id).write_bytes(pickle.dumps(was))


def delete(place: Place, chance: random.Random) -> None:
    """Delete any backup."""
    time.sleep(0.1)
    try:
        if there := place.ids():
            place.run(place.service.delete, chance.choice(there))
    except BackupNotFoundError:
        pass  # another was faster


def prune(place: Place, chance: random.Random) -> None:
    """Leave but the newest few."""
    time.sleep(0.01)
    place.run(place.service.prune, keep_last=chance.randrange(2, 6), dry_run=chance.random() < 0.2)


ROLES: dict[str, Callable[..., None]] = {"create": create, "delete": delete, "prune": prune}


def main() -> None:
    """Play the role, and print how often."""
    role, base, state, seconds, *rest = sys.argv[1:]
    place = Place(Path(base), state=Path(base, state))
    chance = random.Random(repr(sys.argv))
    end = time.monotonic() + float(seconds)
    rounds = 0
    while time.monotonic() < end:
        ROLES[role](place, chance, *rest)
        rounds += 1
    print(rounds)


if __name__ == "__main__":
    main()
