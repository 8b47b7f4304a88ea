import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.engine import never
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError
from sandpoint.models import PathGrant, RelayGrant, Source
from sandpoint.recent import RecentManifests

CONTENTS = {key: key.encode() * 100 for key in "abc"}


class CountingRelay:
    def __init__(self) -> None:
        self.reads: list[str] = []

    def read(self, key: str) -> Iterator[bytes]:
        self.reads.append(key)
        yield CONTENTS[key]

    def write(self, key: str, path: str, check: Check) -> None:
        raise AssertionError("nothing is written")


def source(key: str, content: bytes | None = None) -> Source:
    digest = hashlib.sha256(CONTENTS[key] if content is None else content).hexdigest()
    return Source(size=100, sha256=digest, grant=RelayGrant(key=key))


def test_a_manifest_is_fetched_once() -> None:
    recent, relay = RecentManifests(), CountingRelay()
    assert [recent.content(source("a"), relay, never) for _ in range(3)] == [CONTENTS["a"]] * 3
    assert relay.reads == ["a"]


def test_the_least_used_go_when_there_are_too_many() -> None:
    recent, relay = RecentManifests(max_bytes=250), CountingRelay()
    for key in "abacab":
        assert recent.content(source(key), relay, never) == CONTENTS[key]
    assert relay.reads == ["a", "b", "c", "b"]


def test_what_is_larger_than_all_room_is_given_out_and_not_kept() -> None:
    recent, relay = RecentManifests(max_bytes=99), CountingRelay()
    for _ in range(2):
        assert recent.content(source("a"), relay, never) == CONTENTS["a"]
    assert relay.reads == ["a", "a"]


def test_what_has_another_digest_is_neither_given_out_nor_kept() -> None:
    recent, relay = RecentManifests(), CountingRelay()
    for _ in range(2):
        with pytest.raises(BackupIntegrityError):
            recent.content(source("a", b"other"), relay, never)


def test_a_file_of_this_machine_is_read_each_time(tmp_path: Path) -> None:
    recent, path = RecentManifests(), tmp_path / "manifest"
    path.write_bytes(CONTENTS["a"])
    local = source("a").model_copy(update={"grant": PathGrant(path=str(path))})
    assert recent.content(local, None, never) == CONTENTS["a"]
    path.unlink()
    with pytest.raises(BackupIntegrityError, match="missing"):
        recent.content(local, None, never)
