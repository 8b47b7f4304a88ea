"""The walk: a directory's entries, read by descriptor, never through a link."""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import (
    CLOCK_GRAIN_NS,
    Entry,
    Header,
    Manifest,
    Xattrs,
    display,
    has_acl,
    make_manifest,
    parent,
)

KEPT_XATTRS = ("user.", "security.", "trusted.", "system.posix_acl_")
_REPORT_EVERY = 2000
_NUMBERS = 2**63 - 1
_REACH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class UnreadableError(Exception):
    """An entry of the tree may not be read; the message names it and says why."""


@dataclass
class _Walk:
    root: int
    rules: Rules
    boundaries: frozenset[bytes]
    known: Manifest | None
    counted: Callable[[int], None]
    own_cwd: bool
    by_name: bool = False
    check_access: bool = field(default_factory=lambda: os.geteuid() != 0)
    entries: list[Entry] = field(default_factory=list)
    excluded: list[bytes] = field(default_factory=list)
    mounts: list[bytes] = field(default_factory=list)
    links: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    link_counts: dict[tuple[int, int], int] = field(default_factory=dict)
    pending: list[bytes] = field(default_factory=list)
    proven: set[bytes] = field(default_factory=set)
    device: int = field(init=False)
    left_out_of: frozenset[bytes] = field(init=False)
    """Directories of which the known tree does not say all that they hold."""
    were_mounts: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.device = os.fstat(self.root).st_dev
        if self.known is not None and self.known.header.device != self.device:
            self.known = None  # the same inode numbers and times are those of other files
        header = self.known.header if self.known is not None else Header(started_ns=0, stamps=False)
        # What a mount hid may have come to light without a stamp that says so.
        self.were_mounts = frozenset(header.mounts)
        self.left_out_of = frozenset(map(parent, (*header.excluded, *header.mounts)))

    def run(self) -> None:
        """Walk from the root; a stack, so that depth is limited by path length only."""
        self._add(b"", os.fstat(self.root), self.root, None)
        while self.pending:
            self._directory(self.pending.pop())

    def _directory(self, path: bytes) -> None:
        if self.known is not None and path in self.proven and path not in self.left_out_of:
            self._revisit(path, self.known.children.get(path, ()), self.known)
            return
        try:
            fd = linux.openat2(path or b".", _OPEN_DIRECTORY, dir_fd=self.root, resolve=INSIDE)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return  # gone or replaced since it was listed: its own parent's stamp says so
            raise UnreadableError(f"{display(path) or 'the directory'}: {error.strerror}") from None
        try:
            self._list(fd, path + b"/" if path else b"")
        finally:
            os.close(fd)

    def _list(self, fd: int, prefix: bytes) -> None:
        # The two loops over names, here and in `_revisit`, run once for each file: what they do counts in seconds.
        everything = self.rules.is_empty and not self.boundaries
        self.by_name = False
        if self.own_cwd:
            with suppress(PermissionError):  # it may be listed, but not entered
                os.fchdir(fd)
                self.by_name = True
        with os.scandir(fd) as listing:
            for item in listing:
                path = prefix + os.fsencode(item.name)
                try:
                    status = item.stat(follow_symlinks=False)
                    if everything or self._belongs(path, status):
                        self._add(path, status, fd, item.name)
                except FileNotFoundError:
                    continue
                except PermissionError as error:  # its directory may be listed, but not entered
                    raise UnreadableError(f"{display(path)}: {error.strerror}") from None

    def _belongs(self, path: bytes, status: os.stat_result) -> bool:
        if path in self.boundaries:
            self._boundary(path, status)
            return False
        if self.rules.excludes(path, is_dir=stat.S_ISDIR(status.st_mode)):
            self.excluded.append(path)
            return False
        return True

    def _boundary(self, path: bytes, status: os.stat_result) -> None:
        self.mounts.append(path)
        if stat.S_ISDIR(status.st_mode):
            self.entries.append(_entry(path, status))

    def _revisit(self, path: bytes, children: Iterable[bytes], known: Manifest) -> None:
        # The directory's stamp proves that it still holds just these names, so it need not be listed. Whether all of
        # them belong to the tree is another matter: what git ignores may have changed.
        everything = self.rules.is_empty
        try:
            fd = linux.openat2(path or b".", _REACH, dir_fd=self.root, resolve=INSIDE)
        except OSError:
            return
        prefix = len(path) + 1 if path else 0
        settled_before, entries, boundaries = known.settled_before_ns, known.entries, self.boundaries
        try:
            for child in children:
                try:
                    status = os.stat(child[prefix:], dir_fd=fd, follow_symlinks=False)
                except OSError:
                    continue
                entry = entries[child]
                if not everything and child not in boundaries and self.rules.excludes(child, is_dir=entry.is_dir):
                    self.excluded.append(child)
                elif (
                    status.st_nlink == 1
                    and _is_still(entry, status, settled_before)
                    and not stat.S_ISDIR(entry.mode)
                    and child not in boundaries
                ):
                    self.entries.append(entry)  # most files: no more to be done
                elif child in boundaries:
                    self._boundary(child, status)
                else:
                    with suppress(OSError):
                        self._add(child, status, fd, os.fsdecode(child[prefix:]))
        finally:
            os.close(fd)

    def _add(self, path: bytes, status: os.stat_result, fd: int, name: str | None) -> None:
        known = self._known(path, status)
        if known is not None:
            self.entries.append(known)
            if known.is_dir:
                self.proven.add(path)
        else:
            self.entries.append(self._read(path, status, fd, name))
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            inode = status.st_dev, status.st_ino
            self.links.setdefault(inode, []).append(path)
            self.link_counts[inode] = status.st_nlink
        if stat.S_ISDIR(status.st_mode):
            self.pending.append(path)
        if len(self.entries) % _REPORT_EVERY == 0:
            self.counted(len(self.entries))

    def _known(self, path: bytes, status: os.stat_result) -> Entry | None:
        entry = self.known.entries.get(path) if self.known is not None else None
        if self.known is None or entry is None or path in self.boundaries or path in self.were_mounts:
            return None
        return entry if _is_still(entry, status, self.known.settled_before_ns) else None

    def _read(self, path: bytes, status: os.stat_result, fd: int, name: str | None) -> Entry:
        mode = status.st_mode
        where = self._where(fd, name)
        if self.check_access and name is not None and stat.S_ISREG(mode):
            self._check_readable(path, where)
        target = os.fsencode(os.readlink(name, dir_fd=fd)) if name is not None and stat.S_ISLNK(mode) else b""
        return _entry(path, status, target=target, xattrs=read_xattrs(where, follow_symlinks=name is None))

    def _where(self, fd: int, name: str | None) -> str:
        if name is not None and self.by_name:
            return name
        return f"/proc/self/fd/{fd}/{name}" if name is not None else f"/proc/self/fd/{fd}"

    @staticmethod
    def _check_readable(path: bytes, where: str) -> None:
        if not os.access(where, os.R_OK, effective_ids=True):
            raise UnreadableError(f"{display(path)}: Permission denied")


