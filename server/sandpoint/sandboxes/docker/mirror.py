"""A copy of one directory of a container, in a folder that stands for the container's root."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import Holders
from sandpoint.engine.attributes import adjust
from sandpoint.engine.contents import always, differing
from sandpoint.engine.copies import make_node
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry, Manifest, Xattrs, make_manifest
from sandpoint.engine.mounts import Mount
from sandpoint.engine.plan import Comparison, Plan, make_plan, without
from sandpoint.engine.removal import remove_tree
from sandpoint.engine.roots import FolderRoot
from sandpoint.engine.tools import Check
from sandpoint.engine.walk import walk_tree

SHOWN_XATTR = b"security.capability"
"""The only extended attribute that Docker puts into an archive."""

_SECOND = 10**9


class MirrorRoot(FolderRoot):
    """A folder with copies of a container's directories, which knows what is mounted in the container."""

    def __init__(self, folder: str) -> None:
        """Name the folder."""
        super().__init__(folder)
        self.points: frozenset[bytes] = frozenset()
        """Where in the container something is mounted."""

    def mounts(self) -> list[Mount]:
        """Return mounts at these points, of which nothing else is known."""
        return [Mount(-1, "", point, "", "") for point in sorted(self.points)]


@dataclass(frozen=True)
class Tree:
    """A directory of ours that holds a copy, and its entries."""

    fd: int
    manifest: Manifest
    boundaries: frozenset[bytes]
    """Where other filesystems are mounted in the container: nothing below is in the copy."""


def walked(fd: int, boundaries: frozenset[bytes]) -> Tree:
    """Return a copy with its entries."""
    return Tree(fd, walk_tree(fd, Rules(), started_ns=0, stamps=False, boundaries=boundaries), boundaries)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Yield a descriptor of a directory of our own."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def steps(source: Tree, target: Tree, check: Check) -> Plan:
    """Return what leads from one copy to another; of times, whole seconds count."""

    def differ(doubtful: list[Entry]) -> set[bytes]:
        unknown = [entry for entry in doubtful if source.manifest.entries[entry.path].ino != entry.ino]
        return differing(always(source.fd), always(target.fd), unknown, check)

    mounts = tuple(sorted(source.boundaries | target.boundaries))
    return make_plan(
        without(source.manifest, mounts),
        without(target.manifest, mounts),
        differ=differ,
        comparison=Comparison(owners=True, whole_seconds=True),
        untouchable=mounts,
    )


def as_shown(tree: Tree) -> Tree:
    """Return a copy as Docker would show it, had it been made by it: less what it can neither send nor take."""

    def shown(entry: Entry) -> Entry:
        capability = (entry.xattrs or {}).get(SHOWN_XATTR)
        return msgspec.structs.replace(
            entry,
            mtime_ns=max(entry.mtime_ns, 0),
            xattrs=None if capability is None else {SHOWN_XATTR: capability},
        )

    entries = [shown(entry) for entry in tree.manifest.entries.values() if not stat.S_ISSOCK(entry.mode)]
    return Tree(tree.fd, make_manifest(tree.manifest.header, entries), tree.boundaries)


def keep_copy(tree: Tree, into: int) -> None:
    """Make a second copy that shares the files: a restore of the first replaces what it changes, the second has it.

    That is so because a file with links outside of what is restored is never changed in place.
    """
    comparison = Comparison(owners=True)
    entries = list(tree.manifest.entries.values())
    mounts = frozenset(tree.manifest.header.mounts) - tree.manifest.entries.keys()
    sources, holders = Holders(tree.fd), Holders(into)
    try:
        for entry in entries:
            holder, name = holders.of(entry.path)
            if entry.is_dir:
                if entry.path:
                    os.mkdir(name, 0o700, dir_fd=holder)
            elif entry.path not in mounts:
                source, other = sources.of(entry.path)
                os.link(other, name, src_dir_fd=source, dst_dir_fd=holder, follow_symlinks=False)
        for entry in reversed(entries):
            if entry.is_dir:
                holder, name = holders.of(entry.path)
                adjust(holder, name, entry, comparison, fresh=True)
    finally:
        sources.close()
        holders.close()


