"""The index: what a directory held at its last capture here, with the stamps of that time.

A backup's manifests keep the stamps of when each entry was first captured. Of files that were looked at since and
found to be the same, only the index has those by which the next operation knows them without reading them again.

It is a file of the state directory: a zstd frame with a checksum, of the MessagePack of `_File`. One that is missing
or torn costs time and no more.
"""

from contextlib import suppress
from dataclasses import dataclass

import msgspec
import zstandard

from sandpoint.engine.manifest import Entry, Header, Manifest
from sandpoint.engine.state import State, write_over

_LEVEL = 1


class _File(msgspec.Struct, array_like=True, gc=False):
    manifests: tuple[str, ...]
    layers: tuple[str, ...]
    header: Header
    entries: list[Entry]
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
            and (known.ino, known.size, known.mtime_ns, known.kind)
            == (present.ino, present.size, present.mtime_ns, present.kind)
            and known.ctime_ns == present.ctime_ns < self.tree.settled_before_ns
            and self.tree.header.device == device
            and self.layers[self.tree.layers.get(present.path, 0)] == layer
        )


def read_index(state: State, directory: str) -> Index | None:
    """Return the index of a directory, if there is one."""
    try:
        with open(state.index_path(directory), "rb") as file:
            content = zstandard.decompress(file.read())
        found = msgspec.msgpack.decode(content, type=_File)
    except (OSError, zstandard.ZstdError, msgspec.MsgspecError):
        return None
    tree = Manifest(found.header, {entry.path: entry for entry in found.entries}, found.places)
    return Index(found.manifests, found.layers, tree)


def write_index(state: State, directory: str, index: Index) -> None:
    """Keep the index of a directory; without it the next operation only takes longer."""
    tree = index.tree
    file = _File(index.manifests, index.layers, tree.header, list(tree.entries.values()), tree.layers)
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(msgspec.msgpack.encode(file))
    path = state.index_path(directory)
    with suppress(OSError):
        write_over(path, packed)
