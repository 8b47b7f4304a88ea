"""The upper layer of an overlay: what was changed in it, at the cost of the change and not of the tree."""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import Holders
from sandpoint.engine.contents import always, differing
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry, Header, Manifest, make_manifest, parent
from sandpoint.engine.plan import Comparison, Plan, is_at_or_below, make_plan
from sandpoint.engine.tools import Check
from sandpoint.engine.walk import beyond_squashfs, entry_of, walk_tree

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""It is not there, or something else than a directory is above it."""

_MARKS = ("trusted.overlay.", "user.overlay.")


@dataclass(frozen=True)
class Changed:
    """What an overlay's upper layer changed: the steps, and the entries that they are about, as they were and are."""

    plan: Plan
    before: Manifest
    now: Manifest


def changed_since(
    before: int,
    now: int,
    uppers: Iterable[tuple[bytes, int]],
    check: Check,
    *,
    rules: Rules | None = None,
    links: Sequence[Sequence[bytes]] | None = None,
    made: Iterable[Entry] = (),
) -> Changed:
    """Return the steps that led from what an overlay hides to what it shows.

    Args:
        before: A descriptor of the directory as it was when the overlay was mounted.
        now: A descriptor of the directory as the overlay shows it.
        uppers: Its upper layer, and those of overlays mounted upon it or inside it since: for each the path within the
            directory where it begins, and a descriptor.
        check: May raise to stop.
        rules: What is left out.
        made: Entries of the hidden tree that its layers do not show, and that were made in the upper layer.
        links: Groups of hard links among what the overlay hides; None where hard links do not count.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: The filesystem failed.
    """
    rules = rules or Rules()
    source: dict[bytes, Entry] = {}
    target: dict[bytes, Entry] = {}
    excluded: list[bytes] = []
    for path, whole in (each for begin, upper in uppers for each in _candidates(begin, upper, rules, excluded)):
        check()
        for root, entries in ((before, source), (now, target)):
            entries.update((entry.path, entry) for entry in _entries(root, path, rules, excluded, whole=whole))
    for entry in made:
        source[entry.path] = entry
        target.update((each.path, each) for each in _entries(now, entry.path, Rules(), [], whole=False))
    if links is not None:
        _bring_links(source, target, before, now, links)
        _link(source, before)
        _link(target, now)

    def differ(doubtful: list[Entry]) -> set[bytes]:
        return differing(always(before), always(now), doubtful, check)

    header = Header(started_ns=0, stamps=False, excluded=tuple(sorted(set(excluded))))
    was, is_now = make_manifest(header, source.values()), make_manifest(header, target.values())
    return Changed(make_plan(was, is_now, differ=differ, comparison=Comparison()), was, is_now)


def made_anew(header: Header) -> list[Entry]:
    """Return the entries of a tree that are not in its layers: sockets, and directories of mounts."""
    mounts = frozenset(header.mounts)
    return [entry for entry in header.beyond_squashfs if stat.S_ISSOCK(entry.mode) or entry.path in mounts]


def delta_manifest(header: Header, changed: Changed, brought: Collection[bytes], before: int) -> Manifest:
    """Return the manifest of a delta that holds what changed, from the header of its parent.

    Args:
        header: The parent's, with the time and the stamps of this capture.
        changed: What changed.
        brought: Paths that are in the delta's layer.
        before: A descriptor of the directory as it was: for hard links that lost one of them.
    """
    plan = changed.plan
    steps = (*plan.added, *plan.replaced, *plan.touched, *plan.restamped)
    entries = {entry.path: changed.now.entries[entry.path] for entry in steps}
    entries |= {path: changed.now.entries[path] for path in brought}
    removed = tuple(entry.path for entry in plan.removed)
    gone = frozenset(removed) | entries.keys()
    groups = [tuple(path for path in group if path not in gone) for group in header.hardlinks]
    for group, left in zip(header.hardlinks, groups, strict=True):
        if left and len(left) < len(group):
            entries |= {entry.path: entry for entry in _relinked(left, before)}
    shown = {entry.path: entry for entry in header.beyond_squashfs if entry.path not in gone} | entries
    beyond = beyond_squashfs(shown.values(), frozenset(header.mounts), delta=True)
    return make_manifest(
        msgspec.structs.replace(
            header,
            excluded=tuple(sorted({*header.excluded, *changed.now.header.excluded})),
            beyond_squashfs=tuple(sorted(beyond, key=lambda entry: entry.path)),
            linked_outside=(),
            hardlinks=tuple(
                sorted((*(left for left in groups if len(left) > 1), *map(tuple, changed.now.hardlink_groups.values())))
            ),
            is_delta=True,
            removed=removed,
            kept=tuple(sorted(path for path in entries if path not in brought)),
        ),
        entries.values(),
    )


