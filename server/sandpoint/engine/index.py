"""The index: what a directory held at its last capture here, with the stamps of that time.

A backup's manifests keep the stamps of when each entry was first captured. Of files that were looked at since and
found to be the same, only the index has those by which the next operation knows them without reading them again.

It is a file of the state directory: zstd frames with checksums, each after its length (32 bits, big-endian), the first
of `_Head` and the others of some entries each, in MessagePack. One that is missing or torn costs time and no more.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import msgspec
import zstandard

from sandpoint.engine.manifest import Entry, Header, Manifest
from sandpoint.engine.state import State, write_over

_LEVEL = 1
_ENTRIES = 10_000
"""In one frame: more are never unpacked at a time."""
_LENGTH = struct.Struct(">I")


class _Head(msgspec.Struct, array_like=True):
    manifests: tuple[str, ...]
    layers: tuple[str, ...]
    header: Header
    entries: int
    places: dict[bytes, int]


@dataclass(frozen=True)
class Index:
    """A tree as a backup has it, with the stamps that it had in its directory.

    `manifests` and `layers` are the SHA-256 of the backup's files, those of the full one it is built on first.
    """

    manifests: tuple[str, ...]
    layers: tuple[str, ...]
    tree: Manifest

    def proves(self, present: Entry, device: int, layer: str) -> bool:
        """Whether a file of the directory has just the bytes that a layer has of it.

        Args:
            present: The file, looked at a moment ago.
            device: The directory's.
            layer: The layer's SHA-256.
        """
        known = self.tree.entries.get(present.path)
        return (
            known is not None
            and known.has_stamp_of(present)
            and present.ctime_ns < self.tree.settled_before_ns
            and self.tree.header.device == device
            and self.layers[self.tree.layers.get(present.path, 0)] == layer
        )


def read_index(state: State, directory: str, *, alike: Manifest | None = None) -> Index | None:
    """Return the index of a directory, if there is one.

    Args:
        state: Where it is kept.
        directory: Which.
        alike: Another manifest of the directory. The very entries of it are returned where stamps prove that they are
            the same, so that both take the memory of one.
    """
    entries: dict[bytes, Entry] = {}
    try:
        with open(state.index_path(directory), "rb") as file:
            frames = _frames(file)
            head = msgspec.msgpack.decode(next(frames), type=_Head)
            own = alike.own if alike is not None and alike.header.device == head.header.device else None
            for frame in frames:
                for entry in msgspec.msgpack.decode(frame, type=list[Entry]):
                    entries[entry.path] = entry if own is None else own(entry)
    except (OSError, StopIteration, zstandard.ZstdError, msgspec.MsgspecError):
        return None
    if len(entries) != head.entries:
        return None
    return Index(head.manifests, head.layers, Manifest(head.header, entries, head.places))


def _frames(file: IO[bytes]) -> Iterator[bytes]:
    while length := file.read(_LENGTH.size):
        yield zstandard.decompress(file.read(*_LENGTH.unpack(length.ljust(_LENGTH.size, b"\0"))))


def write_index(state: State, directory: str, index: Index) -> None:
    """Keep the index of a directory; without it the next operation only takes longer."""
    tree = index.tree
    entries = list(tree.entries.values())
    head = _Head(index.manifests, index.layers, tree.header, len(entries), tree.layers)

    def frames() -> Iterator[bytes]:
        yield _frame(head)
        for start in range(0, len(entries), _ENTRIES):
            yield _frame(entries[start : start + _ENTRIES])

    with suppress(OSError):
        write_over(state.index_path(directory), frames())


def _frame(part: object) -> bytes:
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(msgspec.msgpack.encode(part))
    return _LENGTH.pack(len(packed)) + packed
