"""Files whose digest was compared: by reading them, or by a note that they were not written to since."""

import hashlib
import os
from contextlib import suppress

import msgspec

from sandpoint.engine.state import State, write_over
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError, StoreUnavailableError
from sandpoint.models import StoredFile

_BLOCK = 8 << 20
REMEDY = "Nothing was changed. Use another one: 'sandpoint verify' says of each whether it is whole"


def digest(path: str, check: Check) -> StoredFile:
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


def check_file(path: str, stored: StoredFile, check: Check) -> None:
    """Read a file to its end and compare it with its size and digest.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    try:
        status = os.stat(path)
        if status.st_size != stored.size:
            raise other_size(path, status.st_size, stored.size)
        if digest(path, check).sha256 != stored.sha256:
            raise altered(path)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise StoreUnavailableError(f"{path} cannot be read: {error.strerror}") from error


def missing(name: str) -> BackupIntegrityError:
    """Return what is said of a file that the store does not have."""
    return BackupIntegrityError(f"{name} is missing; the backup is damaged. {REMEDY}")


def other_size(name: str, found: int, size: int) -> BackupIntegrityError:
    """Return what is said of a file of another size."""
    return BackupIntegrityError(
        f"{name} has {found} bytes where the backup has {size}; the backup is damaged, nothing was changed"
    )


def altered(name: str) -> BackupIntegrityError:
    """Return what is said of a file of another digest."""
    return BackupIntegrityError(f"{name} was altered: its SHA-256 is another; nothing was changed")


def check_once(path: str, stored: StoredFile, state: State, check: Check, *, reread: bool) -> None:
    """Compare a file with its digest, unless its stamp says that it was not written to since that was last done.

    Raises:
        BackupIntegrityError: It is missing, truncated or altered.
    """
    before = _stamp_of(path)
    if reread or before is None or not _is_noted(state, stored.sha256, before):
        check_file(path, stored, check)
        if before is not None and before == _stamp_of(path):
            _note(state, stored.sha256, before)


def note_checked(path: str, stored: StoredFile, state: State) -> None:
    """Take note that a file has its digest: it was just made, or read to its end."""
    stamp = _stamp_of(path)
    if stamp is not None and stamp.size == stored.size:
        _note(state, stored.sha256, stamp)


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


def _note(state: State, sha256: str, stamp: _Stamp) -> None:
    if _is_noted(state, sha256, stamp):
        return
    state.prepare()
    with suppress(OSError):  # without the note it is read again next time
        write_over(os.path.join(state.checked, sha256), [msgspec.json.encode(stamp)])


def _is_noted(state: State, sha256: str, stamp: _Stamp) -> bool:
    try:
        with open(os.path.join(state.checked, sha256), "rb") as file:
            return file.read() == msgspec.json.encode(stamp)
    except OSError:
        return False
