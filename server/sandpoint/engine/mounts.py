"""What is mounted where, and which filesystems' stamps can be trusted."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sandpoint.engine import linux

STAMPED_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs"})
"""Where every change of a file moves its ctime, by this machine's clock. Not among them: tmpfs, which does not
stamp writes through a mapping; network filesystems and FUSE, whose clock is another's; overlays, whose lower files
show the stamps of whatever image lies below."""


@dataclass(frozen=True)
class Mount:
    """A line of `/proc/self/mountinfo`."""

    id: int
    device: str
    """Major and minor number of its filesystem."""
    point: bytes
    fstype: str
    source: str


def list_mounts(process: str = "self") -> list[Mount]:
    """Return the mounts of a process's namespace, in the order they were made, by their paths from its root.

    Raises:
        OSError: The process is gone.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as table:
        return parse_mounts(table)


def parse_mounts(table: Iterable[bytes]) -> list[Mount]:
    """Return what the lines of such a table say.

    Raises:
        ValueError, IndexError: It is none.
    """
    return [_parse(line) for line in table]


def _parse(line: bytes) -> Mount:
    fields, _, rest = line.partition(b" - ")
    left = fields.split(b" ")
    right = rest.split(b" ")
    return Mount(
        int(left[0]),
        left[2].decode(),
        _unescape(left[4]),
        right[0].decode("utf-8", "replace"),
        _unescape(right[1]).decode("utf-8", "replace"),
    )


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def mounts_below(directory: bytes, mounts: Iterable[Mount]) -> list[Mount]:
    """Return the mounts strictly below a directory."""
    prefix = directory.rstrip(b"/") + b"/"
    return [mount for mount in mounts if mount.point.startswith(prefix) and mount.point != directory]


def mounts_at(directory: bytes, mounts: Iterable[Mount]) -> list[Mount]:
    """Return the mounts on a directory itself, the topmost last."""
    return [mount for mount in mounts if mount.point == directory]


def mount_of(fd: int, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that a descriptor is on, None where the table does not tell."""
    wanted = linux.mount_id(fd)
    return next((mount for mount in mounts if mount.id == wanted), None)


def same_mount(first: int, second: int) -> bool:
    """Whether a file can be renamed from below one descriptor to below the other."""
    return os.fstat(first).st_dev == os.fstat(second).st_dev and linux.mount_id(first) == linux.mount_id(second)
