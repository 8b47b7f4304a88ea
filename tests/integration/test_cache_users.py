"""Many processes and one cache, any of them killed at any time: nobody gets, loses or leaves what is not right."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

from helpers.bucket import BucketPlace
from helpers.cache_users import SlowRelay
from helpers.s3 import S3Server
from sandpoint.engine import cache, transfer
from sandpoint.engine.state import State
from sandpoint.models import RelayGrant, Source, StoredLayer

KILLS = os.environ.get("CACHE_KILLS", "60")


def make_sources(base: Path, server: S3Server) -> list[Source]:
    """Make small files behind a slow relay, and one in a bucket that comes in two parts, which can be resumed."""
    chance = random.Random(1)
    (base / "store").mkdir()
    sources = []
    for number in range(4):
        content = chance.randbytes(60_000 + number)
        (base / "store" / str(number)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        sources.append(Source(size=len(content), sha256=digest, grant=RelayGrant(key=str(number))))
    place = BucketPlace(base / "bucket", server)
    large = chance.randbytes(20 << 20)
    key = "backups/0192f0c1-2a3b-7c4d-8e5f-60718293a4b5/data.sqsh"
    place.replace(key, large)
    stored = StoredLayer(key=key, size=len(large), sha256=hashlib.sha256(large).hexdigest())
    sources.append(Source(size=stored.size, sha256=stored.sha256 or "", grant=place.backups.grant_get(stored)))
    (base / "sources").write_text(json.dumps([source.model_dump(mode="json") for source in sources]))
    return sources


def test_the_cache_survives_its_users(tmp_path: Path, s3_server: S3Server) -> None:
    sources = make_sources(tmp_path, s3_server)
    done = subprocess.run(
        [sys.executable, "-m", "helpers.cache_users", str(tmp_path), KILLS],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    state = State(str(tmp_path / "state"), relay=SlowRelay(tmp_path / "store"))
    assert_each_is_what_its_name_says(state)
    assert_no_lock_is_stuck(state, sources)
    cache.trim(state, budget=0)
    assert_nothing_is_held(state)


def assert_each_is_what_its_name_says(state: State) -> None:
    for path in Path(state.cache).iterdir():
        if not path.suffix:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def assert_no_lock_is_stuck(state: State, sources: list[Source]) -> None:
    def use() -> None:
        for source in sources:
            path = transfer.fetch(source, state, lambda: None, reread=True)
            assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == source.sha256
        cache.release(state)
        done.set()

    done = threading.Event()
    threading.Thread(target=use, daemon=True).start()
    assert done.wait(60)


def assert_nothing_is_held(state: State) -> None:
    assert list(Path(state.cache).iterdir()) == []
