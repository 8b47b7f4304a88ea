"""A file that arrives in ranges, with a note beside it of those that have, for the next call to go on with."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sandpoint.engine.tools import Check

_WAIT_S = 0.05
_MODE = 0o600


class Ranges:
    """The ranges of a file, all of one size but the last."""

    def __init__(self, fd: int, size: int, range_bytes: int, note: int | None, arrived: set[int]) -> None:
        self.fd = fd
        self._size = size
        self._range_bytes = range_bytes
        self._note = note
        self._arrived = arrived
        self._changed = threading.Condition()

    @property
    def missing(self) -> list[int]:
        """The numbers of those that have not arrived."""
        return [number for number in range(count_of(self._size, self._range_bytes)) if number not in self._arrived]

    def span(self, number: int) -> tuple[int, int]:
        """Return where a range begins and where it ends."""
        start = number * self._range_bytes
        return start, min(start + self._range_bytes, self._size)

    def arrive(self, number: int) -> None:
        """Note that a range is there."""
        if self._note is not None:
            os.write(self._note, b"%d\n" % number)
        with self._changed:
            self._arrived.add(number)
            self._changed.notify_all()

    def in_order(self, check: Check) -> Iterator[tuple[int, int]]:
        """Yield the span of each range in their order, once it is there."""
        for number in range(count_of(self._size, self._range_bytes)):
            with self._changed:
                while number not in self._arrived:
                    check()
                    self._changed.wait(_WAIT_S)
            yield self.span(number)


def count_of(size: int, range_bytes: int) -> int:
    """Return how many ranges there are: an empty file is one, too."""
    return max(1, -(-size // range_bytes))


@contextmanager
def arriving(path: str, size: int, range_bytes: int) -> Iterator[Ranges]:
    """Open a file for what arrives; when the block ends without an error all has, and the note goes.

    Raises:
        OSError: It cannot be made in its full size, and no space is taken; or it cannot be written.
    """
    note_path = f"{path}.ranges"
    header = b"sandpoint ranges 1 %d %d\n" % (size, range_bytes)
    arrived = _read_note(note_path, header, path, size)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    note = None
    try:
        if not arrived:
            with suppress(FileNotFoundError):
                os.unlink(note_path)
        _take_space(fd, size, path)
        if size > range_bytes:
            note = os.open(note_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
            if not arrived:
                os.write(note, header)
        yield Ranges(fd, size, range_bytes, note, arrived)
        if note is not None:
            os.unlink(note_path)
    finally:
        os.close(fd)
        if note is not None:
            os.close(note)


def _take_space(fd: int, size: int, path: str) -> None:
    os.ftruncate(fd, size)
    if not size:
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.ftruncate(fd, 0)
        raise OSError(error.errno, error.strerror, path) from None


def _read_note(note_path: str, header: bytes, path: str, size: int) -> set[int]:
    """Return the numbers of the ranges that a note names; none if there is anything wrong with it."""
    try:
        with open(note_path, "rb") as file:
            content = file.read()
        if os.stat(path).st_size != size or not content.startswith(header):
            return set()
        # What follows the last newline is torn: its writer was killed.
        return {int(line) for line in content[len(header) :].split(b"\n")[:-1]}
    except (OSError, ValueError):
        return set()
