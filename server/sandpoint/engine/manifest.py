"""The manifest: every entry of a tree at one time, and its file format.

A manifest file is one zstd frame of: the 8 bytes `SNDPMAN1`, the length of the header (32 bits, big-endian), the
header and the entries, both MessagePack. Paths, link targets and xattrs are bytes: names need not be UTF-8.
"""

import os
import stat
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from operator import ge
from typing import IO, Annotated

import msgspec
import zstandard
from msgspec import Meta

from sandpoint.errors import BackupIntegrityError

MAGIC = b"SNDPMAN1"
MAX_HEADER_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 2 << 30
"""Of an unpacked manifest: room for ten million entries, and an end to one that was made to fill the memory."""

CLOCK_GRAIN_NS = 20_000_000
"""A file's ctime may lag behind the clock by a tick of the kernel (10 ms at 100 Hz; here twice that): a stamp younger
than this before a look at the file may stand for two states of it."""

ACL_PREFIX = b"system.posix_acl_"

Xattrs = dict[Annotated[bytes, Meta(min_length=1, max_length=255)], bytes]

NO_NAMES = frozenset((b"", b".", b".."))

_UNREADABLE = (msgspec.MsgspecError, zstandard.ZstdError, struct.error, ValueError, MemoryError)


Owner = Annotated[int, Meta(ge=0, le=2**32 - 2)]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Stamp = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Nanoseconds since 1970, within what the kernel takes."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file, directory, link or node. `path` is relative to the directory, which itself is `b""`.

    `size` is 0 for all but regular files. `hardlink` is the path of the first entry with the same inode, empty for
    that first one and for files with one link. `ino` and `ctime_ns` are the file's stamp at capture: where both are
    still the same, nothing about it has changed since.
    """

    path: bytes
    mode: Annotated[int, Meta(ge=0, le=0o177777)]
    uid: Owner
    gid: Owner
    size: Natural
    mtime_ns: Stamp
    ctime_ns: Stamp
    ino: Natural
    target: bytes = b""
    rdev: Natural = 0
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

    def has_stamp_of(self, other: "Entry") -> bool:
        """Whether both have the same stamp, and are the same file if that proves anything."""
        return (self.ino, self.ctime_ns, self.mtime_ns, self.size, self.kind) == (
            other.ino,
            other.ctime_ns,
            other.mtime_ns,
            other.size,
            other.kind,
        )


class Header(msgspec.Struct, frozen=True, gc=False):
    """What is true of the whole tree.

    `started_ns` is the wall clock (ns since 1970) when the capture began. `stamps` says whether the filesystem's
    stamps prove that a file is unchanged, and `device` on which device (`st_dev` of the directory) they do.
    `excluded` are the paths that were there and left out, a directory standing for all below it; `mounts` those where
    another filesystem was mounted; `unstable` those that were written to all the time. `beyond_squashfs` are the
    entries that a mounted layer does not show as they were: those with ACLs, the directories of mounts, and the
    directory itself, whose attributes an overlay takes from its upper.
    `linked_outside` are files with hard links that are not in the tree; `hardlinks` are the groups in it.

    A delta's manifest holds only what is not as its parent's says: `removed` are the parent's paths that are no more,
    and `kept` those of its own entries whose contents are the parent's.
    """

    started_ns: int
    stamps: bool
    excluded: tuple[bytes, ...] = ()
    mounts: tuple[bytes, ...] = ()
    unstable: tuple[bytes, ...] = ()
    beyond_squashfs: tuple[Entry, ...] = ()
    linked_outside: tuple[bytes, ...] = ()
    hardlinks: tuple[tuple[bytes, ...], ...] = ()
    is_delta: bool = False
    removed: tuple[bytes, ...] = ()
    kept: tuple[bytes, ...] = ()
    device: int = 0


class Manifest(msgspec.Struct, frozen=True, dict=True):
    """A header and the entries by path, a directory always before what it holds.

    `layers` says of each path which layer of its backup has it, the bottom one being 0, which is not noted.
    """

    header: Header
    entries: dict[bytes, Entry]
    layers: dict[bytes, int] = msgspec.field(default_factory=dict)

    @cached_property
    def settled_before_ns(self) -> int:
        """A stamp older than this proves what it says; a younger one may hide a later change."""
        return self.header.started_ns - CLOCK_GRAIN_NS if self.header.stamps else 0

    def own(self, entry: Entry) -> Entry:
        """Return this tree's very own entry for one of the same device, if its stamp proves them the same."""
        own = self.entries.get(entry.path)
        return own if own is not None and own == entry and 0 < entry.ctime_ns < self.settled_before_ns else entry

    @cached_property
    def children(self) -> dict[bytes, list[bytes]]:
        """Paths in each directory that holds any, by the directory's path."""
        return _index(self.entries)

    @cached_property
    def hardlink_groups(self) -> dict[bytes, list[bytes]]:
        """Members of each group of hard links, first one included, by the path of the first."""
        groups: dict[bytes, list[bytes]] = {}
        for path, entry in self.entries.items():
            if entry.hardlink:
                groups.setdefault(entry.hardlink, [entry.hardlink]).append(path)
        return groups

    @cached_property
    def content(self) -> bytes:
        """The content of its file."""
        header = msgspec.msgpack.encode(self.header)
        entries = msgspec.msgpack.encode(list(self.entries.values()))
        parts = (MAGIC, struct.pack(">I", len(header)), header, entries)
        packer = zstandard.ZstdCompressor(3).compressobj(size=sum(map(len, parts)))
        return b"".join([*map(packer.compress, parts), packer.flush()])

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Read the content of the manifest file of a full backup.

        Raises:
            BackupIntegrityError: It is none, or an entry breaks the rules for paths.
        """
        return cls.from_chain([content])

    @classmethod
    def from_chain(cls, contents: Sequence[bytes]) -> "Manifest":
        """Read the manifest files of a backup, that of the full one it is built on first.

        Raises:
            BackupIntegrityError: One is none, or is out of place, or an entry breaks the rules for paths.
        """
        bottom, *deltas = map(read_one, contents)
        if bottom.header.is_delta or not all(delta.header.is_delta for delta in deltas):
            raise BackupIntegrityError("the manifests are damaged: a full one comes first, and only there")
        manifest = bottom
        if deltas:
            manifest = _merge(bottom, deltas)
        _check_entries(manifest)
        return manifest

    def since(self, parent: "Manifest", brought: Collection[bytes]) -> "Manifest":
        """Return the manifest of a delta: all that is not just as the parent's says, or is in the delta's layer.

        What has no stamp may look just as it did, and hold something else.

        Args:
            parent: The manifest that this one is a later state of.
            brought: Paths whose contents are in the delta's layer.
        """
        entries = {
            path: entry
            for path, entry in self.entries.items()
            if path in brought or ((before := parent.entries.get(path)) is not entry and before != entry)
        }
        return Manifest(
            msgspec.structs.replace(
                self.header,
                is_delta=True,
                removed=tuple(path for path in parent.entries if path not in self.entries),
                kept=tuple(path for path in entries if path not in brought),
            ),
            entries,
        )


def read_one(content: bytes) -> Manifest:
    """Read one manifest file alone: of a delta, only what is not as its parent's says.

    Raises:
        BackupIntegrityError: It is none.
    """
    try:
        header, entries = _decode(content)
    except _UNREADABLE as error:
        raise _damaged(error) from None
    paths = [entry.path for entry in entries]
    if any(map(ge, paths, paths[1:])):
        raise BackupIntegrityError("the manifest is damaged: its entries are not in order, each once")
    return Manifest(header, {entry.path: entry for entry in entries})


def _merge(bottom: Manifest, deltas: Sequence[Manifest]) -> Manifest:
    device = deltas[-1].header.device
    entries = {path: as_proven(entry, bottom, device) for path, entry in bottom.entries.items()}
    layers: dict[bytes, int] = {}
    for number, delta in enumerate(deltas, start=1):
        for path in delta.header.removed:
            entries.pop(path, None)
        entries.update((path, as_proven(entry, delta, device)) for path, entry in delta.entries.items())
        layers = layers_with(layers, delta, number)
    header = msgspec.structs.replace(deltas[-1].header, is_delta=False, removed=(), kept=(), stamps=True)
    return Manifest(header, dict(sorted(entries.items())), layers)


def layers_with(layers: Mapping[bytes, int], delta: Manifest, number: int) -> dict[bytes, int]:
    """Return which layer has which path, as `Manifest.layers` does, with a delta's layer of some number on top."""
    removed = frozenset(delta.header.removed)
    kept = frozenset(delta.header.kept)
    return {path: below for path, below in layers.items() if path not in removed} | {
        path: number for path in delta.entries if path not in kept
    }


