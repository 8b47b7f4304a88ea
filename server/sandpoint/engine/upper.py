"""The upper layer of an overlay: what was changed in it, at the cost of the change and not of the tree."""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import Holders
from sandpoint.engine.contents import always, differing
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry, Header, Manifest, as_proven, make_manifest, parent, read_one
from sandpoint.engine.plan import Comparison, Plan, ancestors, is_at_or_below, make_plan
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


@dataclass(frozen=True)
class Past:
    """What is known of a tree besides what its layers show.

    `entries` are those of its manifests, from the first one that was captured of the overlay: with exact times, and a
    stamp where that proves something. `dropped` are the entries that manifests upon these had, None for what they
    removed; `links` the groups of hard links with these. With `by_name`, the manifests do not tell all that came and
    went again since the overlay was mounted: the names in directories that were written to are compared.
    """

    entries: Mapping[bytes, Entry] = field(default_factory=dict)
    dropped: Mapping[bytes, Entry | None] = field(default_factory=dict)
    links: tuple[tuple[bytes, ...], ...] = ()
    by_name: bool = False

    @classmethod
    def read(
        cls, header: Header, manifests: Iterable[bytes], dropped: Iterable[bytes], *, device: int, by_name: bool
    ) -> "Past":
        """Read manifest files.

        Args:
            header: That of the tree.
            manifests: Of the tree, from the first one on that its layers' times are not those of the directory.
            dropped: Those that were upon them.
            device: The directory's.
            by_name: See the class.

        Raises:
            BackupIntegrityError: One is damaged.
        """
        entries: dict[bytes, Entry] = {}
        for manifest in map(read_one, manifests):
            for path in manifest.header.removed:
                entries.pop(path, None)
            entries |= {path: as_proven(entry, manifest, device) for path, entry in manifest.entries.items()}
        # What a restore sets by itself is there exactly as it was, and not as a layer shows it.
        entries = {each.path: msgspec.structs.replace(each, ctime_ns=0) for each in header.beyond_squashfs} | entries
        upon: dict[bytes, Entry | None] = {}
        for manifest in map(read_one, dropped):
            upon |= dict.fromkeys(manifest.header.removed)
            upon |= manifest.entries
            header = manifest.header
        return cls(entries, upon, header.hardlinks, by_name)

    def growth(self, changed: Changed, links: Iterable[Sequence[bytes]]) -> tuple[int, int]:
        """Return how many more files and bytes there are than when the directory was last captured.

        Args:
            changed: What changed.
            links: All groups of hard links that there are now.
        """
        was = {path: each for path, each in {**changed.before.entries, **self.dropped}.items() if each is not None}
        is_now = dict(changed.now.entries)
        touched = was.keys() | is_now.keys() | self.dropped.keys()
        # Hard links that nothing was done to keep the bytes of their group.
        for group in self.links:
            one = next((was[path] for path in group if path in was), None)
            if one is not None:
                is_now |= {path: one for path in group if path not in touched}
        kept = len(is_now) - len(changed.now.entries)
        files = _count(is_now.values()) - kept - _count(was.values())
        return files, _bytes(is_now, links) - _bytes(was, self.links)

    def proves(self, present: Entry) -> bool:
        """Whether a stamp says that a file has the same bytes as in the tree."""
        known = self.entries.get(present.path)
        return known is not None and known.ctime_ns != 0 and known.has_stamp_of(present)


def _count(entries: Iterable[Entry]) -> int:
    return sum(not entry.is_dir for entry in entries)


def _bytes(entries: Mapping[bytes, Entry], links: Iterable[Sequence[bytes]]) -> int:
    """Return the size of files, that of hard links once."""
    first = {path: group[0] for group in links for path in group}
    sizes = {first.get(path, path): entry.size for path, entry in entries.items() if not entry.is_dir}
    return sum(sizes.values())


