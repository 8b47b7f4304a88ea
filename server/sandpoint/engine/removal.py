"""Removing a tree in which others still write: nothing outside it goes, whatever they put in the place of what."""

import errno
import os
import stat
import uuid

from sandpoint.engine import linux
from sandpoint.engine.directory import INSIDE

_DEEPEST = 64
"""Directories that are open at a time: what lies deeper is moved to the top first."""
_TRIES = 8
_MOST_MOVES = 100_000
_REACH = os.O_PATH | os.O_DIRECTORY
_NOT_A_FILE = frozenset({errno.EISDIR, errno.EPERM})
"""What the kernel and POSIX say of a directory that is to be unlinked."""


def remove_tree(path: str) -> None:
    """Remove a file or a tree, whatever the modes of what is in it; it may be gone already.

    Args:
        path: Only its last part may be in others' hands.

    Raises:
        OSError: Something in it cannot be removed, or there is always more.
    """
    above, _, name = path.rstrip("/").rpartition("/")
    try:
        holder = os.open(above or "/", _REACH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _Removal().remove(holder, os.fsencode(name))
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(holder)


class _Removal:
    def __init__(self) -> None:
        self._top = -1
        self._moves = 0

    def remove(self, holder: int, name: bytes, depth: int = 0) -> None:
        if _is_unlinked(holder, name):
            return
        if depth == _DEEPEST:
            _open_up(holder, name)
            os.rename(name, uuid.uuid4().hex.encode(), src_dir_fd=holder, dst_dir_fd=self._top)
            self._moves += 1
            return
        left = _TRIES
        while left:
            left -= 1
            moves = self._moves
            try:
                self._empty(holder, name, depth)
                os.rmdir(name, dir_fd=holder)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or not left:
                    raise
                left += moves < self._moves < _MOST_MOVES
            else:
                return

    def _empty(self, holder: int, name: bytes, depth: int) -> None:
        _open_up(holder, name)
        fd = linux.openat2(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=holder, resolve=INSIDE | linux.RESOLVE_NO_XDEV)
        try:
            if not depth:
                self._top = fd
            for inner in os.listdir(fd):
                self.remove(fd, os.fsencode(inner), depth + 1)
        finally:
            os.close(fd)


def _is_unlinked(holder: int, name: bytes) -> bool:
    """Take a name away unless it is that of a directory; return whether it is gone."""
    try:
        os.unlink(name, dir_fd=holder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in _NOT_A_FILE or not _is_directory(holder, name):
            raise
        return False
    return True


def _is_directory(holder: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=holder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def _open_up(holder: int, name: bytes) -> None:
    """Let an ordinary user into a directory of its own, whatever its mode."""
    if os.geteuid() == 0:
        return
    fd = linux.openat2(name, _REACH, dir_fd=holder, resolve=INSIDE)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{fd}", mode | stat.S_IRWXU)
    finally:
        os.close(fd)