def as_proven(entry: Entry, manifest: Manifest, device: int) -> Entry:
    """Return an entry without a stamp that proves nothing in its own manifest, for in a later one it might seem to.

    Args:
        entry: An entry of the manifest.
        manifest: Of the time when it was captured.
        device: The device that the later one is of.
    """
    if entry.ctime_ns < manifest.settled_before_ns and manifest.header.device == device:
        return entry
    return msgspec.structs.replace(entry, ctime_ns=0, ino=0)


def read_header(source: bytes | IO[bytes]) -> Header:
    """Read only the header of a manifest file, whatever the number of its entries.

    Args:
        source: The open file, or its content.

    Raises:
        BackupIntegrityError: It is no manifest.
    """
    try:
        with zstandard.ZstdDecompressor().stream_reader(source, closefd=False) as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin as a manifest does")
            (length,) = struct.unpack(">I", stream.read(4))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header is said to be {length} bytes")
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


def paths_named(names: Sequence[str], trees: Iterable[Manifest]) -> list[bytes]:
    """Return the paths that some names stand for, each as it is or as `display` shows it; what is unknown stays."""
    paths = [os.fsencode(name) for name in names]
    trees = tuple(trees)
    if all(any(path in tree.entries for tree in trees) for path in paths):
        return paths
    shown = {display(path): path for tree in trees for path in tree.entries}
    return [
        path if any(path in tree.entries for tree in trees) else shown.get(name, path)
        for name, path in zip(names, paths, strict=True)
    ]


