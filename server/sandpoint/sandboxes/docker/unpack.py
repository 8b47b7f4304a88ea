"""Unpacking a tar stream of a container's files, whatever is in it: nothing is made outside a folder.

Python's tarfile only parses. Every entry is made by descriptor, below a directory that was opened without following
a link; what the names in the stream say is taken for nothing but names.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import IO, Any, cast

from sandpoint.engine.apply import Holders
from sandpoint.engine.attributes import adjust
from sandpoint.engine.copies import make_node
from sandpoint.engine.manifest import Entry, Xattrs, display
from sandpoint.engine.plan import Comparison, ancestors
from sandpoint.engine.tools import Check

XATTR = "SCHILY.xattr."
_BLOCK = 1 << 18
_END = bytes(1024)
_SAID_BYTES = 4 << 20
"""Of what a stream may say about one entry: names, links, attributes."""
_SAYING = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)
_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: 0,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_NAMES = frozenset((b"", b".", b".."))
_LAST_TIME = 2**63 // 10**9 - 1


class HostileArchiveError(Exception):
    """A stream is not what an engine makes of a directory; the message says in what."""


class TornArchiveError(Exception):
    """A stream ended before its end; the message names the last entry."""


class _Member(tarfile.TarInfo):
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _SAYING and self.size > _SAID_BYTES:
            raise HostileArchiveError(f"it says {self.size} bytes about one entry")
        made: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return made


class _Stream:
    """A stream of chunks as a file that can only be read on; it remembers whether it ended as a tar file does."""

    def __init__(self, chunks: Iterable[bytes], check: Check) -> None:
        self._chunks = iter(chunks)
        self._check = check
        self._rest = memoryview(b"")
        self._tail = b""

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            if not self._rest:
                self._check()
                chunk = next(self._chunks, b"")
                if not chunk:
                    break
                self._rest = memoryview(chunk)
                self._tail = (self._tail + chunk[-len(_END) :])[-len(_END) :]
            part = self._rest[:size]
            self._rest = self._rest[len(part) :]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def ended_well(self) -> bool:
        while self.read(_BLOCK):
            pass
        return self._tail == _END


def unpack(
    chunks: Iterable[bytes], into: int, name: bytes, *, boundaries: frozenset[bytes] = frozenset(), check: Check
) -> None:
    """Unpack the archive of a directory, with owners, modes, times, links and nodes; for the superuser.

    Args:
        chunks: The tar stream.
        into: An empty directory, open; it gets the attributes of the archive's own.
        name: What the archive calls its directory.
        boundaries: Paths in it where other filesystems are mounted: of these, only what they are is made.
        check: Called often; raises to stop.

    Raises:
        HostileArchiveError: It names what lies outside, or is no such archive.
        TornArchiveError: It ended too early.
        OSError: There is no room, or a name cannot be made.
    """
    stream = _Stream(chunks, check)
    unpacking = _Unpacking(into, boundaries, check)
    last = b""
    try:
        with _opened(stream) as tar:
            for member in tar:
                cast(Any, tar).members = []  # a list of all that it has seen
                last = _path_of(member.name, name)
                unpacking.add(member, last, lambda link: _path_of(link, name), tar)
    except (tarfile.TarError, EOFError) as error:
        raise TornArchiveError(f"{display(last) or 'its beginning'} ({error})") from None
    finally:
        unpacking.close()
    if not stream.ended_well():
        raise TornArchiveError(display(last) or "its beginning")
    unpacking.finish()


def _opened(stream: _Stream) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=cast(IO[bytes], stream),
        mode="r|",
        bufsize=tarfile.BLOCKSIZE * 128,
        tarinfo=_Member,
        encoding="utf-8",
        errors="surrogateescape",
    )


def _path_of(said: str, name: bytes) -> bytes:
    """Return an entry's path in the directory."""
    path = said.encode("utf-8", "surrogateescape").rstrip(b"/")
    first, _, rest = path.partition(b"/")
    if first != name or b"\0" in path or any(part in _NO_NAMES for part in path.split(b"/")):
        raise HostileArchiveError(f"it names {display(path) or 'nothing'}, which is not in the directory")
    return rest


