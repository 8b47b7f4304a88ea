"""A pause of all that writes to a directory, and what is done in it: the less, the shorter.

Before the pause the directory is walked and what changed is copied. In it, all stamps are looked at again, and only
what moved since is copied once more. Whatever else a capture does comes after it, from the copies.
"""

import errno
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import Holders
from sandpoint.engine.contents import open_regular
from sandpoint.engine.copies import copy_content
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import CLOCK_GRAIN_NS, Entry, Manifest, make_manifest
from sandpoint.engine.plan import is_at_or_below
from sandpoint.engine.stamps import Stamps, hurry
from sandpoint.engine.tools import Check
from sandpoint.engine.upper import entries_at, inode_of
from sandpoint.engine.walk import beyond_squashfs, entry_of, number_of, walk_tree

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Freezer(Protocol):
    """Stops all that runs in a sandbox, and lets it go on. Whoever made it sees to it that it goes on in any case."""

    def pause(self) -> None:
        """Stop it.

        Raises:
            SandpointError: It cannot be stopped.
        """
        ...

    def unpause(self) -> float:
        """Let it go on; return for how many seconds at most it was stopped, 0 where somebody else had stopped it.

        Raises:
            SandpointError: It had not been stopped all the time, or cannot be let go on.
        """
        ...


@dataclass
class Pause:
    """A pause; how long it was is known when it is over."""

    seconds: float = 0


@contextmanager
def paused(freezer: Freezer) -> Iterator[Pause]:
    """Stop all that runs in the sandbox, for the time of the block."""
    pause = Pause()
    with _hurried():
        freezer.pause()
        try:
            yield pause
        finally:
            pause.seconds = freezer.unpause()


@contextmanager
def _hurried() -> Iterator[None]:
    thread = threading.get_native_id()
    usual, parameters = os.sched_getscheduler(thread), os.sched_getparam(thread)
    hurry(thread)
    try:
        yield
    finally:
        os.sched_setscheduler(thread, usual, parameters)