def has_acl(xattrs: Mapping[bytes, bytes] | None) -> bool:
    """Whether POSIX ACLs are among extended attributes."""
    return bool(xattrs) and any(name.startswith(ACL_PREFIX) for name in xattrs or ())


def packed_entries(content: bytes) -> tuple[Header, list[msgspec.Raw]]:
    """Read the header of a manifest file, and leave its entries packed.

    Raises:
        BackupIntegrityError: It is no manifest.
    """
    try:
        header, entries = _unpack(content)
        return header, msgspec.msgpack.decode(entries, type=list[msgspec.Raw])
    except _UNREADABLE as error:
        raise _damaged(error) from None


def _decode(content: bytes) -> tuple[Header, list[Entry]]:
    header, entries = _unpack(content)
    return header, msgspec.msgpack.decode(entries, type=list[Entry])


def _unpack(content: bytes) -> tuple[Header, memoryview]:
    size = zstandard.frame_content_size(content)
    if not 0 < size <= MAX_MANIFEST_BYTES:
        raise ValueError(f"its size is said to be {size} bytes")
    unpacked = memoryview(zstandard.decompress(content))
    if unpacked[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin as a manifest does")
    start = len(MAGIC) + 4
    (length,) = struct.unpack(">I", unpacked[len(MAGIC) : start])
    header = msgspec.msgpack.decode(unpacked[start : start + length], type=Header)
    return header, unpacked[start + length :]


def _index(entries: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    listing: dict[bytes, list[bytes]] = {}
    for path in entries:
        above = path.rpartition(b"/")[0]
        if above in listing:
            listing[above].append(path)
        elif path:  # the directory itself, which comes first, lies in none
            listing[above] = [path]
    return listing


def _check_entries(manifest: Manifest) -> None:
    """Refuse paths that are not plain, that have no directory to lie in, and links to what cannot be linked.

    Raises:
        BackupIntegrityError: There is such an entry.
    """
    entries = manifest.entries
    root = entries.get(b"")
    if root is None or not root.is_dir:
        raise _damaged_at(b"", "is missing or no directory")
    for above, paths in manifest.children.items():
        holder = entries.get(above)
        if holder is None or not holder.is_dir:
            raise _damaged_at(paths[0], "has no directory to lie in")
        start = len(above) + 1 if above else 0
        for path in paths:
            # What lies above is an entry that is checked itself, so the name alone is left to check.
            if path[start:] in NO_NAMES or b"\0" in path:
                raise _damaged_at(path, "is no plain relative path")
    for entry in entries.values():
        if entry.xattrs is not None and any(b"\0" in name for name in entry.xattrs):
            raise _damaged_at(entry.path, "has an extended attribute whose name holds a NUL")
    for members in manifest.hardlink_groups.values():
        first = entries.get(members[0])
        if first is None or first.hardlink or first.is_dir or any(entries[each].kind != first.kind for each in members):
            raise _damaged_at(members[-1], "is linked to what cannot be linked")


def _damaged_at(path: bytes, problem: str) -> BackupIntegrityError:
    return BackupIntegrityError(f"the manifest is damaged: {display(path) or 'the directory itself'} {problem}")
