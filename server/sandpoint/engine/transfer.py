"""Files on their way to and from a store, by the grants that it gave, each with its digest."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sandpoint.engine import cache, remote
from sandpoint.engine.beside import beside
from sandpoint.engine.checked import altered, check_file, check_once, digest, missing, note_checked, other_size
from sandpoint.engine.manifest import Manifest
from sandpoint.engine.relay import Relay
from sandpoint.engine.state import State, sync_directory
from sandpoint.engine.tools import Check
from sandpoint.errors import StoreUnavailableError
from sandpoint.models import PathGrant, ReadGrant, SentFile, Source, StoredFile, WriteGrant

# -- to a store --


@contextmanager
def sealing(path: str, check: Check) -> Iterator[Callable[[], StoredFile]]:
    """Make a file durable and read it back to its end, both beside the block.

    Yields a function that waits for the end and returns the file's size and SHA-256, or raises `OSError`. Should the
    block end without it, or `check` raise, the reading stops.
    """
    with (
        beside(lambda _stop: _sync_file(path), check) as written,
        beside(lambda stop: digest(path, stop), check) as read,
    ):

        def sealed() -> StoredFile:
            written()
            return read()

        yield sealed


def seal_bytes(path: str, content: bytes) -> StoredFile:
    """Write a small file durably; return its size and SHA-256.

    Raises:
        OSError: It cannot be written.
    """
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _sync_file(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def send(path: str, stored: StoredFile, grant: WriteGrant, state: State, check: Check) -> SentFile:
    """Send a sealed file through a grant. The file goes: to its place in the store, or else into the cache.

    Raises:
        StoreUnavailableError: The store cannot hold it, or cannot be reached.
    """
    if isinstance(grant, PathGrant):
        _move_to_store(path, stored, grant, state)
        return SentFile(**dict(stored))
    parts = remote.upload(path, grant, state.relay, check)
    cache.add(state, path, stored)
    return SentFile(**dict(stored), parts=parts)


def _move_to_store(path: str, stored: StoredFile, grant: PathGrant, state: State) -> None:
    try:
        os.rename(path, grant.path)
        sync_directory(os.path.dirname(grant.path))
    except OSError as error:
        raise StoreUnavailableError(f"the store cannot keep {grant.path}: {error.strerror}") from error
    note_checked(grant.path, stored, state)


# -- from a store --


def fetch(source: Source, state: State, check: Check, *, reread: bool = False) -> str:
    """Return the path of a file whose digest was checked: in the store itself if that is a folder, else in the cache.

    Args:
        source: What to fetch.
        state: Where the cache is, and the stamps of checked files are noted.
        check: May raise to stop.
        reread: Whether to read it again although its stamp says that it was not written to since the last check.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
        StoreUnavailableError: It cannot be fetched.
        SandboxUnavailableError: There is no space for it in the state directory.
    """
    if not isinstance(source.grant, PathGrant):
        return cache.fetch(source, state, check, reread=reread)
    check_once(source.grant.path, source, state, check, reread=reread)
    return source.grant.path


def fetch_all(sources: Iterable[Source], state: State, check: Check, *, reread: bool = False) -> list[str]:
    """Return the paths of files whose digests were checked; see `fetch`."""
    return [fetch(source, state, check, reread=reread) for source in sources]


def bytes_to_fetch(sources: Iterable[Source], state: State) -> int:
    """Return how much `fetch_all` would have to fetch of files that are not here already."""
    return sum(
        source.size
        for source in sources
        if not isinstance(source.grant, PathGrant) and not cache.has(source.sha256, state)
    )


def assure(sources: Iterable[Source], state: State, check: Check) -> None:
    """See that files are whole, as far as can be told without fetching them.

    Those of a remote store were there, with their sizes, when the backup was begun.

    Raises:
        BackupIntegrityError: One is missing, truncated or altered.
    """
    fetch_all((source for source in sources if isinstance(source.grant, PathGrant)), state, check)


def fetch_bytes(source: Source, state: State, check: Check) -> bytes:
    """Return the content of a small file whose digest was checked; see `fetch`."""
    if isinstance(source.grant, PathGrant):
        return read_bytes(source, None, check)
    with open(fetch(source, state, check), "rb") as file:
        return _checked(file.read(source.size + 1), source, remote.name_of(source.grant))


def fetch_manifest(sources: Iterable[Source], state: State, check: Check) -> Manifest:
    """Return the manifest of a backup from its manifest files, that of the full one it is built on first.

    Raises:
        BackupIntegrityError: One is missing or altered, or is no manifest.
    """
    return Manifest.from_chain([fetch_bytes(source, state, check) for source in sources])


# -- without a sandbox --


def check_source(source: Source, relay: Relay | None, check: Check) -> None:
    """Read a file of a store to its end and compare it with its size and digest; nothing is kept.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    if isinstance(source.grant, PathGrant):
        check_file(source.grant.path, source, check)
        return
    for _ in range(remote.READS):
        total = hashlib.sha256()
        size = 0
        for block in remote.blocks(source.grant, source.size, relay, check):
            total.update(block)
            size += len(block)
        if (size, total.hexdigest()) == (source.size, source.sha256):
            return
    raise altered(remote.name_of(source.grant))


def check_size(grant: ReadGrant, size: int, relay: Relay | None, check: Check) -> None:
    """Read a file of a store to its end and compare it with its size alone; nothing is kept.

    Raises:
        BackupIntegrityError: It is missing, or has another size.
    """
    name = remote.name_of(grant)
    try:
        found = (
            os.stat(grant.path).st_size
            if isinstance(grant, PathGrant)
            else sum(len(block) for block in remote.blocks(grant, size, relay, check))
        )
    except FileNotFoundError:
        raise missing(name) from None
    if found != size:
        raise other_size(name, found, size)


def read_bytes(source: Source, relay: Relay | None, check: Check) -> bytes:
    """Return the content of a small file of a store, its digest checked.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    if not isinstance(source.grant, PathGrant):
        return _read_remote(source, relay, check)
    path = source.grant.path
    try:
        with open(path, "rb") as file:
            return _checked(file.read(source.size + 1), source, path)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise StoreUnavailableError(f"{path} cannot be read: {error.strerror}") from error


def _read_remote(source: Source, relay: Relay | None, check: Check) -> bytes:
    for _ in range(remote.READS):
        content = b"".join(remote.blocks(source.grant, source.size, relay, check))
        if _is(content, source):
            return content
    raise altered(remote.name_of(source.grant))


def read_manifest(sources: Iterable[Source], relay: Relay | None, check: Check) -> Manifest:
    """Return the manifest of a backup as `fetch_manifest` does; nothing is kept."""
    return Manifest.from_chain([read_bytes(source, relay, check) for source in sources])


def _checked(content: bytes, stored: StoredFile, name: str) -> bytes:
    if not _is(content, stored):
        raise altered(name)
    return content


def _is(content: bytes, stored: StoredFile) -> bool:
    return len(content) == stored.size and hashlib.sha256(content).hexdigest() == stored.sha256
