"""The plan: the steps that turn one tree into another."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from sandpoint.engine.manifest import Entry, Manifest, Xattrs, display, parent
from sandpoint.models import Changes

Differ = Callable[[list[Entry]], set[bytes]]
"""Given regular files of the target whose size is the source's: the paths whose contents differ."""

_SECOND = 1_000_000_000
_SQUASHFS_SECONDS = 2**32
"""Its times are counted in 32 bits, and wrap."""


@dataclass
class Plan:
    """What to do to the source so that it equals the target; paths sorted.

    `added` are in the target only, `removed` in the source only. `replaced` are in both with another type or other
    contents; the source's entries below a directory that becomes something else are among `removed`. `touched`
    differ in mode, owner, times or extended attributes only. `restamped` are directories of which only the mtime
    differs, as it does after every change of the names in them: put right, but no news to anyone.
    """

    added: list[Entry] = field(default_factory=list)
    replaced: list[Entry] = field(default_factory=list)
    touched: list[Entry] = field(default_factory=list)
    restamped: list[Entry] = field(default_factory=list)
    removed: list[Entry] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether the trees are equal."""
        return not (self.added or self.replaced or self.touched or self.restamped or self.removed)

    def changes(self) -> Changes:
        """Return the plan as paths for people and programs."""
        return Changes(
            added=_names(self.added),
            modified=_names([*self.replaced, *self.touched]),
            removed=_names(self.removed),
        )


def _names(entries: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(sorted(display(entry.path) or "." for entry in entries))


@dataclass(frozen=True)
class Comparison:
    """How entries are compared.

    `owners`: whether owners, device nodes and privileged xattrs can be set here, which only root can; where they
    cannot, they do not count. `coarse_times`: whether the source is a mounted layer, which keeps whole seconds.
    `whole_seconds`: whether one of the two, whichever, has no finer times.
    """

    owners: bool = field(default_factory=lambda: os.geteuid() == 0)
    coarse_times: bool = False
    whole_seconds: bool = False

    def same_but_mtime(self, source: Entry, target: Entry) -> bool:
        """Whether mode, owner and extended attributes agree."""
        return (
            stat.S_IMODE(source.mode) == stat.S_IMODE(target.mode)
            and self.same_owner(source, target)
            and self.settable(source.xattrs) == self.settable(target.xattrs)
        )

    def same(self, source: Entry, target: Entry) -> bool:
        """Whether all attributes agree."""
        return self.same_but_mtime(source, target) and self.same_mtime(source, target)

    def same_owner(self, source: Entry, target: Entry) -> bool:
        """Whether user and group agree, or cannot be set anyway."""
        return not self.owners or (source.uid == target.uid and source.gid == target.gid)

    def settable(self, xattrs: Xattrs | None) -> Xattrs:
        """Return those extended attributes that can be set here."""
        return {
            name: value
            for name, value in (xattrs or {}).items()
            if self.owners or name.startswith((b"user.", b"system.posix_acl_"))
        }

    def same_mtime(self, source: Entry, target: Entry) -> bool:
        """Whether times of last modification agree, as far as the source can show them."""
        if source.mtime_ns == target.mtime_ns:
            return True
        if self.whole_seconds:
            return (source.mtime_ns // _SECOND - target.mtime_ns // _SECOND) % _SQUASHFS_SECONDS == 0
        whole = (target.mtime_ns // _SECOND) % _SQUASHFS_SECONDS * _SECOND
        return self.coarse_times and source.mtime_ns == whole


def make_plan(
    source: Manifest,
    target: Manifest,
    *,
    differ: Differ,
    comparison: Comparison,
    untouchable: Iterable[bytes] = (),
) -> Plan:
    """Compare two trees.

    Args:
        source: The tree as it is.
        target: The tree as it shall be. An entry that is the very object of the source's is equal without a look.
        differ: Compares contents where nothing else decides.
        comparison: What counts.
        untouchable: Paths that are left as they are in both (mounts).
    """
    skipped = frozenset(untouchable)
    plan = Plan()
    doubtful: list[Entry] = []
    relink = _wrongly_linked(source, target)
    for path, entry in target.entries.items():
        present = source.entries.get(path)
        if present is entry and path not in relink:
            continue
        if path in skipped:
            continue
        if present is None:
            plan.added.append(entry)
        elif path in relink or _must_replace(present, entry, comparison):
            plan.replaced.append(entry)
        elif entry.is_file and entry.size:
            doubtful.append(entry)
        else:
            _compare_attributes(present, entry, plan, comparison)
    _decide(doubtful, plan, source, differ, comparison)
    _leave_linked_outside(plan, source)
    _take_whole_groups(plan, target)
    plan.removed = [
        entry for path, entry in source.entries.items() if path not in target.entries and path not in skipped
    ]
    for steps in (plan.added, plan.replaced, plan.touched, plan.restamped):
        steps.sort(key=lambda entry: entry.path)
    return plan


def _must_replace(present: Entry, entry: Entry, comparison: Comparison) -> bool:
    if present.kind != entry.kind:
        return True
    if entry.is_file:
        return present.size != entry.size
    return present.target != entry.target or (comparison.owners and present.rdev != entry.rdev)


def _decide(doubtful: list[Entry], plan: Plan, source: Manifest, differ: Differ, comparison: Comparison) -> None:
    different = differ(doubtful) if doubtful else set()
    for entry in doubtful:
        if entry.path in different:
            plan.replaced.append(entry)
        else:
            _compare_attributes(source.entries[entry.path], entry, plan, comparison)


def _compare_attributes(present: Entry, entry: Entry, plan: Plan, comparison: Comparison) -> None:
    if not comparison.same_but_mtime(present, entry):
        plan.touched.append(entry)
    elif not comparison.same_mtime(present, entry):
        (plan.restamped if entry.is_dir else plan.touched).append(entry)


def _leave_linked_outside(plan: Plan, source: Manifest) -> None:
    """Bring anew what would be touched through a link that a file outside the tree shares: that one is not ours."""
    shared = frozenset(source.header.linked_outside)
    if shared:
        plan.replaced += [entry for entry in plan.touched if entry.path in shared]
        plan.touched = [entry for entry in plan.touched if entry.path not in shared]


def _first_of(manifest: Manifest, path: bytes) -> bytes:
    return manifest.entries[path].hardlink or path


def _wrongly_linked(source: Manifest, target: Manifest) -> set[bytes]:
    """Return paths of the target that share an inode with the wrong files, or not with the right ones."""
    wrong: set[bytes] = set()
    for members in target.hardlink_groups.values():
        present = [path for path in members if path in source.entries]
        if len({_first_of(source, path) for path in present}) > 1:
            wrong.update(present)
    for members in source.hardlink_groups.values():
        wanted = [path for path in members if path in target.entries]
        if len({_first_of(target, path) for path in wanted}) > 1:
            wrong.update(wanted)
    return wrong


def _take_whole_groups(plan: Plan, target: Manifest) -> None:
    """Where one member of a group of hard links is brought anew, bring them all: they arrive linked."""
    groups = target.hardlink_groups
    if not groups:
        return
    brought = {entry.path for entry in (*plan.added, *plan.replaced)}
    for members in groups.values():
        if brought.isdisjoint(members):
            continue
        for path in members:
            if path not in brought:
                plan.replaced.append(target.entries[path])
    replaced = {entry.path for entry in plan.replaced}
    plan.touched = [entry for entry in plan.touched if entry.path not in replaced]


def select(manifest: Manifest, paths: Sequence[bytes]) -> Manifest:
    """Return the part of a tree at and below some paths, with the directories that lead there."""
    wanted = frozenset(paths)
    chosen = {path for path in manifest.entries if is_at_or_below(path, wanted)}
    for path in (*chosen, *wanted):
        chosen.update(ancestors(path))
    return _part(manifest, {path: entry for path, entry in manifest.entries.items() if path in chosen})


def _part(manifest: Manifest, entries: dict[bytes, Entry]) -> Manifest:
    """Return a part of a tree, in which groups of hard links have a first one that is in it."""
    for members in manifest.hardlink_groups.values():
        first, *others = [path for path in members if path in entries] or [b""]
        for path, link in ((first, b""), *((other, first) for other in others)):
            if path and entries[path].hardlink != link:
                entries[path] = msgspec.structs.replace(entries[path], hardlink=link)
    return Manifest(manifest.header, entries)


def without(manifest: Manifest, paths: Sequence[bytes]) -> Manifest:
    """Return a tree less what is strictly below some paths."""
    if not paths:
        return manifest
    left_out = frozenset(paths)
    entries = {
        path: entry
        for path, entry in manifest.entries.items()
        if not path or not is_at_or_below(parent(path), left_out)
    }
    return _part(manifest, entries)


def ancestors(path: bytes) -> list[bytes]:
    """Return the directories above a path, the innermost first and the root `b""` last."""
    above = []
    while path:
        path = parent(path)
        above.append(path)
    return above


def is_at_or_below(path: bytes, directories: AbstractSet[bytes]) -> bool:
    """Whether a path or a directory above it is among some paths."""
    while path:
        if path in directories:
            return True
        path = parent(path)
    return False