class Copies:
    """Files of a directory as they were at some time, in a folder of the operation's own. Use it as a context manager.

    Called with a path, it returns the open directory below which the copy of that path lies.
    """

    def __init__(self, work: str) -> None:
        """Make the folder.

        Args:
            work: The operation's folder.
        """
        self._folder = os.path.join(work, "copies")
        self._rounds: list[int] = []
        self._found: dict[bytes, tuple[int, Entry]] = {}
        os.mkdir(self._folder, 0o700)

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *_error: object) -> None:
        for fd in self._rounds:
            os.close(fd)

    def of(self, entry: Entry) -> int | None:
        """Return the open directory below which the copy of a file lies, if there is one."""
        copied = self._found.get(entry.path)
        return None if copied is None else copied[0]

    def __call__(self, path: bytes) -> int:
        """Return the open directory below which the copy of a path lies."""
        return self._found[path][0]

    def has(self, entry: Entry, settled_before_ns: int) -> bool:
        """Whether the copy of a file is of just the state that an entry says.

        Args:
            entry: The file as it is now.
            settled_before_ns: A stamp that is not older may hide a later change.
        """
        copied = self._found.get(entry.path)
        return copied is not None and copied[1].has_stamp_of(entry) and entry.ctime_ns < settled_before_ns

    def take(
        self,
        root: int,
        entries: Iterable[Entry],
        check: Check,
        *,
        write_out: Callable[[Entry, int], None] | None = None,
    ) -> set[bytes]:
        """Copy regular files.

        Args:
            root: A descriptor of the directory.
            entries: Those, and others that are passed over.
            check: May raise to stop.
            write_out: Called for each file before it is read, with its descriptor, so that its stamp will prove it.

        Returns:
            The paths of those that were written to meanwhile: they have no copy.

        Raises:
            OSError: There is no room, or the filesystem failed.
        """
        path = os.path.join(self._folder, str(len(self._rounds)))
        os.mkdir(path, 0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._rounds.append(folder)
        made: set[bytes] = {b""}
        moved = set()
        for entry in entries:
            if not entry.is_file or entry.hardlink:
                continue
            check()
            _make_above(folder, entry.path, made)
            if self._copy(root, entry, folder, write_out):
                self._found[entry.path] = folder, entry
            else:
                self._found.pop(entry.path, None)
                moved.add(entry.path)
        return moved

    @staticmethod
    def _copy(root: int, entry: Entry, folder: int, write_out: Callable[[Entry, int], None] | None) -> bool:
        try:
            source = open_regular(root, entry.path)
        except OSError as error:
            if error.errno not in _ABSENT | {errno.EINVAL}:
                raise
            return False
        try:
            if write_out is not None:
                write_out(entry, source)
            target = os.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
            try:
                copy_content(source, target)
                return os.fstat(target).st_size == entry.size and is_as(os.fstat(source), entry)
            finally:
                os.close(target)
        finally:
            os.close(source)


def is_as(status: os.stat_result, entry: Entry) -> bool:
    """Whether a file is still as its entry says, by its stamp."""
    return (status.st_ctime_ns, status.st_size, number_of(status)) == (entry.ctime_ns, entry.size, entry.ino)


def _make_above(folder: int, path: bytes, made: set[bytes]) -> None:
    missing = []
    above = path.rpartition(b"/")[0]
    while above not in made:
        missing.append(above)
        above = above.rpartition(b"/")[0]
    for each in reversed(missing):
        os.mkdir(each, 0o700, dir_fd=folder)
        made.add(each)


@dataclass
class Again:
    """What is not as a tree says: entries as they are now, and paths that are gone with all below them."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    excluded: list[bytes] = field(default_factory=list)
    tree: Manifest | None = None
    """The whole tree as it is now, where it was walked whole."""

    def applied_to(self, tree: Manifest, changed: Collection[Entry]) -> Manifest:
        """Return the tree as it is now.

        Args:
            tree: As it was.
            changed: Those of the entries whose stamps prove nothing for later.
        """
        if self.tree is not None:
            return unproven(self.tree, changed)
        gone = self.gone
        if not gone and not self.entries and not self.excluded:
            return tree
        kept = (entry for path, entry in tree.entries.items() if not gone or not is_at_or_below(path, gone))
        entries = {entry.path: entry for entry in kept} | self.entries
        excluded = (path for path in tree.header.excluded if not is_at_or_below(path, gone))
        header = msgspec.structs.replace(
            tree.header,
            excluded=tuple(sorted({*excluded, *self.excluded})),
            linked_outside=tuple(path for path in tree.header.linked_outside if path in entries),
            beyond_squashfs=beyond_squashfs(entries.values(), frozenset(tree.header.mounts)),
        )
        return unproven(make_manifest(header, entries.values()), changed)


def unproven(tree: Manifest, changed: Iterable[Entry]) -> Manifest:
    """Return a tree without the stamps of files that were not written out before they were read, by all their names."""
    paths = {each.path for each in changed}
    if not paths:
        return tree
    stripped = {
        path: msgspec.structs.replace(entry, ctime_ns=0, ino=0)
        for path, entry in tree.entries.items()
        if path in paths or entry.hardlink in paths
    }
    return Manifest(tree.header, tree.entries | stripped)


def look_again(stamps: Stamps, root: int, tree: Manifest, rules: Rules, check: Check) -> Again:
    """Look at a directory again, at the cost of a look at all stamps and of reading what changed.

    Args:
        stamps: Those of the tree.
        root: A descriptor of the directory.
        tree: The directory as it was a moment ago; its header says where other filesystems are mounted.
        rules: What is left out.
        check: May raise to stop.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: The filesystem failed.
    """
    again = Again()
    for path in sorted(stamps.moved(check)):
        if not is_at_or_below(path, again.gone):
            _look_at(path, root, tree, rules, again)
    if _are_linked(again, root, tree):
        now = walk_tree(
            root,
            rules,
            started_ns=tree.header.started_ns,
            stamps=tree.header.stamps,
            boundaries=frozenset(tree.header.mounts),
            known=tree,
            counted=lambda _count: check(),
        )
        found = {path: entry for path, entry in now.entries.items() if tree.entries.get(path) is not entry}
        return Again(found, tree=now)
    return again


def _look_at(path: bytes, root: int, tree: Manifest, rules: Rules, again: Again) -> None:
    known = tree.entries[path]
    read = partial(entries_at, root, rules=rules, excluded=again.excluded, whole=True)
    try:
        now = _entry(root, path)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        again.gone.add(path)
        return
    if not known.is_dir and not now.is_dir:
        again.entries[path] = now
        return
    if not (known.is_dir and now.is_dir and known.ino == now.ino):
        again.gone.add(path)
        again.entries.update((entry.path, entry) for entry in read(path))
        return
    again.entries[path] = now
    prefix = path + b"/" if path else b""
    known_here = frozenset((*tree.children.get(path, ()), *tree.header.mounts))
    for child in (prefix + name for name in _names(root, path)):
        if child not in known_here:
            again.entries.update((entry.path, entry) for entry in read(child))


def _entry(root: int, path: bytes) -> Entry:
    holders = Holders(root, resolve=INSIDE)
    try:
        holder, name = holders.of(path)
        return entry_of(path, holder, name or b".")
    finally:
        holders.close()


def _names(root: int, path: bytes) -> list[bytes]:
    fd = linux.openat2(path or b".", _LIST, dir_fd=root, resolve=INSIDE)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _are_linked(again: Again, root: int, tree: Manifest) -> bool:
    """Whether hard links are among what is not as it was: whose they are, only a look at the whole tree can tell."""
    linked = frozenset(path for group in tree.header.hardlinks for path in group)
    return any(is_at_or_below(path, again.gone) for path in linked) or any(
        not entry.is_dir and (path in linked or inode_of(root, path) is not None)
        for path, entry in again.entries.items()
    )


def files_of(entries: Iterable[Entry]) -> list[Entry]:
    """Return those whose content has to be copied; an empty file's too, for it is not to be read again either."""
    return [entry for entry in entries if entry.is_file and not entry.hardlink]


def files_to_copy(again: Again, walked: Manifest, parent: Manifest, copies: Copies) -> list[Entry]:
    """Return the files to copy in the pause: what is not as it was, and what a delta brings with it.

    That is what is linked with it, or was: no stamp says that another name of a file is gone with its directory.

    Args:
        again: What is not as it was.
        walked: The directory as it was.
        parent: What the delta is upon.
        copies: What was copied before.
    """
    files = files_of(again.entries.values())
    if again.tree is None:
        return files
    now, before = again.tree.entries, walked.entries
    changed = again.entries.keys() | (before.keys() - now.keys())
    groups = (*parent.header.hardlinks, *walked.header.hardlinks, *again.tree.header.hardlinks)
    linked = {path for group in groups if not changed.isdisjoint(group) for path in group if path in now}
    left = (now[path] for path in linked - again.entries.keys())
    return files + [entry for entry in files_of(left) if copies.of(entry) is None]


def write_out_upper(upper: int) -> Callable[[Entry, int], None]:
    """Return what writes out a file of an overlay, where it is in the upper layer."""

    def write_out(entry: Entry, _fd: int) -> None:
        with suppress(OSError):  # the overlay shows it from below: nothing was written to it
            fd = open_regular(upper, entry.path)
            try:
                linux.write_out(fd)
            finally:
                os.close(fd)

    return write_out


def write_out_itself(_entry: Entry, fd: int) -> None:
    """Write out an open file."""
    linux.write_out(fd)


def settled_before(started_ns: int) -> int:
    """Return the time before which a stamp that was read after some beginning proves what it says."""
    return started_ns - CLOCK_GRAIN_NS
