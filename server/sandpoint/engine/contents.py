"""Comparing the contents of files in a tree with those in a layer."""

import errno
import os
import stat
from collections.abc import Callable, Iterable

from sandpoint.engine import linux
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.manifest import Entry, display
from sandpoint.engine.tools import Check

_BLOCK = 1 << 18
_REACH = os.O_PATH | os.O_NOFOLLOW

Roots = Callable[[bytes], int]
"""Tells of each path the open directory that it is to be read below."""


def always(root: int) -> Roots:
    """Return one directory for all paths."""
    return lambda _path: root


def open_regular(root: int, path: bytes) -> int:
    """Open a regular file below an open directory for reading; of anything else not even its driver is asked.

    Raises:
        OSError: It is not there, or (EINVAL) something else is.
    """
    found = linux.openat2(path, _REACH, dir_fd=root, resolve=INSIDE)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file any more", display(path))
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


def differing(
    tree: Roots, layer: Roots, entries: Iterable[Entry], check: Check, *, write_out: bool = False
) -> set[bytes]:
    """Return the paths of regular files whose bytes are not the same below two open directories.

    A file that cannot be read in either counts as different.

    Args:
        tree: Where one side is.
        layer: Where the other is.
        entries: The files.
        check: May raise to stop.
        write_out: Whether stamps shall prove later that the first side was not written to: its mapped pages are
            written out before they are read.
    """
    different = set()
    for entry in entries:
        check()
        if not _same(tree(entry.path), layer(entry.path), entry.path, write_out=write_out):
            different.add(entry.path)
    return different


def _same(tree: int, layer: int, path: bytes, *, write_out: bool) -> bool:
    try:
        first = open_regular(tree, path)
    except OSError:
        return False
    try:
        second = open_regular(layer, path)
    except OSError:
        os.close(first)
        return False
    try:
        if write_out:
            linux.write_out(first)
        return same_bytes(first, second)
    except OSError:
        return False
    finally:
        os.close(first)
        os.close(second)


def same_bytes(first: int, second: int) -> bool:
    """Whether two open files hold the same from where they stand.

    Raises:
        OSError: One cannot be read.
    """
    while True:
        ours = os.read(first, _BLOCK)
        theirs = os.read(second, len(ours) or 1)
        while ours and theirs and len(theirs) < len(ours):  # a read may stop short at a fragment's edge
            more = os.read(second, len(ours) - len(theirs))
            if not more:
                return False
            theirs += more
        if ours != theirs:
            return False
        if not ours:
            return True
