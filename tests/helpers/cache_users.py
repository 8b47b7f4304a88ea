"""Processes that fetch into one cache and trim it, and are killed at any time.

Run as `python -m helpers.cache_users BASE KILLS`. What they fetch is told by `sources` in BASE. It fails if a file that
one of them holds is not what it should be.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from sandpoint.engine import cache, transfer
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check
from sandpoint.models import RelayGrant, Source, StoredFile

BLOCK = 4096
USERS = 4


class SlowRelay:
    """A store in a folder, which takes its time: most kills meet somebody in the middle of a download."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Iterator[bytes]:
        """Yield a file in small blocks."""
        content = (self.folder / key).read_bytes()
        for start in range(0, len(content), BLOCK):
            time.sleep(0.002)
            yield content[start : start + BLOCK]

    def write(self, key: str, path: str, check: Check) -> None:
        """Take a file that was made."""
        check()
        (self.folder / key).write_bytes(Path(path).read_bytes())


class User:
    """One process."""

    def __init__(self, base: Path, seed: str) -> None:
        self.base = base
        self.chance = random.Random(seed)
        self.state = State(str(base / "state"), cache_bytes=100_000, relay=SlowRelay(base / "store"))
        self.sources = [Source.model_validate(each) for each in json.loads((base / "sources").read_text())]

    def fetch(self) -> None:
        """Hold some files for a while, which must stay what they are."""
        held = {
            source.sha256: transfer.fetch(source, self.state, lambda: None, reread=self.chance.random() < 0.3)
            for source in self.chance.sample(self.sources, 2)
        }
        for _ in range(3):
            time.sleep(self.chance.random() * 0.01)
            for digest, path in held.items():
                assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest, f"{digest} was lost"
        cache.release(self.state)

    def add(self) -> None:
        """Put a file there that was just made."""
        source = self.chance.choice([each for each in self.sources if isinstance(each.grant, RelayGrant)])
        assert isinstance(source.grant, RelayGrant)
        made = self.base / f"made-{self.chance.random()}"
        made.write_bytes((self.base / "store" / source.grant.key).read_bytes())
        stored = StoredFile(size=source.size, sha256=source.sha256)
        transfer.send(str(made), stored, RelayGrant(key=made.name), self.state, lambda: None)

    def trim(self) -> None:
        """Drop all that nobody uses."""
        cache.trim(self.state, budget=0)


def start(base: Path, seed: str) -> int:
    """Start one, which does any of it again and again; return its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        user = User(base, seed)
        while not (base / "stop").exists():
            user.chance.choice([user.fetch, user.fetch, user.fetch, user.add, user.trim])()
        status = 0
    except BaseException:  # noqa: BLE001 - whoever reads stderr is told
        traceback.print_exc()
    os._exit(status)


def main() -> None:
    """Start them, and kill one after another at any moment of what it does, each time starting a new one."""
    base, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(kills)
    users = [start(base, f"first {number}") for number in range(USERS)]
    ends = []
    for kill in range(kills):
        time.sleep(chance.random() * 0.2)
        number = chance.randrange(USERS)
        os.kill(users[number], signal.SIGKILL)
        ends.append(os.waitpid(users[number], 0)[1])
        users[number] = start(base, f"after {kill}")
    (base / "stop").touch()
    ends += [os.waitpid(user, 0)[1] for user in users]
    assert ends == [signal.SIGKILL] * kills + [0] * USERS


if __name__ == "__main__":
    main()
