"""The cache: one download each, never trusted without its digest, kept to its budget."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.engine import Stopped, never, stop
from sandpoint.engine import cache, transfer
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError, SandboxUnavailableError, StoreUnavailableError
from sandpoint.models import CachedGrant, RelayGrant, Source, StoredFile

CONTENTS = [bytes([65 + number]) * 1000 for number in range(5)]


class FolderRelay:
    """A store in a folder, as a relay; counts what is read, and may damage it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reads: list[str] = []
        self.damaged = 0
        self.unavailable = False

    def read(self, key: str) -> Iterator[bytes]:
        self.reads.append(key)
        if self.unavailable:
            raise StoreUnavailableError("the store is away; try again")
        content = (self.folder / key).read_bytes()
        if self.damaged:
            self.damaged -= 1
            content = b"?" + content[1:]
        yield content[:300]
        yield content[300:]

    def write(self, key: str, path: str, check: Check) -> None:
        check()
        (self.folder / key).write_bytes(Path(path).read_bytes())


@pytest.fixture
def relay(tmp_path: Path) -> FolderRelay:
    folder = tmp_path / "store"
    folder.mkdir()
    for number, content in enumerate(CONTENTS):
        (folder / str(number)).write_bytes(content)
    return FolderRelay(folder)


@pytest.fixture
def state(tmp_path: Path, relay: FolderRelay) -> State:
    return State(str(tmp_path / "state"), cache_bytes=2500, relay=relay)


def stored(number: int) -> StoredFile:
    content = CONTENTS[number]
    return StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def source(number: int) -> Source:
    return Source(**dict(stored(number)), grant=RelayGrant(key=str(number)))


def fetch(state: State, number: int, *, reread: bool = False) -> str:
    return transfer.fetch(source(number), state, never, reread=reread)


def in_cache(state: State) -> list[int]:
    digests = [stored(number).sha256 for number in range(len(CONTENTS))]
    return [number for number, digest in enumerate(digests) if os.path.exists(os.path.join(state.cache, digest))]


def left_over(state: State) -> list[str]:
    return [name for name in os.listdir(state.cache) if "partial" in name]


def test_a_file_is_fetched_once(state: State, relay: FolderRelay) -> None:
    for _ in range(3):
        path = fetch(state, 0)
        assert Path(path).read_bytes() == CONTENTS[0]
        cache.release(state)
    assert relay.reads == ["0"]
    assert left_over(state) == []


