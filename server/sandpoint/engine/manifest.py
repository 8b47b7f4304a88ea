"""The manifest: every entry of a tree at one time, and its file format.

A manifest file is one zstd frame of: the 8 bytes `SNDPMAN1`, the length of the header (32 bits, big-endian), the
header and the entries, both MessagePack. Paths, link targets and xattrs are bytes: names need not be UTF-8.
"""

import stat
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import msgspec
import zstandard

from sandpoint.errors import BackupIntegrityError

MAGIC = b"SNDPMAN1"
MAX_MANIFEST_BYTES = 2 << 30
"""Of an unpacked manifest: room for ten million entries, and an end to one that was made to fill the memory."""

CLOCK_GRAIN_NS = 20_000_000
"""A file's ctime may lag behind the clock by a tick of the kernel (10 ms at 100 Hz; here twice that): a stamp younger
than this before a look at the file may stand for two states of it."""

ACL_PREFIX = b"system.posix_acl_"

Xattrs = dict[bytes, bytes]

_NO_NAMES = frozenset((b"", b".", b".."))
_SLASH = ord("/")

_UNREADABLE = (msgspec.MsgspecError, zstandard.ZstdError, struct.error, ValueError, MemoryError)


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file, directory, link or node. `path` is relative to the directory, which itself is `b""`.

    `size` is 0 for all but regular files. `hardlink` is the path of the first entry with the same inode, empty for
    that first one and for files with one link. `ino` and `ctime_ns` are the file's stamp at capture: where both are
    still the same, nothing about it has changed since.
    """

    path: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    target: bytes = b""
    rdev: int = 0
    hardlink: bytes = b""
    xattrs: Xattrs | None = None

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def kind(self) -> int:
        """The type bits of its mode."""
        return stat.S_IFMT(self.mode)


class Header(msgspec.Struct, frozen=True, gc=False):
    """What is true of the whole tree.

    `started_ns` is the wall clock (ns since 1970) when the capture began. `stamps` says whether the filesystem's
    stamps prove that a file is unchanged. `excluded` are the paths that were there and left out, a directory
    standing for all below it; `mounts` those where another filesystem was mounted; `unstable` those that were
    written to all the time. `beyond_squashfs` are the entries that a mounted layer does not show as they were: those
    with ACLs, the directories of mounts, and the directory itself, whose attributes an overlay takes from its upper.
    """

    started_ns: int
    stamps: bool
    excluded: tuple[bytes, ...] = ()
    mounts: tuple[bytes, ...] = ()
    unstable: tuple[bytes, ...] = ()
    beyond_squashfs: tuple[Entry, ...] = ()


class Manifest(msgspec.Struct, frozen=True, dict=True):
    """A header and the entries by path, a directory always before what it holds."""

    header: Header
    entries: dict[bytes, Entry]

    @cached_property
    def settled_before_ns(self) -> int:
        """A stamp older than this proves what it says; a younger one may hide a later change."""
        return self.header.started_ns - CLOCK_GRAIN_NS if self.header.stamps else 0

    @cached_property
    def children(self) -> dict[bytes, list[bytes]]:
        """Paths in each directory that holds any, by the directory's path."""
        listing: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for path in self.entries:
            if path:
                listing[parent(path)].append(path)
        return dict(listing)

    def hardlink_groups(self) -> dict[bytes, list[bytes]]:
        """Return the members of each group of hard links, first one included, by the path of the first."""
        groups: dict[bytes, list[bytes]] = {}
        for path, entry in self.entries.items():
            if entry.hardlink:
                groups.setdefault(entry.hardlink, [entry.hardlink]).append(path)
        return groups

    def to_bytes(self) -> bytes:
        """Return the content of a manifest file."""
        header = msgspec.msgpack.encode(self.header)
        entries = msgspec.msgpack.encode(list(self.entries.values()))
        return zstandard.compress(MAGIC + struct.pack(">I", len(header)) + header + entries, 3)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Read the content of a manifest file.

        Raises:
            BackupIntegrityError: It is none, or an entry breaks the rules for paths.
        """
        try:
            header, entries = _decode(content)
        except _UNREADABLE as error:
            raise _damaged(error) from None
        return cls(header, _check_entries(entries))


def read_header(content: bytes) -> Header:
    """Read only the header of a manifest file's content, whatever the number of its entries.

    Raises:
        BackupIntegrityError: It is no manifest.
    """
    try:
        with zstandard.ZstdDecompressor().stream_reader(content) as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin as a manifest does")
            (length,) = struct.unpack(">I", stream.read(4))
            return msgspec.msgpack.decode(stream.read(length), type=Header)
    except _UNREADABLE as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> BackupIntegrityError:
    return BackupIntegrityError(f"the manifest cannot be read: {error}; the backup is damaged")


def parent(path: bytes) -> bytes:
    """Return the path of the directory that holds an entry."""
    return path.rpartition(b"/")[0]


def make_manifest(header: Header, entries: Iterable[Entry]) -> Manifest:
    """Put entries in order and note the hard links among them."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    return Manifest(header, {entry.path: entry for entry in ordered})


def display(path: bytes) -> str:
    """Return a path for people and JSON: bytes that are not UTF-8, and control characters, are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def has_acl(xattrs: Mapping[bytes, bytes] | None) -> bool:
    """Whether POSIX ACLs are among extended attributes."""
    return bool(xattrs) and any(name.startswith(ACL_PREFIX) for name in xattrs or ())


def _decode(content: bytes) -> tuple[Header, list[Entry]]:
    size = zstandard.frame_content_size(content)
    if not 0 < size <= MAX_MANIFEST_BYTES:
        raise ValueError(f"its size is said to be {size} bytes")
    unpacked = memoryview(zstandard.decompress(content))
    if unpacked[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin as a manifest does")
    start = len(MAGIC) + 4
    (length,) = struct.unpack(">I", unpacked[len(MAGIC) : start])
    header = msgspec.msgpack.decode(unpacked[start : start + length], type=Header)
    entries = msgspec.msgpack.decode(unpacked[start + length :], type=list[Entry])
    return header, entries


def _check_entries(entries: list[Entry]) -> dict[bytes, Entry]:
    checked: dict[bytes, Entry] = {}
    for entry in entries:
        problem = _problem(entry, checked)
        if problem:
            raise BackupIntegrityError(f"the manifest is damaged: {display(entry.path)!r} {problem}")
        checked[entry.path] = entry
    if b"" not in checked:
        raise BackupIntegrityError("the manifest is damaged: the directory itself is missing")
    return checked


def _problem(entry: Entry, before: dict[bytes, Entry]) -> str | None:
    path = entry.path
    if path in before:
        return "is there twice"
    if not path:
        return None if entry.is_dir else "is no directory"
    above, _, name = path.rpartition(b"/")
    holder = before.get(above)
    # What lies above was checked when it came, so the name alone is left to check.
    if holder is None or not holder.is_dir:
        return "has no directory to lie in"
    if name in _NO_NAMES or b"\0" in name or path[0] == _SLASH:
        return "is no plain relative path"
    if entry.hardlink:
        first = before.get(entry.hardlink)
        if first is None or first.kind != entry.kind or entry.is_dir or first.hardlink:
            return "is linked to what cannot be linked"
    return None
