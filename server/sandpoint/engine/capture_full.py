"""Capture of a whole directory into a full layer."""

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from sandpoint.engine import linux, squashfs, tools, transfer
from sandpoint.engine.beside import beside
from sandpoint.engine.contents import always, differing
from sandpoint.engine.ignore import Rules, git_ignored
from sandpoint.engine.layers import opened_layer
from sandpoint.engine.made import ATTEMPTS, Made, covered, layer_file, made_of
from sandpoint.engine.manifest import ACL_PREFIX, Entry, Manifest, display, has_acl, make_manifest, parent
from sandpoint.engine.place import Place, settle
from sandpoint.engine.plan import is_at_or_below
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check, Monitor
from sandpoint.engine.walk import UnreadableError, beyond_squashfs, entry_of, moved_since, number_of, walk_tree
from sandpoint.models import CaptureRequest

_CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""Of opening what a program could not read: it is gone, or a symlink or a socket is in its place."""

_COMPLAINT = re.compile(
    r"(?:Failed to read file|Failed to read symlink|Could not open|Cannot stat dir/file) (?:\./)?(.+?)"
    r"(?:, (?:creating empty (?:file|symlink)|ignoring)| because .*)$"
)


def capture_full(request: CaptureRequest, place: Place, state: State, work: str, monitor: Monitor) -> Made:
    """Capture all of it; see `sandpoint.engine.capture.capture`."""
    cover = covered(request, state, monitor)
    ignored = git_ignored(place, monitor.check) if request.use_gitignore else frozenset()
    rules = Rules(request.excludes, paths=ignored, cover=cover)
    partial = layer_file(request)
    with _reading_view(place) as view:
        for attempt in range(1, ATTEMPTS + 1):
            with suppress(FileNotFoundError):
                os.unlink(partial)
            manifest, complaints = _walk_and_build(view, place, rules, request, work, monitor)
            with transfer.sealing(partial, monitor.check) as sealed:
                doubtful = [*moved_since(view, manifest), *_complained(view, manifest, complaints)]
                stored = sealed()
            if not doubtful and squashfs.count_inodes(partial) != _count_inodes(manifest):
                doubtful = list(manifest.entries.values())  # something is missing, or is too much
            if not doubtful:
                return made_of("full", stored, manifest, stored=manifest)
            with opened_layer(partial, [entry.path for entry in doubtful], work, monitor.check) as layer:
                unstable = _unstable(view, layer, manifest, doubtful, monitor)
                if not unstable:
                    return made_of("full", stored, manifest, stored=manifest)
                if attempt == ATTEMPTS:
                    manifest = _as_layer_has_it(manifest, layer, unstable)
                    return made_of("full", stored, manifest, stored=manifest)
    raise AssertionError("unreachable")


@contextmanager
def _reading_view(place: Place) -> Iterator[int]:
    """Yield a view of the directory in which no symlink leads anywhere, for mksquashfs goes by paths."""
    view = place.root.clone_for_reading(place.fd, os.fsencode(place.path))
    try:
        yield view
    finally:
        os.close(view)


def _walk_and_build(
    view: int, place: Place, rules: Rules, request: CaptureRequest, work: str, monitor: Monitor
) -> tuple[Manifest, list[str]]:
    started = time.time_ns()
    stamps = (place.stamps or place.upper_is_stamped()) and settle(place)
    count = 0

    def walk(stop: Check) -> Manifest:
        def counted(entries: int) -> None:
            nonlocal count
            count = entries
            stop()

        manifest = walk_tree(
            view,
            rules,
            started_ns=started,
            stamps=stamps,
            boundaries=place.boundaries,
            counted=counted,
            own_cwd=linux.take_own_cwd(),
        )
        len(manifest.content)  # made now, while mksquashfs works
        return manifest

    def walked() -> Manifest:
        # In a thread of its own, for its own working directory.
        with beside(walk, lambda: monitor.progress("reading", count)) as result:
            manifest = result()
        monitor.progress("archiving", len(manifest.entries), len(manifest.entries))
        return manifest

    def build(excluded: Sequence[bytes], *, by_name: bool = False) -> squashfs.Build:
        return squashfs.Build(
            view,
            layer_file(request),
            excluded=excluded,
            compression=request.compression,
            scratch=work,
            by_name=by_name,
        )

    if rules.is_empty and not place.boundaries:
        # Nothing is left out, so mksquashfs need not wait for the walk; `moved_since` looks at both alike.
        building = build(())
        try:
            manifest = walked()
        except BaseException:
            building.kill()
            raise
    else:
        manifest = walked()
        left_out = manifest.header.excluded + manifest.header.mounts
        building = build(left_out, by_name=_leaves_links_out(view, manifest))
    return manifest, building.finish(monitor.check)


def _count_inodes(manifest: Manifest) -> int:
    """Return how many files, directories and others a layer of it has."""
    return sum(not entry.hardlink for entry in manifest.entries.values()) - len(
        frozenset(manifest.header.mounts) & manifest.entries.keys()
    )


def _leaves_links_out(view: int, manifest: Manifest) -> bool:
    """Whether something that is left out is, by another name, in the tree: a hard link, or a mount of a part of it."""
    header = manifest.header
    numbers = {number for path in header.mounts if (number := _number(view, path, links=1)) is not None}
    if header.linked_outside:
        numbers |= {number for path in header.excluded if (number := _number(view, path, links=2)) is not None}
    mounts = frozenset(header.mounts)
    return bool(numbers) and any(
        entry.ino in numbers for entry in manifest.entries.values() if entry.path not in mounts
    )


def _number(view: int, path: bytes, *, links: int) -> int | None:
    with suppress(OSError):
        status = os.stat(path, dir_fd=view, follow_symlinks=False)
        return number_of(status) if status.st_nlink >= links else None
    return None


def _complained(view: int, manifest: Manifest, complaints: Sequence[str]) -> list[Entry]:
    """Return entries that mksquashfs could not read but are readable; what vanished is none of them.

    Raises:
        UnreadableError: An entry is there, and cannot be read.
    """
    doubtful = []
    for complaint in complaints:
        match = _COMPLAINT.search(complaint)
        if match is None:
            raise tools.ToolFailedError(f"mksquashfs could not read a file: {complaint}")
        path = match[1].encode("utf-8", "surrogateescape")
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=view))
        except OSError as error:
            if error.errno not in _CHANGED:
                raise UnreadableError(f"{display(path)}: {error.strerror}") from None
        if path in manifest.entries:
            doubtful.append(manifest.entries[path])
    return doubtful


def _unstable(view: int, layer: int, manifest: Manifest, doubtful: Sequence[Entry], monitor: Monitor) -> list[bytes]:
    """Return the paths of which the layer does not hold what the manifest says."""
    wrong = [entry.path for entry in doubtful if not _agrees(layer, manifest, entry)]
    suspects = frozenset(wrong)
    files = [
        entry
        for entry in doubtful
        if entry.is_file and entry.size and entry.path not in suspects and _exists(view, entry)
    ]
    wrong += differing(always(view), always(layer), files, monitor.check)
    wrong += _otherwise_linked(layer, manifest, doubtful)
    return sorted(set(wrong))


def _otherwise_linked(layer: int, manifest: Manifest, doubtful: Sequence[Entry]) -> list[bytes]:
    """Return the paths among doubtful ones whose hard links in the layer are not those of the manifest."""
    firsts = {entry.hardlink or entry.path for entry in doubtful if not entry.is_dir}
    groups = [manifest.hardlink_groups.get(first, [first]) for first in firsts]
    found: dict[int, set[bytes]] = {}
    for path in {path for group in groups for path in group}:
        with suppress(OSError):  # what is missing is found by its name; what is not doubtful may not be extracted
            found.setdefault(os.stat(path, dir_fd=layer, follow_symlinks=False).st_ino, set()).add(path)
    there = frozenset(path for members in found.values() for path in members)
    wanted = {there.intersection(group) for group in groups}
    return [path for members in found.values() if members not in wanted for path in members]


def _exists(view: int, entry: Entry) -> bool:
    # What is gone meanwhile cannot be compared; the layer has it with its type and size, as it was before.
    try:
        os.stat(entry.path, dir_fd=view, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _agrees(layer: int, manifest: Manifest, entry: Entry) -> bool:
    if entry.path in manifest.header.mounts:
        return True
    path = entry.path or b"."
    try:
        there = entry_of(entry.path, layer, path)
        if there.kind != entry.kind or there.size != entry.size or there.target != entry.target:
            return False
        if not entry.is_dir:
            return True
        names = {os.fsencode(name) for name in _names(layer, path)}
    except OSError:
        return False
    mounts_here = frozenset(manifest.header.mounts)
    expected = {child for child in manifest.children.get(entry.path, ()) if child not in mounts_here}
    prefix = entry.path + b"/" if entry.path else b""
    return {prefix + name for name in names} == expected


def _names(layer: int, path: bytes) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=layer)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _as_layer_has_it(manifest: Manifest, layer: int, unstable: Sequence[bytes]) -> Manifest:
    """Return the manifest with unstable entries as the layer happens to hold them, and these named."""
    entries = dict(manifest.entries)
    for path in unstable:
        _take_from_layer(entries, manifest, layer, path)
    folders = frozenset(path for path, entry in entries.items() if entry.is_dir)
    gone = frozenset(path for path in {*manifest.entries, *map(parent, entries)} if path not in folders)
    kept = [entry for entry in entries.values() if not is_at_or_below(parent(entry.path), gone)]
    kept = _linked_as_in_layer(kept, layer)
    header = msgspec.structs.replace(
        manifest.header,
        unstable=tuple(unstable),
        beyond_squashfs=beyond_squashfs(kept, frozenset(manifest.header.mounts)),
    )
    return make_manifest(header, kept)


def _linked_as_in_layer(entries: Sequence[Entry], layer: int) -> list[Entry]:
    """Return entries with the hard links that the layer has among them: links may have changed while it was made."""
    groups: dict[int, list[bytes]] = {}
    for entry in entries:
        if not entry.is_dir:
            with suppress(OSError):
                status = os.stat(entry.path, dir_fd=layer, follow_symlinks=False)
                groups.setdefault(status.st_ino, []).append(entry.path)
    by_path = {entry.path: entry for entry in entries}
    for paths in groups.values():
        first, *others = sorted(paths)
        # One inode has one set of attributes; those that a walk saw are finer than the layer's.
        seen = next((by_path[path] for path in (first, *others) if by_path[path].ino), by_path[first])
        by_path[first] = msgspec.structs.replace(seen, path=first, hardlink=b"")
        by_path |= {path: msgspec.structs.replace(seen, path=path, hardlink=first) for path in others}
    return list(by_path.values())


def _with_acls(there: Entry, before: Entry | None) -> Entry:
    """Return a layer's entry with the ACLs that a walk saw: squashfs keeps none."""
    if before is None or before.kind != there.kind or not has_acl(before.xattrs):
        return there
    acls = {name: value for name, value in (before.xattrs or {}).items() if name.startswith(ACL_PREFIX)}
    return msgspec.structs.replace(there, xattrs={**(there.xattrs or {}), **acls})


def _take_from_layer(entries: dict[bytes, Entry], manifest: Manifest, layer: int, path: bytes) -> None:
    pending = [path]
    while pending:
        current = pending.pop()
        before = entries.get(current)
        try:
            # No stamp: it proves nothing about the file, and is compared by its bytes.
            there = msgspec.structs.replace(entry_of(current, layer, current or b"."), ino=0, ctime_ns=0)
        except OSError:
            entries.pop(current, None)
            continue
        if before is None or not (before.is_dir and there.is_dir):
            entries[current] = _with_acls(there, before)
        if there.is_dir:
            prefix = current + b"/" if current else b""
            names = {prefix + os.fsencode(name) for name in _names(layer, current or b".")}
            pending += [name for name in names if name not in entries]
            for child in manifest.children.get(current, []):
                if child not in names and child not in manifest.header.mounts:
                    entries.pop(child, None)