def complete(tree: Tree, backup: Manifest, check: Check) -> None:
    """Give a copy what the engine's archive does not tell, as a backup has it where the two agree in all else.

    That are parts of seconds, extended attributes, and sockets.
    """
    comparison = Comparison(owners=True)
    holders = Holders(tree.fd)
    folders: dict[bytes, Entry] = {}
    try:
        for path, entry in backup.entries.items():
            check()
            present = tree.manifest.entries.get(path)
            if present is None:
                if stat.S_ISSOCK(entry.mode):
                    _make_socket(entry, tree, holders, folders)
                continue
            wanted = _completed(present, entry)
            if wanted is present or path in tree.boundaries:
                continue
            if wanted.is_dir:
                folders[path] = wanted
            else:
                adjust(*holders.of(path), wanted, comparison)
        for path in sorted(folders, reverse=True):
            adjust(*holders.of(path), folders[path], comparison)
    finally:
        holders.close()


def _completed(present: Entry, backup: Entry) -> Entry:
    if (present.mode, present.size, present.target) != (backup.mode, backup.size, backup.target):
        return present
    changes: dict[str, int | Xattrs | None] = {}
    is_same_second = present.mtime_ns // _SECOND == backup.mtime_ns // _SECOND
    if present.mtime_ns != backup.mtime_ns and (is_same_second or present.mtime_ns == 0 > backup.mtime_ns):
        changes["mtime_ns"] = backup.mtime_ns
    ours, theirs = present.xattrs or {}, backup.xattrs or {}
    if ours != theirs and ours.get(SHOWN_XATTR) == theirs.get(SHOWN_XATTR):
        changes["xattrs"] = backup.xattrs
    return msgspec.structs.replace(present, **changes) if changes else present


def _make_socket(entry: Entry, tree: Tree, holders: Holders, folders: dict[bytes, Entry]) -> None:
    above = entry.path.rpartition(b"/")[0]
    holder_entry = tree.manifest.entries.get(above)
    if holder_entry is None or not holder_entry.is_dir or above in tree.boundaries:
        return
    folders.setdefault(above, holder_entry)
    holder, name = holders.of(entry.path)
    with suppress(FileExistsError):
        make_node(entry, holder, name)
        adjust(holder, name, entry, Comparison(owners=True), fresh=True)


def make_reached(root: int, parts: Sequence[tuple[bytes, str]], names: Sequence[bytes]) -> None:
    """Make what leads to a directory, and nothing more of it.

    Args:
        root: The folder that stands for the container's root.
        parts: The names on the way that are there, and what they are; a link or a file can only be the last.
        names: All names on the way.
    """
    path = b""
    for index, name in enumerate(names):
        kind = parts[index][1] if index < len(parts) else None
        above = linux.openat2(path or b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root, resolve=INSIDE)
        try:
            if kind != "dir":
                _remove(above, name)
            if kind == "dir":
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=above)
            elif kind == "link":
                os.symlink("?", name, dir_fd=above)
            elif kind is not None:
                make_node(Entry(name, stat.S_IFREG, 0, 0, 0, 0, 0, 0), above, name)
        finally:
            os.close(above)
        if kind != "dir":
            return
        path = path + b"/" + name if path else name


def empty(fd: int) -> None:
    """Remove all that is in an open directory of ours."""
    for name in os.listdir(fd):
        _remove(fd, os.fsencode(name))


def _remove(holder: int, name: bytes) -> None:
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=holder, follow_symlinks=False).st_mode):
            remove_tree(f"/proc/self/fd/{holder}/{os.fsdecode(name)}")
        else:
            os.unlink(name, dir_fd=holder)