def _is_still(entry: Entry, status: os.stat_result, settled_before_ns: int) -> bool:
    """Whether an entry's stamp proves that it is as it was."""
    return (
        entry.ctime_ns == status.st_ctime_ns < settled_before_ns
        and entry.ino == (status.st_ino ^ status.st_dev << 40) & _NUMBERS  # `number_of`, for each file of a tree
        and entry.mode == status.st_mode
        and entry.mtime_ns == status.st_mtime_ns
        and (entry.size == status.st_size or not entry.is_file)
    )


def number_of(status: os.stat_result) -> int:
    """Return a number that no other file of a tree has: each layer below an overlay numbers its own from 1 on."""
    return (status.st_ino ^ status.st_dev << 40) & _NUMBERS


def _entry(path: bytes, status: os.stat_result, *, target: bytes = b"", xattrs: Xattrs | None = None) -> Entry:
    mode = status.st_mode
    return Entry(
        path,
        mode,
        status.st_uid,
        status.st_gid,
        status.st_size if stat.S_ISREG(mode) else 0,
        status.st_mtime_ns,
        status.st_ctime_ns,
        number_of(status),
        target,
        status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        b"",
        xattrs,
    )


def entry_of(path: bytes, fd: int, name: bytes) -> Entry:
    """Return the entry of one path below an open directory, whatever its hard links.

    Raises:
        OSError: It is not there.
    """
    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    where = f"/proc/self/fd/{fd}/{os.fsdecode(name)}"
    target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
    return _entry(path, status, target=target, xattrs=read_xattrs(where, follow_symlinks=False))


