"""Differences between two trees path by path, with what text files say on either side."""

import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sandpoint.engine.contents import Roots, open_regular
from sandpoint.engine.manifest import Entry, Manifest, display
from sandpoint.engine.patches import Blob, is_text, make_patch
from sandpoint.engine.plan import Comparison, Plan
from sandpoint.engine.tools import Check
from sandpoint.models import Attribute, FileDiff, FileKind, FileState, Omission

MAX_FILE_BYTES = 1 << 20
"""A larger file is not shown."""

_KINDS: dict[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def kind_of(entry: Entry) -> FileKind:
    """Return the word for an entry's type."""
    return _KINDS.get(entry.kind, "device")


@dataclass(frozen=True)
class Side:
    """One of the two trees, and how its regular files are opened."""

    manifest: Manifest
    opened: Callable[[Sequence[Entry]], AbstractContextManager[Roots]]

    def first_of(self, entry: Entry) -> Entry:
        """Return the first of the hard links that an entry is among, else itself."""
        return self.manifest.entries[entry.hardlink] if entry.hardlink else entry


@dataclass(frozen=True)
class Difference:
    """A path whose entries differ, by attributes alone where its contents are the same."""

    old: Entry | None
    new: Entry | None
    same_content: bool = False

    @property
    def path(self) -> bytes:
        """The path."""
        entry = self.old or self.new
        assert entry is not None
        return entry.path


def differences(plan: Plan, source: Manifest) -> list[Difference]:
    """Return what a plan changes, from its source to its target, in order of the paths."""
    found = [Difference(None, entry) for entry in plan.added]
    found += [Difference(entry, None) for entry in plan.removed]
    found += [Difference(source.entries[entry.path], entry) for entry in plan.replaced]
    found += [Difference(source.entries[entry.path], entry, same_content=True) for entry in plan.touched]
    return sorted(found, key=lambda difference: difference.path)


def turned(found: Iterable[Difference]) -> list[Difference]:
    """Return differences in the other direction."""
    return [Difference(each.new, each.old, each.same_content) for each in found]


def describe(
    found: Sequence[Difference], old: Side, new: Side, *, max_bytes: int, comparison: Comparison, check: Check
) -> list[FileDiff]:
    """Return differences with their patches.

    Args:
        found: What differs, in the order that it is to be described.
        old: The tree as it was.
        new: The tree as it is.
        max_bytes: Of all patches; contents of what comes after are left out.
        comparison: Which attributes count.
        check: May raise to stop.
    """
    described: list[FileDiff] = []
    with (
        _opened(old, [each.old for each in found if _is_shown(each)]) as before,
        _opened(new, [each.new for each in found if _is_shown(each)]) as after,
    ):
        left = max_bytes
        for each in found:
            check()
            patch, omitted = "", _why_omitted(each, left)
            if omitted is None:
                patch, omitted = _patch(each, (old, before), (new, after), check)
            if len(patch.encode()) > left:
                patch, omitted, left = "", "limit", 0
            left -= len(patch.encode())
            described.append(
                FileDiff(
                    path=display(each.path) or ".",
                    change="added" if each.old is None else "removed" if each.new is None else "modified",
                    old=_state(each.old),
                    new=_state(each.new),
                    attributes=_attributes(each, comparison),
                    patch=patch,
                    omitted=omitted,
                )
            )
    return described


def _is_shown(difference: Difference) -> bool:
    return not difference.same_content and _why_omitted(difference, 1) is None


def _why_omitted(difference: Difference, left: int) -> Omission | None:
    entries = [entry for entry in (difference.old, difference.new) if entry is not None and _has_text(entry)]
    if difference.same_content or not entries:
        return None
    if any(entry.size > MAX_FILE_BYTES for entry in entries):
        return "large"
    return "limit" if left <= 0 else None


def _has_text(entry: Entry) -> bool:
    """Whether a patch could say it."""
    return entry.is_file or entry.is_symlink


def _opened(side: Side, entries: Iterable[Entry | None]) -> AbstractContextManager[Roots]:
    wanted = {entry.hardlink or entry.path: side.first_of(entry) for entry in entries if entry and _is_read(entry)}
    if not wanted:
        return nullcontext(_nowhere)
    return side.opened(list(wanted.values()))


def _is_read(entry: Entry) -> bool:
    return entry.is_file and entry.size > 0


def _nowhere(path: bytes) -> int:
    raise AssertionError(f"{display(path)} was not to be read")


class _NotShownError(Exception):
    def __init__(self, why: Omission) -> None:
        super().__init__(why)
        self.why = why


def _patch(
    difference: Difference, old: tuple[Side, Roots], new: tuple[Side, Roots], check: Check
) -> tuple[str, Omission | None]:
    try:
        if difference.same_content:
            before, after = (_empty(entry) for entry in (difference.old, difference.new))
        else:
            before, after = _blob(difference.old, *old), _blob(difference.new, *new)
    except _NotShownError as error:
        return "", error.why
    if before and after and (before.content, stat.S_IFMT(before.mode)) == (after.content, stat.S_IFMT(after.mode)):
        before, after = _empty(difference.old), _empty(difference.new)
    if not all(blob is None or is_text(blob.content) for blob in (before, after)):
        return "", "binary"
    return make_patch(difference.path, before, after, check), None


def _empty(entry: Entry | None) -> Blob | None:
    return Blob(entry.mode, b"") if entry is not None and entry.is_file else None


def _blob(entry: Entry | None, side: Side, roots: Roots) -> Blob | None:
    """Return what a patch says of an entry; None for nothing, which is also what git makes of directories.

    Raises:
        _NotShownError: It cannot be said.
    """
    if entry is None or not _has_text(entry):
        return None
    content = entry.target
    if _is_read(entry):
        first = side.first_of(entry).path
        try:
            content = _read(roots(first), first)
        except OSError:
            raise _NotShownError("unreadable") from None
    if len(content) > MAX_FILE_BYTES:
        raise _NotShownError("large")
    return Blob(entry.mode, content)


def _read(root: int, path: bytes) -> bytes:
    with open(open_regular(root, path), "rb") as file:
        return file.read(MAX_FILE_BYTES + 1)  # a tree that is written to may have more than it had


def _state(entry: Entry | None) -> FileState | None:
    if entry is None:
        return None
    return FileState(kind=kind_of(entry), mode=f"{stat.S_IMODE(entry.mode):04o}", size_bytes=entry.size)


def _attributes(difference: Difference, comparison: Comparison) -> tuple[Attribute, ...]:
    old, new = difference.old, difference.new
    if old is None or new is None:
        return ()
    differs: dict[Attribute, bool] = {
        "mode": stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode),
        "owner": not comparison.same_owner(old, new),
        "xattrs": comparison.settable(old.xattrs) != comparison.settable(new.xattrs),
        "mtime": not (comparison.same_mtime(old, new) or comparison.same_mtime(new, old)),
        "links": old.hardlink != new.hardlink,
    }
    return tuple(name for name, is_different in differs.items() if is_different)
