"""Plain copies: the contents of files kept as files, and entries staged from there for `apply_plan`."""

import errno
import os
import stat
from collections.abc import Callable, Iterable

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import Holders, prepare_staged
from sandpoint.engine.attributes import adjust
from sandpoint.engine.contents import open_regular
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry
from sandpoint.engine.plan import Comparison, Plan
from sandpoint.engine.tools import Check
from sandpoint.engine.walk import walk_tree

_BLOCK = 1 << 20
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EPERM})
_NO_COPY_RANGE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})


def copy_content(source: int, target: int) -> None:
    """Copy a file's content into an empty file: shared where the filesystem can, holes kept as holes.

    Raises:
        OSError: It cannot be read or written; ENOSPC where there is no room.
    """
    try:
        linux.reflink(source, target)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
    else:
        return
    size = os.fstat(source).st_size
    start = 0
    while start < size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # a hole up to the end, or it shrank meanwhile
        _copy_range(source, target, start, end)
        start = end
    os.ftruncate(target, size)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(source, start, os.SEEK_SET)
    os.lseek(target, start, os.SEEK_SET)
    by_kernel = True
    while start < end:
        copied = 0
        if by_kernel:
            try:
                copied = os.copy_file_range(source, target, end - start)
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                by_kernel = False
                continue
        else:
            block = os.read(source, min(_BLOCK, end - start))
            copied = len(block)
            while block:
                block = block[os.write(target, block) :]
        if not copied:
            return  # it shrank meanwhile
        start += copied


def stage(entries: Iterable[Entry], staged: int, opened: Callable[[Entry], int], check: Check) -> None:
    """Put entries into an empty folder, without their attributes: `prepare_staged` gives them these.

    Args:
        entries: What to put there; a directory before what it holds, or without it.
        staged: The folder.
        opened: Returns a descriptor to read a regular file's content from.
        check: May raise to stop.

    Raises:
        OSError: There is no room, or (EPERM) a device node was asked for by an ordinary user.
    """
    holders, firsts = Holders(staged), Holders(staged)
    try:
        for entry in sorted(entries, key=lambda entry: entry.path):
            check()
            if not entry.path:
                continue
            holder, name = _holder(holders, staged, entry.path)
            if entry.hardlink:
                there, first = firsts.of(entry.hardlink)
                os.link(first, name, src_dir_fd=there, dst_dir_fd=holder, follow_symlinks=False)
            else:
                _make(entry, holder, name, opened)
    finally:
        holders.close()
        firsts.close()


def _holder(holders: Holders, staged: int, path: bytes) -> tuple[int, bytes]:
    try:
        return holders.of(path)
    except FileNotFoundError:
        above = b""
        for part in path.split(b"/")[:-1]:
            above = above + b"/" + part if above else part
            try:
                os.mkdir(above, 0o700, dir_fd=staged)
            except FileExistsError:
                continue
        return holders.of(path)


def _make(entry: Entry, holder: int, name: bytes, opened: Callable[[Entry], int]) -> None:
    if entry.is_dir:
        os.mkdir(name, 0o700, dir_fd=holder)
    elif entry.is_symlink:
        os.symlink(entry.target, name, dir_fd=holder)
    elif entry.is_file:
        target = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=holder)
        try:
            if entry.size:
                source = opened(entry)
                try:
                    copy_content(source, target)
                finally:
                    os.close(source)
        finally:
            os.close(target)
    else:
        make_node(entry, holder, name)


def make_node(entry: Entry, holder: int, name: bytes) -> None:
    """Make a pipe, a socket that nobody listens to, or a device node.

    Raises:
        OSError: EPERM for a device node without the right.
    """
    os.mknod(name, stat.S_IFMT(entry.mode) | 0o600, entry.rdev, dir_fd=holder)


def copy_tree(root: int, into: str, check: Check) -> None:
    """Copy an open directory with all that is in it, attributes and links included.

    Files may be written to meanwhile: they are as long as they were when they were copied.

    Args:
        root: The directory.
        into: A directory that does not exist yet; it is left half full if this fails.
        check: May raise to stop.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: There is no room, or a file changed its type meanwhile.
    """
    entries = walk_tree(root, Rules(), started_ns=0, stamps=False).entries
    comparison = Comparison()
    os.mkdir(into, 0o700)
    staged = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        stage(
            entries.values(),
            staged,
            lambda entry: open_regular(root, entry.path),
            check,
        )
        holders = Holders(staged)
        try:
            brought = [_as_long_as_staged(entry, *holders.of(path)) for path, entry in entries.items() if path]
            prepare_staged(staged, Plan(added=brought), comparison, check)
            for path in sorted((path for path, entry in entries.items() if entry.is_dir), reverse=True):
                adjust(*holders.of(path), entries[path], comparison)
        finally:
            holders.close()
    finally:
        os.close(staged)


def _as_long_as_staged(entry: Entry, holder: int, name: bytes) -> Entry:
    if not entry.is_file:
        return entry
    size = os.stat(name, dir_fd=holder, follow_symlinks=False).st_size
    return entry if size == entry.size else msgspec.structs.replace(entry, size=size)