class _Unpacking:
    """The entries made so far."""

    def __init__(self, into: int, boundaries: frozenset[bytes], check: Check) -> None:
        self._into = into
        self._boundaries = boundaries
        self._check = check
        self._comparison = Comparison(owners=True)
        self._holders, self._firsts = Holders(into), Holders(into)
        self._folders: dict[bytes, Entry] = {}
        self._block_bytes = os.fstatvfs(into).f_frsize

    def add(self, member: tarfile.TarInfo, path: bytes, path_of: Any, tar: tarfile.TarFile) -> None:
        """Make one entry."""
        self._check()
        kind = _KINDS.get(member.type)
        if kind is None or member.issparse():
            raise HostileArchiveError(f"{display(path)} is of a type ({member.type!r}) that engines do not send")
        if not path and kind != stat.S_IFDIR:
            raise HostileArchiveError("its directory is none")
        if any(above in self._boundaries for above in ancestors(path)):
            return
        if kind == 0:
            self._link(path, path_of(member.linkname))
        elif path in self._boundaries and kind != stat.S_IFDIR:
            self._make(_entry(member, path, stat.S_IFREG, size=0), None)
        else:
            self._make(
                _entry(member, path, kind, size=member.size), tar.extractfile(member) if kind == stat.S_IFREG else None
            )

    def _make(self, entry: Entry, content: IO[bytes] | None) -> None:
        if entry.is_dir:
            self._make_folder(entry)
            return
        holder, name = self._holders.of(entry.path)
        if entry.is_file:
            self._write(entry, holder, name, content)
            return
        self._clear(entry.path, holder, name)
        if entry.is_symlink:
            os.symlink(entry.target, name, dir_fd=holder)
        else:
            make_node(entry, holder, name)
        adjust(holder, name, entry, self._comparison, fresh=True)

    def _make_folder(self, entry: Entry) -> None:
        if entry.path and entry.path not in self._folders:
            holder, name = self._holders.of(entry.path)
            self._clear(entry.path, holder, name)
            os.mkdir(name, 0o700, dir_fd=holder)
        self._folders[entry.path] = entry

    def _clear(self, path: bytes, holder: int, name: bytes) -> None:
        """Let a name that comes again stand for what came last; a directory is not replaced."""
        if path in self._folders:
            raise HostileArchiveError(f"{display(path)} is in it twice, as a directory and as something else")
        try:
            os.unlink(name, dir_fd=holder)
        except FileNotFoundError:
            return

    def _link(self, path: bytes, first: bytes) -> None:
        if not first or first in self._folders or first == path:
            raise HostileArchiveError(f"{display(path)} is a hard link to a directory or to itself")
        if first in self._boundaries or any(above in self._boundaries for above in ancestors(first)):
            raise HostileArchiveError(f"{display(path)} is a hard link into another filesystem")
        source, other = self._firsts.of(first)
        holder, name = self._holders.of(path)
        self._clear(path, holder, name)
        os.link(other, name, src_dir_fd=source, dst_dir_fd=holder, follow_symlinks=False)

    def _write(self, entry: Entry, holder: int, name: bytes, content: IO[bytes] | None) -> None:
        if entry.size > _BLOCK and entry.size > os.fstatvfs(holder).f_bavail * self._block_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), display(entry.path))
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=holder)
        except FileExistsError:
            self._clear(entry.path, holder, name)
            target = os.open(name, _NEW, 0o600, dir_fd=holder)
        try:
            is_hole = False
            for block in _blocks(content, entry, self._check):
                is_hole = block.count(0) == len(block)
                if is_hole:
                    os.lseek(target, len(block), os.SEEK_CUR)
                else:
                    _write_all(target, block)
            if is_hole:
                os.ftruncate(target, entry.size)
            _dress(target, entry)
        finally:
            os.close(target)

    def finish(self) -> None:
        """Give directories their attributes, the innermost first."""
        if b"" not in self._folders:
            raise HostileArchiveError("its directory is not in it")
        holders = Holders(self._into)
        try:
            for path in sorted(self._folders, reverse=True):
                holder, name = holders.of(path)
                adjust(holder, name, self._folders[path], self._comparison, fresh=True)
        finally:
            holders.close()

    def close(self) -> None:
        """Close what is open."""
        self._holders.close()
        self._firsts.close()


def _write_all(target: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(target, rest) :]


def _dress(file: int, entry: Entry) -> None:
    os.fchown(file, entry.uid, entry.gid)
    for name, value in (entry.xattrs or {}).items():
        os.setxattr(file, name, value)
    os.fchmod(file, stat.S_IMODE(entry.mode))
    os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))


def _blocks(content: IO[bytes] | None, entry: Entry, check: Check) -> Iterator[bytes]:
    left = entry.size
    while left and content is not None:
        check()
        block = content.read(min(_BLOCK, left))
        if not block:
            raise TornArchiveError(display(entry.path))
        left -= len(block)
        yield block


def _entry(member: tarfile.TarInfo, path: bytes, kind: int, *, size: int) -> Entry:
    is_node = kind in {stat.S_IFCHR, stat.S_IFBLK}
    if not (0 <= member.uid < 2**32 - 1 and 0 <= member.gid < 2**32 - 1 and size >= 0):
        raise HostileArchiveError(f"{display(path)} has an owner or a size that cannot be")
    return Entry(
        path,
        kind | (member.mode & 0o7777),
        member.uid,
        member.gid,
        size if kind == stat.S_IFREG else 0,
        _time(member, path),
        0,
        0,
        member.linkname.encode("utf-8", "surrogateescape") if kind == stat.S_IFLNK else b"",
        os.makedev(member.devmajor, member.devminor) if is_node else 0,
        b"",
        _xattrs(member),
    )


def _time(member: tarfile.TarInfo, path: bytes) -> int:
    try:
        seconds = Decimal(member.pax_headers.get("mtime", str(int(member.mtime))))
        found = int((seconds * 10**9).to_integral_value("ROUND_FLOOR")) if abs(seconds) < _LAST_TIME else None
    except (InvalidOperation, ValueError, OverflowError):
        found = None
    if found is None:
        raise HostileArchiveError(f"{display(path)} has a time that cannot be")
    return found


def _xattrs(member: tarfile.TarInfo) -> Xattrs | None:
    found = {
        name.removeprefix(XATTR).encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for name, value in member.pax_headers.items()
        if name.startswith(XATTR)
    }
    return found or None
