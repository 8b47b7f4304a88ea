"""Layers: building one with mksquashfs, and extracting from one with unsquashfs."""

import os
import re
import struct
from collections.abc import Iterable, Sequence

from sandpoint.engine import tools
from sandpoint.engine.manifest import display
from sandpoint.engine.tools import Check
from sandpoint.models import Compression

_OPTIONS: dict[Compression, list[str]] = {
    # The level is always given: zstd's default here is 15, many times slower. lz4 has one level.
    "zstd": ["-comp", "zstd", "-Xcompression-level", "1"],
    "lz4": ["-comp", "lz4"],
}
_MEMORY = "256M"
"""For mksquashfs's queues, in place of a quarter of the machine's: bounded, and 10 % faster, for it faults in less."""

_SUPERBLOCK = struct.Struct("<II")
_ARGUMENT_BYTES = 100_000
"""Of paths on one command line: below the kernel's 128 KiB for one string and 2 MiB for all."""

_COMPLAINTS = (b"creating empty file", b"ignoring", b"Failed to read", b"Cannot stat")
_HARMLESS = (b"xattr", b"posix_acl")


def build_options(compression: Compression) -> list[str]:
    """Return the options that mksquashfs builds a layer with, the compression's level always among them."""
    return ["-mem", _MEMORY, *_OPTIONS[compression]]


def count_inodes(layer: str) -> int:
    """Return how many files, directories and others a layer says that it has.

    That is the second number of 32 bits in a superblock (`Documentation/filesystems/squashfs.rst` of the kernel).
    """
    with open(layer, "rb") as file:
        _, inodes = _SUPERBLOCK.unpack(file.read(_SUPERBLOCK.size))
    return int(inodes)


def _as_pattern(path: bytes) -> bytes:
    """Return a pattern that only one path matches."""
    return re.sub(rb"([\\*?\[\]+@!(){}|])", rb"\\\1", path)


class Build:
    """A layer being built. What cannot be read does not stop mksquashfs: `finish` returns its complaints."""

    def __init__(
        self,
        source_fd: int,
        out: str,
        *,
        excluded: Sequence[bytes],
        compression: Compression,
        scratch: str,
        by_name: bool = False,
    ) -> None:
        """Start mksquashfs on an open directory.

        Args:
            source_fd: The directory.
            out: The file to write; it must not exist.
            excluded: Paths below the directory that are left out, with all below them.
            compression: How blocks are compressed.
            scratch: A folder for the list of paths.
            by_name: Whether something else in the directory has the inode of what is left out. Exact paths mean
                inodes to mksquashfs, and all their names; patterns do not, but take longer where there are many.

        Raises:
            ToolMissingError: mksquashfs is not installed.
            ToolFailedError: More paths with odd names are excluded than a command line holds.
        """
        listed, odd = _split_odd(excluded)
        if by_name:
            listed, odd = [*map(_as_pattern, listed)], [*map(_as_pattern, odd)]
        arguments: list[str | bytes] = []
        if listed:
            arguments += ["-ef", _write_list(scratch, "excluded", listed)]
        if odd:
            if sum(map(len, odd)) > _ARGUMENT_BYTES:
                raise tools.ToolFailedError(
                    f"{len(odd)} excluded names hold newlines or begin with blanks or '#', more than mksquashfs takes; "
                    f"exclude their directory instead (the first is {display(odd[0])})"
                )
            arguments += ["-e", *odd]
        self._tool = tools.Tool(
            [
                "mksquashfs", ".", out, "-noappend", "-no-progress", "-quiet",
                *build_options(compression), *(["-wildcards"] if by_name else []), *arguments,
            ],
            cwd=f"/proc/self/fd/{source_fd}",
        )  # fmt: skip

    def finish(self, check: Check) -> list[str]:
        """Wait for the end, and return what it could not read, a sentence each.

        Raises:
            ToolFailedError: It failed, for want of space for example.
        """
        _, complaints = self._tool.finish(check)
        return [
            line.decode("utf-8", "backslashreplace")
            for line in complaints.splitlines()
            if any(word in line for word in _COMPLAINTS) and not any(word in line for word in _HARMLESS)
        ]

    def kill(self) -> None:
        """Give up."""
        self._tool.kill()


def extract(layer: str, into: str, paths: Iterable[bytes] | None, *, scratch: str, check: Check) -> None:
    """Extract paths of a layer, each with all below it, or everything for None.

    A path that the layer does not have is no error to unsquashfs: look at what arrived.

    Args:
        layer: The layer's file.
        into: A directory that does not exist yet.
        paths: What to extract.
        scratch: A folder for the list of paths.
        check: May raise to stop.

    Raises:
        ToolMissingError: unsquashfs is not installed.
        ToolFailedError: The layer is damaged, or there is no space.
    """
    command: list[str | bytes] = [
        "unsquashfs",
        "-no-progress",
        "-quiet",
        "-force",
        "-dest",
        os.path.basename(into),
        "-no-wildcards",
    ]
    # Entered before the program starts: another process may not look up our descriptors, by one of which it is named.
    folder = os.path.dirname(into)
    if paths is None:
        _unsquash([*command, layer], folder, check)
        return
    listed, odd = _split_odd(paths)
    if listed:
        _unsquash([*command, "-ef", _write_list(scratch, "extracted", listed), layer], folder, check)
    for batch in _batches(odd):
        _unsquash([*command, layer, *batch], folder, check)


def _unsquash(argv: list[str | bytes], folder: str, check: Check) -> None:
    # Status 2: something could not be set (an owner, an xattr); whether it matters is seen on what arrived.
    tools.run(argv, cwd=folder, check=check, ok=(0, 2))


def _split_odd(paths: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Part the paths that a line of a list file cannot say: they go on the command line."""
    listed: list[bytes] = []
    odd: list[bytes] = []
    for path in paths:
        (odd if b"\n" in path or path[:1] in b" \t#\\\r\v\f-" or path[-1:].isspace() else listed).append(path)
    return listed, odd


def _write_list(scratch: str, name: str, paths: Sequence[bytes]) -> str:
    path = os.path.join(scratch, name)
    with open(path, "wb") as file:
        file.write(b"\n".join(paths) + b"\n")
    return path


def _batches(paths: Sequence[bytes]) -> Iterable[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for path in paths:
        if batch and size + len(path) > _ARGUMENT_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += len(path)
    if batch:
        yield batch
