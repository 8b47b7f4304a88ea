"""One operation at a time, in order of arrival, also across processes.

A ticket is a numbered file on which its owner holds an flock. A ticket's turn comes when every lower number is gone;
the kernel drops a dead owner's lock, and whoever waits next clears its ticket away. (An flock alone, and the lock
libraries built on it, let any waiter in first.)
"""

import fcntl
import os
from contextlib import suppress


class Ticket:
    """A place in the queue. Keep it until the operation has ended, then `give_back`."""

    def __init__(self, folder: str) -> None:
        """Draw the next number.

        Raises:
            OSError: The folder cannot be written.
        """
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._folder = folder
        counter = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(counter, fcntl.LOCK_EX)  # held for the few calls below only
            self._number = max(self._numbers(), default=0) + 1
            self._path = self._path_of(self._number)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(counter)

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._folder) if name.isdigit())

    def _path_of(self, number: int) -> str:
        return os.path.join(self._folder, f"{number:020d}")

    def is_next(self) -> bool:
        """Whether nobody is before this ticket any more."""
        return not self.before()

    def before(self) -> int:
        """Return how many are before this ticket, dead ones perhaps among them, unless all are."""
        lower = [number for number in self._numbers() if number < self._number]
        while lower and self._is_gone(lower[0]):
            del lower[0]
        return len(lower)

    def _is_gone(self, number: int) -> bool:
        path = self._path_of(number)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return True
        finally:
            os.close(fd)

    def give_back(self) -> None:
        """Let the next one in."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)
