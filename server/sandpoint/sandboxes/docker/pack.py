"""Tar streams of entries, for an engine to unpack."""

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator

from sandpoint.engine.contents import open_regular
from sandpoint.engine.manifest import Entry
from sandpoint.engine.tools import Check
from sandpoint.sandboxes.docker.unpack import XATTR

_BLOCK = 1 << 18
_SECOND = 10**9
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def can_be_sent(entry: Entry) -> bool:
    """Whether a tar file can hold an entry: it has no sockets."""
    return entry.kind in _TYPES


def cannot_say(entry: Entry) -> bytes | None:
    """Return an extended attribute whose name no tar file can say."""
    for name in entry.xattrs or ():
        if b"=" in name or not name.isascii():
            return name
    return None


def pack(entries: Iterable[Entry], root: int, prefix: bytes, check: Check) -> Iterator[bytes]:
    """Yield a tar stream of entries.

    Args:
        entries: In the order in which they are to be made.
        root: Where files' contents are read.
        prefix: What the directory is called in it; empty: all is relative to the directory.
        check: Called often; raises to stop.

    Raises:
        OSError: A file cannot be read.
    """
    for entry in entries:
        check()
        member = _member(entry, prefix)
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if member.size:
            yield from _content(entry, root, check)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _content(entry: Entry, root: int, check: Check) -> Iterator[bytes]:
    file = open_regular(root, entry.path)
    try:
        left = entry.size
        while left:
            check()
            block = os.read(file, min(_BLOCK, left))
            if not block:
                raise OSError("it is shorter than it was")
            left -= len(block)
            yield block
    finally:
        os.close(file)
    if over := entry.size % tarfile.BLOCKSIZE:
        yield bytes(tarfile.BLOCKSIZE - over)


def _member(entry: Entry, prefix: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(_text(_named(entry.path, prefix)))
    member.mode = stat.S_IMODE(entry.mode)
    member.uid, member.gid = entry.uid, entry.gid
    seconds, fraction = divmod(max(entry.mtime_ns, 0), _SECOND)  # Docker makes 1970 of what is older
    member.pax_headers = {"mtime": f"{seconds}.{fraction:09}"}
    if entry.hardlink:
        member.type, member.linkname = tarfile.LNKTYPE, _text(_named(entry.hardlink, prefix))
        return member
    member.type = _TYPES[entry.kind]
    member.pax_headers |= {XATTR + name.decode(): _text(value) for name, value in (entry.xattrs or {}).items()}
    if entry.is_file:
        member.size = entry.size
    elif entry.is_symlink:
        member.linkname = _text(entry.target)
    elif entry.rdev:
        member.devmajor, member.devminor = os.major(entry.rdev), os.minor(entry.rdev)
    return member


def _named(path: bytes, prefix: bytes) -> bytes:
    return b"/".join(part for part in (prefix, path) if part) or b"."


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