def _relinked(paths: Sequence[bytes], before: int) -> Iterator[Entry]:
    """Yield the entries of hard links that are left, linked with the first of them."""
    first, *others = paths
    entry = _one(before, first)
    yield entry
    for other in others:
        yield msgspec.structs.replace(entry, path=other, hardlink=first)


def _bring_links(
    source: dict[bytes, Entry], target: dict[bytes, Entry], before: int, now: int, links: Sequence[Sequence[bytes]]
) -> None:
    """Add hard links of files whose other name was renamed with a directory above it."""
    if not links:
        return
    moved = {each for path in target if path not in source and (each := _inode(now, path)) is not None}
    for group in links:
        for path in group:
            if path not in target and _inode(now, path) in moved:
                for root, entries in ((before, source), (now, target)):
                    with suppress(FileNotFoundError):
                        entries[path] = _one(root, path)


def _one(root: int, path: bytes) -> Entry:
    holders = Holders(root)
    try:
        return entry_of(path, *holders.of(path))
    finally:
        holders.close()


def _inode(root: int, path: bytes) -> tuple[int, int] | None:
    """Return what is the same for all hard links of a file that has several, None for other entries."""
    try:
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
    except OSError:
        return None
    return None if stat.S_ISDIR(status.st_mode) or status.st_nlink < 2 else (status.st_dev, status.st_ino)


def _link(entries: dict[bytes, Entry], root: int) -> None:
    """Note the hard links among entries of an open directory."""
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, entry in entries.items():
        if not entry.is_dir and (inode := _inode(root, path)) is not None:
            groups.setdefault(inode, []).append(path)
    for paths in groups.values():
        first, *others = sorted(paths)
        for other in others:
            entries[other] = msgspec.structs.replace(entries[other], hardlink=first)


def _candidates(begin: bytes, upper: int, rules: Rules, excluded: list[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each path that may have changed, and whether with all that lies below it."""
    yield begin, False
    pending = [b""]
    while pending:
        for path, is_dir, is_merged in _listed(upper, pending.pop()):
            shown = begin + b"/" + path if begin else path
            if rules.excludes(shown, is_dir=is_dir):
                excluded.append(shown)
                continue
            yield shown, not is_merged
            if is_merged:
                pending.append(path)


def _listed(upper: int, above: bytes) -> list[tuple[bytes, bool, bool]]:
    """Return what a directory of the layer holds: whether it is a directory itself, and one that shows lower files."""
    try:
        fd = linux.openat2(above or b".", _OPEN, dir_fd=upper, resolve=INSIDE)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return []  # a process that still writes there took it away
    try:
        prefix = above + b"/" if above else b""
        return [(prefix + os.fsencode(name), *_kind(fd, name)) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _kind(fd: int, name: str) -> tuple[bool, bool]:
    """Return whether an entry is a directory, and whether it neither hides what lies below it nor shows another one."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return False, False
        marks = os.listxattr(f"/proc/self/fd/{fd}/{name}", follow_symlinks=False)
    except FileNotFoundError:
        return False, False
    # `origin` and `impure` are notes of where files came from, and say nothing of what is shown.
    return True, not any(mark.startswith(_MARKS) and mark.endswith((".opaque", ".redirect")) for mark in marks)


def _entries(root: int, path: bytes, rules: Rules, excluded: list[bytes], *, whole: bool) -> Iterator[Entry]:
    holders = Holders(root, resolve=INSIDE)
    try:
        holder, name = holders.of(path)
        entry = entry_of(path, holder, name or b".")
        below = _walk_below(root, path) if whole and entry.is_dir else {}
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return
    finally:
        holders.close()
    yield entry
    left_out: set[bytes] = set()
    for inner, each in below.items():
        full = path + b"/" + inner
        if not inner or is_at_or_below(parent(full), frozenset(left_out)):
            continue
        if rules.excludes(full, is_dir=each.is_dir):
            left_out.add(full)
        else:
            yield msgspec.structs.replace(each, path=full, hardlink=b"")
    excluded += left_out


def _walk_below(root: int, path: bytes) -> dict[bytes, Entry]:
    fd = linux.openat2(path, _OPEN, dir_fd=root, resolve=INSIDE)
    try:
        return walk_tree(fd, Rules(), started_ns=0, stamps=False).entries
    finally:
        os.close(fd)