def changed_since(
    before: int,
    now: int,
    uppers: Iterable[tuple[bytes, int]],
    check: Check,
    *,
    rules: Rules | None = None,
    links: Sequence[Sequence[bytes]] | None = None,
    made: Iterable[Entry] = (),
    past: Past | None = None,
) -> Changed:
    """Return the steps that led from what an overlay hides, or was captured of it later, to what it shows.

    Args:
        before: A descriptor of the directory as it was when the overlay was mounted, or captured.
        now: A descriptor of the directory as the overlay shows it.
        uppers: Its upper layer, and those of overlays mounted upon it or inside it since: for each the path within the
            directory where it begins, and a descriptor.
        check: May raise to stop.
        rules: What is left out.
        made: Entries of the hidden tree that its layers do not show, and that were made in the upper layer.
        links: Groups of hard links among what the overlay hides; None where hard links do not count.
        past: What else is known of the tree before.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: The filesystem failed.
    """
    past = past or Past()
    looked = _Looked(before, now, rules or Rules(), past)
    for begin, upper in uppers:
        looked.at_upper(begin, upper, check)
    looked.at_untraced()
    looked.at_ignored()
    if links is not None:
        looked.at_links(links)
    looked.at_ancestors()
    source, target = looked.source, looked.target
    for entry in made:
        source[entry.path] = entry
        target.update((each.path, each) for each in entries_at(now, entry.path, Rules(), [], whole=False))
    if links is not None:
        _link(source, ([path for path in group if path in source] for group in links))
        _link(target, _groups(target, now))

    def differ(doubtful: list[Entry]) -> set[bytes]:
        unproven = [entry for entry in doubtful if not past.proves(entry)]
        return differing(always(before), always(now), unproven, check)

    header = Header(started_ns=0, stamps=False, excluded=tuple(sorted(set(looked.excluded))))
    was, is_now = make_manifest(header, source.values()), make_manifest(header, target.values())
    return Changed(make_plan(was, is_now, differ=differ, comparison=Comparison()), was, is_now)


class _Looked:
    """The entries that may differ, as they were and as they are."""

    def __init__(self, before: int, now: int, rules: Rules, past: Past) -> None:
        self._before = before
        self._now = now
        self._rules = rules
        self._past = past
        self.source: dict[bytes, Entry] = {}
        self.target: dict[bytes, Entry] = {}
        self.excluded: list[bytes] = []

    def at_upper(self, begin: bytes, upper: int, check: Check) -> None:
        """Look at all that an upper layer has or hides."""
        for path, whole in _candidates(begin, upper, self._rules):
            check()
            self._at(path, whole=whole)
            if self._past.by_name and not whole:
                for name in _names(self._before, path) ^ _names(self._now, path):
                    self._at(_join(path, name), whole=True)

    def at_untraced(self) -> None:
        """Look at what came after the overlay was mounted: if it went again, that left no trace in the upper layer."""
        for path in (*self._past.dropped, *(() if self._past.by_name else self._past.entries)):
            if path not in self.source and path not in self.target:
                self._at(path, whole=False)

    def at_ignored(self) -> None:
        """Look at what is excluded by its path: it may have come to be so, though nothing was written to it."""
        for path in self._rules.paths - self.source.keys() - self.target.keys():
            self._at(path, whole=True)

    def at_links(self, links: Sequence[Sequence[bytes]]) -> None:
        """Look at hard links of files whose other name was moved, or brought into the upper layer.

        The first may have taken a name that there was before; the second are no longer linked, changed or not.
        """
        moved = {each for path in self.target if links and (each := inode_of(self._now, path)) is not None}
        for group in links:
            is_touched = any(path in self.source or path in self.target for path in group)
            for path in group:
                if path not in self.target and (is_touched or (moved and inode_of(self._now, path) in moved)):
                    self._at(path, whole=False)

    def at_ancestors(self) -> None:
        """Look at the directories above: they come into the layer with what lies in them, and with their attributes."""
        above = {each for path in self.target for each in ancestors(path)}
        for path in above - self.target.keys():
            self._at(path, whole=False)

    def _at(self, path: bytes, *, whole: bool) -> None:
        known = self._past.entries
        if path in known and not whole:
            self.source[path] = known[path]
        else:
            # What has come to be excluded is no more: of the tree before, all counts.
            found = entries_at(self._before, path, Rules(), [], whole=whole)
            self.source.update((entry.path, known.get(entry.path, entry)) for entry in found)
        found = entries_at(self._now, path, self._rules, self.excluded, whole=whole)
        self.target.update((entry.path, entry) for entry in found)


def made_anew(header: Header) -> list[Entry]:
    """Return the entries of a tree that are not in its layers: sockets, and directories of mounts."""
    mounts = frozenset(header.mounts)
    return [entry for entry in header.beyond_squashfs if stat.S_ISSOCK(entry.mode) or entry.path in mounts]


