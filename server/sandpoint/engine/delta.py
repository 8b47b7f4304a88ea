"""Delta layers: what changed since a parent, as a squashfs whose deletions are overlay whiteouts.

It is built from a tar stream: milliseconds for some files, where mksquashfs would look at the whole tree. (For a whole
tree a stream takes minutes.)
"""

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator

from sandpoint.engine import linux, tools
from sandpoint.engine.contents import open_regular
from sandpoint.engine.manifest import Entry, Manifest
from sandpoint.engine.plan import Plan, ancestors
from sandpoint.engine.squashfs import build_options
from sandpoint.engine.tools import Check
from sandpoint.engine.walk import number_of
from sandpoint.models import Compression

_BLOCK = 1 << 20
_RECORD = 512
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL})
"""It is not there any more, or something else than a regular file is."""
_SECOND = 1_000_000_000
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
"""A socket has no type in a tar file: the manifest alone knows of it, and the layer hides what was there before."""


class Delta:
    """What goes into a delta layer."""

    def __init__(self, plan: Plan, present: Manifest) -> None:
        """Choose it.

        Args:
            plan: The steps from the parent to the present tree.
            present: The present tree.
        """
        groups = present.hardlink_groups
        changed = {entry.path for entry in (*plan.added, *plan.replaced, *plan.touched, *plan.restamped)}
        linked = {first for path in changed if (first := present.entries[path].hardlink or path) in groups}
        # The members of a group come together, so that the layer can link them.
        changed.update(path for first in linked for path in groups[first])
        self.brought = frozenset(changed)
        """Paths whose contents and attributes are in the layer."""
        leading = {above for path in (*changed, *(entry.path for entry in plan.removed)) for above in ancestors(path)}
        paths = {path for path in (*changed, *leading) if path and path in present.entries}
        self.entries = [present.entries[path] for path in sorted(paths)]
        self.whiteouts = sorted(_whiteouts(plan, present))

    @property
    def bytes(self) -> int:
        """The size of the files in it."""
        return sum(entry.size for entry in self.entries if not entry.hardlink)


def _whiteouts(plan: Plan, present: Manifest) -> Iterator[bytes]:
    """Yield the topmost paths that are gone. What lay in a directory that is something else now is hidden by that."""
    for entry in plan.removed:
        above = present.entries.get(entry.path.rpartition(b"/")[0])
        if above is not None and above.is_dir:
            yield entry.path


def build(
    delta: Delta,
    *,
    root: int,
    out: str,
    compression: Compression,
    written: int | None,
    check: Check,
    copied: Callable[[Entry], int | None] = lambda _entry: None,
) -> dict[bytes, int]:
    """Write a delta layer.

    Args:
        delta: What goes into it.
        root: A descriptor of the directory.
        out: The file to write; it must not exist.
        compression: How blocks are compressed.
        written: A descriptor of where the files lie that were written to (for an overlay, its upper layer), if their
            stamps shall prove later that they were not written to since: mapped pages are written out first.
        check: May raise to stop.
        copied: Returns the open directory below which a copy of a file lies that is taken for it, if there is one.

    Returns:
        The size of each file that was written to meanwhile, as it is in the layer.

    Raises:
        ToolMissingError, ToolFailedError: mksquashfs is missing or failed, for want of space for example.
        OSError: A file cannot be read.
    """
    tool = tools.Tool(
        ["mksquashfs", "-", out, "-tar", "-noappend", "-no-progress", "-quiet", *build_options(compression)], fed=check
    )
    moved: dict[bytes, int] = {}
    try:
        for entry in delta.entries:
            check()
            _feed(tool, entry, copied(entry), root, written, moved)
        for path in delta.whiteouts:
            tool.feed(_header(path, tarfile.CHRTYPE))
        tool.feed(bytes(2 * _RECORD))
    except BaseException:
        tool.kill()
        raise
    tool.finish(check)
    return moved


def _feed(
    tool: tools.Tool, entry: Entry, copy: int | None, root: int, written: int | None, moved: dict[bytes, int]
) -> None:
    if entry.hardlink and entry.kind in _TYPES:
        tool.feed(_entry_header(entry, tarfile.LNKTYPE, target=entry.hardlink))
    elif entry.is_file and copy is not None:
        _feed_copy(tool, entry, copy)
    elif entry.is_file:
        _feed_file(tool, entry, root, written, moved)
    elif entry.kind in _TYPES:
        tool.feed(_entry_header(entry, _TYPES[entry.kind], target=entry.target))
    else:
        tool.feed(_header(entry.path, tarfile.CHRTYPE))


def _feed_copy(tool: tools.Tool, entry: Entry, copy: int) -> None:
    fd = open_regular(copy, entry.path)
    try:
        tool.feed(_entry_header(entry, tarfile.REGTYPE, size=entry.size))
        _feed_content(tool, fd, entry.size)
    finally:
        os.close(fd)


def _feed_file(tool: tools.Tool, entry: Entry, root: int, written: int | None, moved: dict[bytes, int]) -> None:
    try:
        fd = open_regular(root, entry.path)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        tool.feed(_entry_header(entry, tarfile.REGTYPE, size=0))
        moved[entry.path] = 0
        return
    try:
        status = os.fstat(fd)
        size = status.st_size
        if written is not None and size:
            _write_out(entry, written, None if written != root else fd)
        tool.feed(_entry_header(entry, tarfile.REGTYPE, size=size))
        _feed_content(tool, fd, size)
        if not _is_as(os.fstat(fd), entry):
            moved[entry.path] = size
    finally:
        os.close(fd)


def _write_out(entry: Entry, written: int, fd: int | None) -> None:
    if fd is not None:
        linux.write_out(fd)
        return
    try:
        fd = open_regular(written, entry.path)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return  # the overlay shows it from below: nothing was written to it
    try:
        linux.write_out(fd)
    finally:
        os.close(fd)


def _is_as(status: os.stat_result, entry: Entry) -> bool:
    return (status.st_ctime_ns, status.st_size, number_of(status)) == (entry.ctime_ns, entry.size, entry.ino)


def _feed_content(tool: tools.Tool, fd: int, size: int) -> None:
    left = size
    while left:
        block = os.read(fd, min(left, _BLOCK))
        if not block:  # it became shorter: the header has been sent
            block = bytes(min(left, _BLOCK))
        tool.feed(block)
        left -= len(block)
    tool.feed(bytes(-size % _RECORD))


def _entry_header(entry: Entry, kind: bytes, *, target: bytes = b"", size: int = 0) -> bytes:
    return _header(
        entry.path,
        kind,
        target=target,
        size=size,
        mode=stat.S_IMODE(entry.mode),
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime_ns // _SECOND % 2**32,  # squashfs counts seconds in 32 bits
        devmajor=os.major(entry.rdev),
        devminor=os.minor(entry.rdev),
        pax_headers=dict(_xattrs(entry)) if kind != tarfile.LNKTYPE else {},
    )


def _xattrs(entry: Entry) -> Iterable[tuple[str, str]]:
    for name, value in (entry.xattrs or {}).items():
        # Squashfs keeps no others, and those of overlays would say what is hidden below.
        if name.startswith((b"user.", b"security.", b"trusted.")) and not name.startswith(b"trusted.overlay."):
            yield f"SCHILY.xattr.{os.fsdecode(name)}", os.fsdecode(value)


def _header(path: bytes, kind: bytes, *, target: bytes = b"", **fields: object) -> bytes:
    header = tarfile.TarInfo(os.fsdecode(path))
    header.type = kind
    header.linkname = os.fsdecode(target)
    for name, value in fields.items():
        setattr(header, name, value)
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