def read_xattrs(where: str | int, *, follow_symlinks: bool) -> Xattrs | None:
    """Return the extended attributes that a backup keeps, None where there are none."""
    try:
        names = os.listxattr(where, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return None
        raise
    values: Xattrs = {}
    for name in names:
        if name.startswith(KEPT_XATTRS):
            with suppress(OSError):  # it went meanwhile, or is another's secret (trusted.* without the right)
                values[os.fsencode(name)] = os.getxattr(where, name, follow_symlinks=follow_symlinks)
    return values or None


def _note_hardlinks(walk: _Walk, entries: dict[bytes, Entry]) -> None:
    for paths in walk.links.values():
        first, *others = sorted(set(paths))
        for path, link in ((first, b""), *((other, first) for other in others)):
            if entries[path].hardlink != link:
                entries[path] = msgspec.structs.replace(entries[path], hardlink=link)


def walk_tree(
    root: int,
    rules: Rules,
    *,
    started_ns: int,
    stamps: bool,
    boundaries: frozenset[bytes] = frozenset(),
    known: Manifest | None = None,
    counted: Callable[[int], None] = lambda count: None,
    own_cwd: bool = False,
) -> Manifest:
    """Walk a directory, and return its manifest.

    Args:
        root: A descriptor of the directory.
        rules: What is left out.
        started_ns: When this look at the tree began.
        stamps: Whether the filesystem's stamps prove that a file is unchanged.
        boundaries: Paths where another filesystem is mounted: the entry is kept if it is a directory, nothing
            below it is read.
        known: A manifest of the same directory. Entries whose stamps prove that they are still as it says are
            taken over as the same objects, and directories so proven are not listed.
        counted: Told of the number of entries now and then; may raise to stop the walk.
        own_cwd: Whether the working directory is this thread's own. The walk then goes from directory to directory
            with it, and looks at extended attributes by bare names: twice as fast as by `/proc/self/fd`. Not together
            with `known`.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: The filesystem failed.
    """
    walk = _Walk(root, rules, boundaries, known, counted, own_cwd)
    walk.run()
    return _manifest(walk, started_ns, stamps=stamps)


class Looking(TypedDict):
    """How `walk_tree` looks at a directory of which there is a manifest."""

    started_ns: int
    stamps: bool
    boundaries: frozenset[bytes]
    known: Manifest
    counted: Callable[[int], None]


def walk_if_changed(root: int, rules: Rules, **how: Unpack[Looking]) -> Manifest | None:
    """Walk a directory as `walk_tree`; return None where it holds the very entries of the known tree, and no others."""
    known = how["known"]
    walk = _Walk(root, rules, how["boundaries"], known, how["counted"], own_cwd=False)
    walk.run()
    # By their identity: entries are taken over as the same objects.
    if {*map(id, walk.entries)} == {*map(id, known.entries.values())}:
        return None
    return _manifest(walk, how["started_ns"], stamps=how["stamps"])


def _manifest(walk: _Walk, started_ns: int, *, stamps: bool) -> Manifest:
    header = Header(
        started_ns=started_ns,
        stamps=stamps,
        excluded=tuple(sorted(walk.excluded)),
        mounts=tuple(sorted(walk.mounts)),
        beyond_squashfs=beyond_squashfs(walk.entries, frozenset(walk.mounts)),
        device=walk.device,
        linked_outside=_linked_outside(walk),
        hardlinks=tuple(sorted(tuple(sorted(set(paths))) for paths in walk.links.values() if len(set(paths)) > 1)),
    )
    manifest = make_manifest(header, walk.entries)
    _note_hardlinks(walk, manifest.entries)
    return manifest


def _linked_outside(walk: _Walk) -> tuple[bytes, ...]:
    return tuple(
        sorted(path for inode, paths in walk.links.items() if walk.link_counts[inode] > len(paths) for path in paths)
    )


def beyond_squashfs(entries: Collection[Entry], mounts: frozenset[bytes], *, delta: bool = False) -> tuple[Entry, ...]:
    """Return the entries that a mounted layer does not show as they were; that of a delta shows no sockets.

    What has to be made is among them with its directory, whose time that moves.
    """
    made = {entry.path for entry in entries if entry.path in mounts or (delta and stat.S_ISSOCK(entry.mode))}
    above = {parent(path) for path in made}
    return tuple(
        entry
        for entry in entries
        if not entry.path or has_acl(entry.xattrs) or entry.path in made or entry.path in above
    )


def moved_since(root: int, manifest: Manifest) -> list[Entry]:
    """Return the entries that may have changed since the manifest's capture began.

    An entry is among them when its stamp is another one or not older than the beginning, or it is gone.
    """
    settled = manifest.header.started_ns - CLOCK_GRAIN_NS
    moved = []
    for path, entry in manifest.entries.items():
        try:
            status = os.stat(path, dir_fd=root, follow_symlinks=False) if path else os.fstat(root)
        except OSError:
            moved.append(entry)
            continue
        # Another stamp may well be older than the beginning: the clock may have been set back meanwhile.
        if status.st_ctime_ns >= settled or (status.st_ctime_ns, number_of(status)) != (entry.ctime_ns, entry.ino):
            moved.append(entry)
    return moved


def came_unseen(root: int, manifest: Manifest, rules: Rules, *, upper: int | None = None) -> list[bytes]:
    """Return the directories that hold, after a walk, names which it did not see there.

    It may have come by when what they name was not there yet, and by the place from where that was moved when it was
    there no more.

    Args:
        root: A descriptor of the directory.
        manifest: What was found in it.
        rules: What is left out.
        upper: Where only what lies in an overlay's upper layer was looked at, a descriptor of that.
    """
    header = manifest.header
    seen = frozenset((*header.mounts, *header.excluded))
    found = []
    for path, entry in manifest.entries.items():
        if entry.is_dir and path not in seen:
            with suppress(OSError):  # it is gone, with all that came
                status = os.stat(path or b".", dir_fd=root, follow_symlinks=False)
                if (status.st_ctime_ns, number_of(status)) != (entry.ctime_ns, entry.ino) and any(
                    each not in manifest.entries and each not in seen and _is_of_tree(root, each, rules)
                    for each in _listed(root if upper is None else upper, path)
                ):
                    found.append(path)
    return found


def _listed(root: int, directory: bytes) -> list[bytes]:
    fd = linux.openat2(directory or b".", _OPEN_DIRECTORY, dir_fd=root, resolve=INSIDE)
    try:
        prefix = directory + b"/" if directory else b""
        return [prefix + os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _is_of_tree(root: int, path: bytes, rules: Rules) -> bool:
    try:
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
    except OSError:
        return False
    return not rules.excludes(path, is_dir=stat.S_ISDIR(status.st_mode))
