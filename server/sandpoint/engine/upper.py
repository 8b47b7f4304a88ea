"""The upper layer of an overlay: what was changed in it, at the cost of the change and not of the tree."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import Holders
from sandpoint.engine.contents import differing
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry, Header, Manifest, make_manifest
from sandpoint.engine.plan import Comparison, Plan, make_plan
from sandpoint.engine.tools import Check
from sandpoint.engine.walk import entry_of, walk_tree

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""It is not there, or something else than a directory is above it."""

_MARKS = ("trusted.overlay.", "user.overlay.")


def changed_since(before: int, now: int, uppers: Iterable[tuple[bytes, int]], check: Check) -> Plan:
    """Return the steps that led from what an overlay hides to what it shows.

    Args:
        before: A descriptor of the directory as it was when the overlay was mounted.
        now: A descriptor of the directory as the overlay shows it.
        uppers: Its upper layer, and those of overlays mounted upon it or inside it since: for each the path within the
            directory where it begins, and a descriptor.
        check: May raise to stop.

    Raises:
        UnreadableError: An entry may not be read.
        OSError: The filesystem failed.
    """
    source: dict[bytes, Entry] = {}
    target: dict[bytes, Entry] = {}
    for path, whole in (each for begin, upper in uppers for each in _candidates(begin, upper)):
        check()
        for root, entries in ((before, source), (now, target)):
            entries.update((entry.path, entry) for entry in _entries(root, path, whole=whole))

    def differ(doubtful: list[Entry]) -> set[bytes]:
        return differing(before, now, doubtful, check)

    return make_plan(_part(source), _part(target), differ=differ, comparison=Comparison())


def _part(entries: dict[bytes, Entry]) -> Manifest:
    # Hard links end where one of them is written to; among what was not, nothing changed.
    return make_manifest(
        Header(started_ns=0, stamps=False), (msgspec.structs.replace(entry, hardlink=b"") for entry in entries.values())
    )


def _candidates(begin: bytes, upper: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each path that may have changed, and whether with all that lies below it."""
    yield begin, False
    pending = [b""]
    while pending:
        for path, is_merged in _listed(upper, pending.pop()):
            yield begin + b"/" + path if begin else path, not is_merged
            if is_merged:
                pending.append(path)


def _listed(upper: int, above: bytes) -> list[tuple[bytes, bool]]:
    """Return what a directory of the layer holds, each with whether it is one that shows lower files too."""
    try:
        fd = linux.openat2(above or b".", _OPEN, dir_fd=upper, resolve=INSIDE)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return []  # a process that still writes there took it away
    try:
        prefix = above + b"/" if above else b""
        return [(prefix + os.fsencode(name), _is_merged(fd, name)) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _is_merged(fd: int, name: str) -> bool:
    """Whether an entry is a directory that neither hides what lies below it nor shows another one."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return False
        marks = os.listxattr(f"/proc/self/fd/{fd}/{name}", follow_symlinks=False)
    except FileNotFoundError:
        return False
    # `origin` and `impure` are notes of where files came from, and say nothing of what is shown.
    return not any(mark.startswith(_MARKS) and mark.endswith((".opaque", ".redirect")) for mark in marks)


def _entries(root: int, path: bytes, *, whole: bool) -> Iterator[Entry]:
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
    for inner, each in below.items():
        if inner:
            yield msgspec.structs.replace(each, path=path + b"/" + inner)


def _walk_below(root: int, path: bytes) -> dict[bytes, Entry]:
    fd = linux.openat2(path, _OPEN, dir_fd=root, resolve=INSIDE)
    try:
        return walk_tree(fd, Rules(), started_ns=0, stamps=False).entries
    finally:
        os.close(fd)