def delta_manifest(header: Header, changed: Changed, brought: Collection[bytes], before: int, past: Past) -> Manifest:
    """Return the manifest of a delta that holds what changed, from the header of its parent.

    Args:
        header: The parent's, with the time and the stamps of this capture.
        changed: What changed.
        brought: Paths that are in the delta's layer.
        before: A descriptor of the directory as it was: for hard links that lost one of them.
        past: What else is known of that.
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
            entries |= {entry.path: entry for entry in _relinked(left, before, past)}
    shown = {entry.path: entry for entry in header.beyond_squashfs if entry.path not in gone} | entries
    # Nothing is mounted there any more: where something was done, there is a directory like others.
    changed_at = {above for path in gone for above in (path, *ancestors(path))}
    mounts = tuple(path for path in header.mounts if path not in changed_at)
    beyond = beyond_squashfs(shown.values(), frozenset(mounts), delta=True)
    return make_manifest(
        msgspec.structs.replace(
            header,
            excluded=tuple(sorted({*header.excluded, *changed.now.header.excluded})),
            mounts=mounts,
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


def _relinked(paths: Sequence[bytes], before: int, past: Past) -> Iterator[Entry]:
    """Yield the entries of hard links that are left, linked with the first of them."""
    first, *others = paths
    entry = _unlinked(past.entries[first]) if first in past.entries else _one(before, first)
    yield entry
    for other in others:
        yield msgspec.structs.replace(entry, path=other, hardlink=first)


def _unlinked(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, hardlink=b"") if entry.hardlink else entry


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above else name


def _names(root: int, path: bytes) -> set[bytes]:
    """Return the names in a directory, none where it is something else or not there."""
    try:
        fd = linux.openat2(path or b".", _OPEN, dir_fd=root, resolve=INSIDE)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return set()
    try:
        return {os.fsencode(name) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def _one(root: int, path: bytes) -> Entry:
    holders = Holders(root)
    try:
        return entry_of(path, *holders.of(path))
    finally:
        holders.close()


def inode_of(root: int, path: bytes) -> tuple[int, int] | None:
    """Return what is the same for all hard links of a file that has several, None for other entries."""
    try:
        fd = linux.openat2(path or b".", os.O_PATH | os.O_NOFOLLOW, dir_fd=root, resolve=INSIDE)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return None if stat.S_ISDIR(status.st_mode) or status.st_nlink < 2 else (status.st_dev, status.st_ino)


def _groups(entries: Mapping[bytes, Entry], root: int) -> Collection[list[bytes]]:
    """Return the hard links among entries of an open directory."""
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, entry in entries.items():
        if not entry.is_dir and (inode := inode_of(root, path)) is not None:
            groups.setdefault(inode, []).append(path)
    return groups.values()


def _link(entries: dict[bytes, Entry], groups: Iterable[Sequence[bytes]]) -> None:
    """Note hard links among entries; whatever these said of links before does not count."""
    entries.update((path, _unlinked(entry)) for path, entry in entries.items() if entry.hardlink)
    for paths in groups:
        first, *others = sorted(paths) or [b""]
        for other in others:
            entries[other] = msgspec.structs.replace(entries[other], hardlink=first)


def _candidates(begin: bytes, upper: int, rules: Rules) -> Iterator[tuple[bytes, bool]]:
    """Yield each path that may have changed, and whether with all that lies below it."""
    yield begin, False
    pending = [b""]
    while pending:
        for path, is_dir, is_merged in _listed(upper, pending.pop()):
            shown = _join(begin, path)
            in_part = is_merged and not rules.excludes(shown, is_dir=is_dir)
            yield shown, not in_part
            if in_part:
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


def entries_at(root: int, path: bytes, rules: Rules, excluded: list[bytes], *, whole: bool) -> Iterator[Entry]:
    """Yield what is at a path below an open directory, if anything: whatever its hard links.

    Args:
        root: The directory.
        path: Within it.
        rules: What is left out.
        excluded: Paths that are left out are added to it.
        whole: With all that lies below.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: The filesystem failed.
    """
    holders = Holders(root, resolve=INSIDE)
    try:
        holder, name = holders.of(path)
        entry = entry_of(path, holder, name or b".")
        if _is_excluded(path, rules, is_dir=entry.is_dir):
            excluded.append(path)
            return
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


def _is_excluded(path: bytes, rules: Rules, *, is_dir: bool) -> bool:
    if rules.is_empty or not path:
        return False
    return rules.excludes(path, is_dir=is_dir) or any(
        rules.excludes(above, is_dir=True) for above in ancestors(path)[:-1]
    )


def _walk_below(root: int, path: bytes) -> dict[bytes, Entry]:
    fd = linux.openat2(path, _OPEN, dir_fd=root, resolve=INSIDE)
    try:
        return walk_tree(fd, Rules(), started_ns=0, stamps=False).entries
    finally:
        os.close(fd)