def test_a_file_is_fetched_once_by_many_at_the_same_time(tmp_path: Path, relay: FolderRelay) -> None:
    states = [State(str(tmp_path / "state"), relay=relay) for _ in range(5)]
    threads = [threading.Thread(target=fetch, args=(each, 0)) for each in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert relay.reads == ["0"]
    assert all(len(each.held) == 1 for each in states)


def test_whoever_waits_for_a_file_does_not_wait_for_the_end_of_its_use(
    tmp_path: Path, state: State, relay: FolderRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another finds no file, and before it can take the lock, this one has fetched the file and uses it."""
    other = State(state.path, relay=relay)
    thread = threading.Thread(target=fetch, args=(state, 0))
    lock = cache._lock

    def lock_late(fd: int, how: int, check: Check) -> None:
        if threading.current_thread() is threading.main_thread() and thread.ident is None:
            thread.start()
            thread.join()
        lock(fd, how, check)

    monkeypatch.setattr(cache, "_lock", lock_late)
    assert Path(fetch(other, 0)).read_bytes() == CONTENTS[0]
    assert relay.reads == ["0"]
    assert len(state.held) == len(other.held) == 1


def test_the_lock_of_what_never_came_goes(state: State, relay: FolderRelay) -> None:
    relay.unavailable = True
    with pytest.raises(StoreUnavailableError):
        fetch(state, 0)
    cache.release(state)
    assert os.listdir(state.cache) == []


def test_what_was_sent_is_there(tmp_path: Path, state: State, relay: FolderRelay) -> None:
    made = tmp_path / "made"
    made.write_bytes(CONTENTS[1])
    transfer.send(str(made), stored(1), RelayGrant(key="sent"), state, never)
    assert (relay.folder / "sent").read_bytes() == CONTENTS[1]
    assert not made.exists()
    assert Path(fetch(state, 1)).read_bytes() == CONTENTS[1]
    assert relay.reads == []


def test_what_is_in_use_is_not_replaced_by_what_was_sent(tmp_path: Path, state: State, relay: FolderRelay) -> None:
    inode = os.stat(fetch(state, 1)).st_ino
    made = tmp_path / "made"
    made.write_bytes(CONTENTS[1])
    transfer.send(str(made), stored(1), RelayGrant(key="sent"), State(state.path, relay=relay), never)
    assert not made.exists()
    assert os.stat(fetch(state, 1)).st_ino == inode


@pytest.mark.parametrize("reread", [True, False])
def test_what_was_altered_in_the_cache_is_fetched_again(state: State, relay: FolderRelay, reread: bool) -> None:
    path = fetch(state, 0)
    Path(path).write_bytes(b"x" + CONTENTS[0][1:])
    assert Path(fetch(state, 0, reread=reread)).read_bytes() == CONTENTS[0]
    assert relay.reads == ["0", "0"]


def test_a_stamp_put_back_does_not_hide_what_was_altered_from_one_who_reads_again(
    state: State, relay: FolderRelay
) -> None:
    path = fetch(state, 0)
    descriptor = os.open(path, os.O_RDWR)
    note = Path(state.checked, stored(0).sha256).read_bytes()
    os.pwrite(descriptor, b"x", 0)
    os.close(descriptor)
    status = os.stat(path)
    assert str(status.st_ctime_ns).encode() not in note
    forged = note.replace(note.split(b'"ctime_ns":')[1].rstrip(b"}"), str(status.st_ctime_ns).encode())
    forged = forged.replace(note.split(b'"mtime_ns":')[1].split(b",")[0], str(status.st_mtime_ns).encode())
    Path(state.checked, stored(0).sha256).write_bytes(forged)
    assert fetch(state, 0) == path
    assert relay.reads == ["0"]
    assert Path(fetch(state, 0, reread=True)).read_bytes() == CONTENTS[0]
    assert relay.reads == ["0", "0"]


def test_what_was_damaged_on_its_way_is_fetched_again(state: State, relay: FolderRelay) -> None:
    relay.damaged = 1
    assert Path(fetch(state, 0)).read_bytes() == CONTENTS[0]
    assert relay.reads == ["0", "0"]


def test_what_is_damaged_in_the_store_is_said_and_not_kept(state: State, relay: FolderRelay) -> None:
    relay.damaged = 9
    with pytest.raises(BackupIntegrityError, match="SHA-256"):
        fetch(state, 0)
    assert in_cache(state) == []
    assert left_over(state) == []
    assert state.held == {}


@pytest.mark.parametrize("size", [0, 999, 1001])
def test_another_size_is_said(state: State, relay: FolderRelay, size: int) -> None:
    (relay.folder / "0").write_bytes(b"A" * size)
    with pytest.raises(BackupIntegrityError):
        fetch(state, 0)
    assert left_over(state) == []


def test_a_store_that_is_away_leaves_nothing(state: State, relay: FolderRelay) -> None:
    relay.unavailable = True
    with pytest.raises(StoreUnavailableError, match="try again"):
        fetch(state, 0)
    assert in_cache(state) == []
    assert left_over(state) == []


def test_a_fetch_can_be_stopped(state: State) -> None:
    with pytest.raises(Stopped):
        transfer.fetch(source(0), state, stop)
    assert left_over(state) == []
    assert state.held == {}


def test_what_only_the_cache_has_cannot_be_fetched(state: State) -> None:
    with pytest.raises(BackupIntegrityError, match="missing"):
        transfer.fetch(Source(**dict(stored(0)), grant=CachedGrant()), state, never)
    path = fetch(state, 0)
    assert transfer.fetch(Source(**dict(stored(0)), grant=CachedGrant()), state, never) == path


# -- the budget --


def test_the_least_recently_used_goes_first(state: State) -> None:
    for number in (0, 1, 0):
        fetch(state, number)
        cache.release(state)
        time.sleep(0.01)  # the filesystem's clock is coarse
    fetch(state, 2)
    cache.release(state)
    assert in_cache(state) == [0, 2]


def test_what_is_in_use_stays(state: State, relay: FolderRelay) -> None:
    other = State(state.path, relay=relay)
    for number in range(3):
        fetch(other, number)
    fetch(state, 3)
    cache.release(state)
    assert in_cache(state) == [0, 1, 2]
    cache.release(other)
    assert in_cache(state) == [0, 1, 2]
    fetch(state, 4)
    cache.release(state)
    assert len(in_cache(state)) == 2


def test_a_dropped_file_leaves_nothing(state: State) -> None:
    fetch(state, 0)
    cache.release(state)
    assert cache.trim(state, budget=0) == 1000
    assert os.listdir(state.cache) == []


def test_what_nobody_uses_makes_room_where_the_disk_is_full(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(state, 0)
    cache.release(state)
    real = os.posix_fallocate

    def full(descriptor: int, offset: int, length: int) -> None:
        if in_cache(state):
            raise OSError(28, os.strerror(28))
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert Path(fetch(state, 1)).read_bytes() == CONTENTS[1]


def test_a_full_disk_is_said(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SandboxUnavailableError, match="No space left"):
        fetch(state, 0)
    assert left_over(state) == []


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from sandpoint.engine import cache
from sandpoint.engine.state import State
from sandpoint.models import CachedGrant, Source
state = State(sys.argv[1])
source = Source(size=1000, sha256=sys.argv[3], grant=CachedGrant())
cache.fetch(source, state, lambda: None, reread=False)
print("held", flush=True)
time.sleep(600)
"""


def test_a_killed_process_holds_nothing(state: State) -> None:
    fetch(state, 0)
    cache.release(state)
    argv = [sys.executable, "-c", HOLDER, state.path, "", stored(0).sha256]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert cache.trim(state, budget=0) == 0
        holder.kill()
    assert cache.trim(state, budget=0) == 1000
