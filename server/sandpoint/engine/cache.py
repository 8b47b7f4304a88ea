"""The cache of what was fetched from a store, or sent to one: layers and manifests by their digest.

cache/{sha256}          a whole file; it counts only once its digest was compared
cache/{sha256}.partial  one that is being fetched; a killed process leaves it, and the next goes on with it
cache/{sha256}.lock     locked by whoever fetches or uses the file; its mtime is the last use
"""

import errno
import fcntl
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sandpoint.engine import remote
from sandpoint.engine.checked import altered, check_once, note_checked
from sandpoint.engine.overlay import neighbours_layers, own_overlays
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError
from sandpoint.models import CachedGrant, Source, StoredFile

_LOCK = ".lock"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.02
_PARTIAL_ENDS_S = 3600


def add(state: State, path: str, stored: StoredFile) -> None:
    """Move a file that was just made, and sent, into the cache; if that cannot be, it is removed."""
    state.prepare()
    with suppress(OSError), _locked(state, stored.sha256, fcntl.LOCK_EX | fcntl.LOCK_NB, lambda: None):
        os.rename(path, _path(state, stored.sha256))
        note_checked(_path(state, stored.sha256), stored, state)
    with suppress(FileNotFoundError):
        os.unlink(path)  # somebody has the same one in use


def has(digest: str, state: State) -> bool:
    """Whether a file is there, as it seems: only `fetch` can tell."""
    return os.path.exists(_path(state, digest))


def fetch(source: Source, state: State, check: Check, *, reread: bool) -> str:
    """Return the path of a file in the cache whose digest was checked, fetching it if it is not there.

    Whoever wants the same file at the same time waits, and finds it there. It is not dropped before `release`.

    Raises:
        BackupIntegrityError: What the store has is not what it should be.
        StoreUnavailableError: It cannot be fetched.
        SandboxUnavailableError: There is no space for it.
    """
    state.prepare()
    try:
        return _fetch(source, state, check, reread=reread)
    except OSError as error:
        raise state.unwritable(error) from error


def _fetch(source: Source, state: State, check: Check, *, reread: bool) -> str:
    path = _path(state, source.sha256)
    _let_go(state, source.sha256)
    while True:
        if os.path.exists(path):  # else nobody need be kept from fetching it
            with _locked(state, source.sha256, fcntl.LOCK_SH, check) as lock:
                if _is_whole(path, source, state, check, reread=reread):
                    os.utime(lock)
                    state.held[source.sha256] = os.dup(lock)
                    return path
        try:
            with _locked(state, source.sha256, fcntl.LOCK_EX | fcntl.LOCK_NB, check):
                if not _is_whole(path, source, state, check, reread=reread):
                    _fill(path, source, state, check)
        except BlockingIOError:  # another fetches it, or has just done so and goes on using it
            check()
            time.sleep(_POLL_S)
        else:
            reread = False


def _is_whole(path: str, source: Source, state: State, check: Check, *, reread: bool) -> bool:
    if not os.path.exists(path):
        return False
    try:
        check_once(path, source, state, check, reread=reread)
    except BackupIntegrityError:
        if isinstance(source.grant, CachedGrant):
            raise
        return False  # it was altered here, not in the store
    return True


def _fill(path: str, source: Source, state: State, check: Check) -> None:
    partial = f"{path}.partial"
    try:
        for attempt in range(1, remote.READS + 1):
            found = _download(source, partial, state, check)
            if found == source.sha256:
                break
            _remove_partial(partial)
            if attempt == remote.READS:
                raise altered(remote.name_of(source.grant))
        os.rename(partial, path)
        note_checked(path, source, state)
    finally:
        _remove_partial(partial)


def _download(source: Source, partial: str, state: State, check: Check) -> str:
    try:
        return remote.download(source.grant, source.size, state.relay, partial, check)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        trim(state, budget=0)  # what others do not use just now gives way
        return remote.download(source.grant, source.size, state.relay, partial, check)


def _remove_partial(partial: str) -> None:
    folder, name = os.path.split(partial)
    for each in os.listdir(folder):
        if each.startswith(name):
            os.unlink(os.path.join(folder, each))


def release(state: State) -> None:
    """Let files go that the operation has fetched, and drop what the cache holds beyond its budget."""
    for digest in list(state.held):
        _let_go(state, digest)
    trim(state, budget=state.cache_bytes)


def _let_go(state: State, digest: str) -> None:
    lock = state.held.pop(digest, None)
    if lock is not None:
        os.close(lock)


def trim(state: State, *, budget: int) -> int:
    """Drop the files that were not used for longest until the others fit a budget; return the bytes dropped.

    Those that others use stay, and those below overlays, whose space would not be free before they are unmounted.
    """
    found = sorted(_files(state))
    excess = sum(size for _, size, _ in found) - budget
    pinned = _below_overlays(state) if excess > 0 else frozenset()
    dropped = 0
    for _, size, digest in found:
        if excess <= 0:
            break
        if digest not in pinned and _drop(state, digest):
            excess -= size
            dropped += size
    return dropped


def _below_overlays(state: State) -> frozenset[str]:
    layers = [layer for overlay in own_overlays(state, "/") for layer in overlay.record.layers]
    return frozenset(map(os.path.basename, (*layers, *neighbours_layers(state))))


def _files(state: State) -> Iterator[tuple[float, int, str]]:
    """Yield the time of the last use, the size in bytes and the digest of each file, and clear up after the dead."""
    with suppress(FileNotFoundError):
        names = os.listdir(state.cache)
        parts = Counter(name.partition(".")[0] for name in names)
        for name in names:
            digest, _, rest = name.partition(".")
            path = os.path.join(state.cache, name)
            with suppress(FileNotFoundError):
                if (rest == "lock" and parts[digest] == 1) or (
                    rest.startswith("partial") and time.time() - os.stat(path).st_mtime > _PARTIAL_ENDS_S
                ):
                    _drop(state, digest)
                elif _DIGEST.fullmatch(name):
                    yield _last_use(state, digest), os.stat(path).st_size, digest


def _last_use(state: State, digest: str) -> float:
    with suppress(FileNotFoundError):
        return os.stat(_path(state, digest) + _LOCK).st_mtime
    return 0.0


def _drop(state: State, digest: str) -> bool:
    """Remove a file with all that belongs to it, unless somebody uses it, or it cannot be removed."""
    try:
        with _locked(state, digest, fcntl.LOCK_EX | fcntl.LOCK_NB, lambda: None):
            for name in os.listdir(state.cache):
                if name.partition(".")[0] == digest and not name.endswith(_LOCK):
                    os.unlink(os.path.join(state.cache, name))
            os.unlink(_path(state, digest) + _LOCK)
    except OSError:  # in use; or another user's, which is no reason to fail what was done before
        return False
    return True


@contextmanager
def _locked(state: State, digest: str, how: int, check: Check) -> Iterator[int]:
    """Hold the lock of a file for the block; yields its descriptor.

    Raises:
        BlockingIOError: Another has it, and `how` says not to wait.
    """
    path = _path(state, digest) + _LOCK
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, how, check)
            if _is_at(path, fd):
                yield fd
                return
        finally:
            os.close(fd)
        # Whoever had it before dropped it, with the file that it is for.


def _lock(fd: int, how: int, check: Check) -> None:
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if how & fcntl.LOCK_NB:
                raise
            check()
            time.sleep(_POLL_S)
        else:
            return


def _is_at(path: str, fd: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _path(state: State, digest: str) -> str:
    return os.path.join(state.cache, digest)
