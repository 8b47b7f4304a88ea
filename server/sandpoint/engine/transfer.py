"""Files on their way to and from a store, by the grants that it gave, each with its digest."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from sandpoint.engine.beside import beside
from sandpoint.engine.manifest import Manifest
from sandpoint.engine.state import State, sync_directory, write_new, write_over
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError, StoreUnavailableError
from sandpoint.models import PathGrant, Source, StoredFile

_BLOCK = 8 << 20
_REMEDY = "Nothing was changed. Use another one: 'sandpoint verify' says of each whether it is whole"


def unfinished(grant: PathGrant) -> str:
    """Return where a file is written until it is whole: beside its place, on the store's own filesystem."""
    return f"{grant.path}.partial"


@contextmanager
def sealing(grant: PathGrant, check: Check) -> Iterator[Callable[[], StoredFile]]:
    """Make an `unfinished` file durable and read it back to its end, both beside the block.

    Yields a function that waits for the end and returns the file's size and SHA-256, or raises `OSError`. Should the
    block end without it, or `check` raise, the reading stops.
    """
    with (
        beside(lambda _stop: _sync_file(unfinished(grant)), check) as written,
        beside(lambda stop: _digest(unfinished(grant), stop), check) as read,
    ):

        def sealed() -> StoredFile:
            written()
            return read()

        yield sealed


def _sync_file(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _digest(path: str, check: Check) -> StoredFile:
    """Read a file to its end, and return its size and SHA-256.

    Raises:
        OSError: It cannot be read.
    """
    total = hashlib.sha256()
    size = 0
    # Large blocks: this runs beside Python code, and after each block it waits for the interpreter's lock.
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while length := file.readinto(block):
            total.update(block[:length])
            size += length
            check()
    return StoredFile(size=size, sha256=total.hexdigest())


def send(grant: PathGrant, stored: StoredFile, state: State) -> None:
    """Put a sealed file from its `unfinished` place into its own.

    Raises:
        StoreUnavailableError: The store cannot hold it.
    """
    try:
        os.rename(unfinished(grant), grant.path)
        sync_directory(os.path.dirname(grant.path))
    except OSError as error:
        raise StoreUnavailableError(f"the store cannot keep {grant.path}: {error.strerror}") from error
    _note_sent(grant, stored, state)


def send_bytes(grant: PathGrant, content: bytes, state: State) -> StoredFile:
    """Put a small file into its place, whole and durably.

    Raises:
        StoreUnavailableError: The store cannot hold it.
    """
    try:
        write_new(grant.path, content)
    except OSError as error:
        raise StoreUnavailableError(f"the store cannot keep {grant.path}: {error.strerror}") from error
    stored = StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    _note_sent(grant, stored, state)
    return stored


def fetch(source: Source, state: State, check: Check, *, reread: bool) -> str:
    """Return the path of a file whose digest was checked.

    Args:
        source: What to fetch.
        state: Where the stamps of checked files are noted.
        check: May raise to stop.
        reread: Whether to read it again although its stamp says that it was not written to since the last check.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    path = source.grant.path
    before = _stamp_of(path)
    if reread or before is None or not _was_checked(state, source.sha256, before):
        check_file(source, check)
        if before is not None and before == _stamp_of(path):
            _note_checked(state, source.sha256, before)
    return path


def fetch_all(sources: Iterable[Source], state: State, check: Check, *, reread: bool = False) -> list[str]:
    """Return the paths of files whose digests were checked; see `fetch`."""
    return [fetch(source, state, check, reread=reread) for source in sources]


def check_file(source: Source, check: Check) -> None:
    """Read a file to its end and compare it with its size and digest.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    path = source.grant.path
    try:
        status = os.stat(path)
        if status.st_size != source.size:
            raise BackupIntegrityError(
                f"{path} has {status.st_size} bytes where the backup has {source.size}; the backup is damaged, "
                "nothing was changed"
            )
        if _digest(path, check).sha256 != source.sha256:
            raise BackupIntegrityError(f"{path} was altered: its SHA-256 is another; nothing was changed")
    except FileNotFoundError:
        raise BackupIntegrityError(f"{path} is missing; the backup is damaged. {_REMEDY}") from None
    except OSError as error:
        raise StoreUnavailableError(f"{path} cannot be read: {error.strerror}") from error


def fetch_bytes(source: Source) -> bytes:
    """Return the content of a small file whose digest was checked.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    try:
        with open(source.grant.path, "rb") as file:
            content = file.read(source.size + 1)
    except FileNotFoundError:
        raise BackupIntegrityError(f"{source.grant.path} is missing; the backup is damaged. {_REMEDY}") from None
    except OSError as error:
        raise StoreUnavailableError(f"{source.grant.path} cannot be read: {error.strerror}") from error
    if len(content) != source.size or hashlib.sha256(content).hexdigest() != source.sha256:
        raise BackupIntegrityError(f"{source.grant.path} was altered: its SHA-256 is another; nothing was changed")
    return content


def fetch_manifest(sources: Iterable[Source]) -> Manifest:
    """Return the manifest of a backup from its manifest files, that of the full one it is built on first.

    Raises:
        BackupIntegrityError: One is missing or altered, or is no manifest.
    """
    return Manifest.from_chain([fetch_bytes(source) for source in sources])


class _Stamp(msgspec.Struct, frozen=True):
    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


def _stamp_of(path: str) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _note_sent(grant: PathGrant, stored: StoredFile, state: State) -> None:
    stamp = _stamp_of(grant.path)
    if stamp is not None and stamp.size == stored.size:
        _note_checked(state, stored.sha256, stamp)


def _note_checked(state: State, sha256: str, stamp: _Stamp) -> None:
    if _was_checked(state, sha256, stamp):
        return
    state.prepare()
    with suppress(OSError):  # without the note it is read again next time
        write_over(os.path.join(state.checked, sha256), [msgspec.json.encode(stamp)])


def _was_checked(state: State, sha256: str, stamp: _Stamp) -> bool:
    try:
        with open(os.path.join(state.checked, sha256), "rb") as file:
            return file.read() == msgspec.json.encode(stamp)
    except OSError:
        return False
