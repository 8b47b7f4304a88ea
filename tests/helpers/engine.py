"""What the engine's unit tests share: entries, manifests, and walks of a real directory."""

import gc
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry, Header, Manifest, make_manifest
from sandpoint.engine.walk import walk_tree

HEADER = Header(started_ns=1_000_000_000, stamps=True)


class Stopped(BaseException):
    """What a check raises to stop; like a cancellation, no Exception."""


def stop() -> None:
    """A check that stops at once."""
    raise Stopped


def never() -> None:
    """A check that never stops anything."""


def entry(path: bytes, mode: int = stat.S_IFREG | 0o644, **changes: Any) -> Entry:
    """An entry with plausible attributes."""
    values: dict[str, Any] = {"uid": 0, "gid": 0, "size": 0, "mtime_ns": 5, "ctime_ns": 5, "ino": 7}
    return Entry(path, mode, **(values | changes))


def folder(path: bytes, **changes: Any) -> Entry:
    """An entry of a directory."""
    return entry(path, stat.S_IFDIR | 0o755, **changes)


def manifest(*entries: Entry, header: Header = HEADER) -> Manifest:
    """A manifest of these entries and the directory itself."""
    return make_manifest(header, (folder(b""), *entries))


def count_descriptors() -> int:
    """Return how many descriptors are open here, less those of what earlier tests have left to the collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a directory for the time of a block."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def walk(path: Path, rules: Rules | None = None, **options: Any) -> Manifest:
    """Walk a directory."""
    values: dict[str, Any] = {"started_ns": time.time_ns(), "stamps": False}
    with opened(path) as fd:
        return walk_tree(fd, rules or Rules(), **(values | options))


@dataclass(frozen=True)
class Seen:
    """What a look at one path shows, besides its contents."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: bytes
    inode: int
    links: int


def look(root: Path, *, leave_out: Iterable[str] = ()) -> dict[str, Seen]:
    """Return all that a directory holds, by relative path; itself is `.`."""
    found = {}
    skipped = set(leave_out)
    for path in (root, *sorted(root.rglob("*"))):
        name = str(path.relative_to(root))
        status = path.lstat()
        if name in skipped:
            continue
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        links = 0 if path.is_dir() and not path.is_symlink() else status.st_nlink
        inode = 0 if path.is_dir() and not path.is_symlink() else status.st_ino
        owner = (status.st_uid, status.st_gid)
        found[name] = Seen(status.st_mode, owner, status.st_mtime_ns, content, inode, links)
    return found


def without_inodes(seen: dict[str, Seen]) -> dict[str, tuple[Any, ...]]:
    """Return a look less what only tells whether a file is the very same."""
    return {name: (s.mode, s.owner, s.mtime_ns, s.content, s.links) for name, s in seen.items()}
