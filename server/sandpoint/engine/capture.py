"""Capture: a directory into a layer and a manifest, full or of what has changed."""

import dataclasses
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile

import msgspec

from sandpoint.engine import linux, mounts, squashfs, tools, transfer
from sandpoint.engine.beside import beside
from sandpoint.engine.chain import Chain
from sandpoint.engine.contents import always, differing
from sandpoint.engine.delta import Delta, build
from sandpoint.engine.directory import open_directory
from sandpoint.engine.ignore import GitError, Rules, git_ignored
from sandpoint.engine.index import Index, read_index, write_index
from sandpoint.engine.layers import opened_layer
from sandpoint.engine.manifest import Entry, Header, Manifest, display, layers_with, make_manifest, parent, read_header
from sandpoint.engine.overlay import Overlay, own_overlays, shown_by
from sandpoint.engine.plan import Comparison, is_at_or_below, make_plan
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check, Monitor
from sandpoint.engine.upper import Changed, Past, changed_since, delta_manifest, made_anew
from sandpoint.engine.walk import UnreadableError, beyond_squashfs, entry_of, moved_since, walk_tree
from sandpoint.errors import BackupCreateError, BackupIntegrityError, StoreUnavailableError
from sandpoint.models import Captured, CaptureRequest, Kind, Parent, Source, StoredFile

_ATTEMPTS = 2
"""Whole captures before paths that are still written to are named as unstable."""

_FEW_ENTRIES, _MANY_ENTRIES = 500, 5000
_FEW_BYTES = 1 << 20
"""So many may be in a delta, whatever the size of the tree, and in no case more: a tar stream takes mksquashfs more
than in proportion (20 entries 9 ms, 64,000 half a minute)."""

_SETTLE_WAIT_S = 2.0
"""How long a capture waits for the filesystem to settle. Without, it is as good, but a later restore compares bytes."""

_COMPLAINT = re.compile(
    r"(?:Failed to read file|Failed to read symlink|Could not open|Cannot stat dir/file) (?:\./)?(.+?)"
    r"(?:, creating empty (?:file|symlink)| because .*)$"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """An open directory and what is special about where it lies."""

    path: str
    fd: int
    boundaries: frozenset[bytes]
    """Where foreign filesystems are mounted, relative to the directory."""
    stamps: bool
    """Whether stamps prove that a file is unchanged."""
    is_overlay: bool
    """Whether overlays of ours are mounted on it or below."""
    overlay: Overlay | None
    """The kernel overlay of ours that is mounted on it, if nothing else is mounted there."""

    def upper_is_stamped(self) -> bool:
        """Whether stamps prove that what was written to its overlay is unchanged."""
        if self.overlay is None:
            return False
        fd = os.open(self.overlay.upper, os.O_PATH)
        try:
            return mounts.filesystem_of(fd, mounts.list_mounts()) in mounts.STAMPED_FILESYSTEMS
        finally:
            os.close(fd)


@contextmanager
def opened_place(state: State, path: str) -> Iterator[Place]:
    """Open a directory. Overlays of ours below it are part of it, all other mounts are not.

    Raises:
        InvalidBackupConfigError: It cannot be opened.
    """
    fd = open_directory(path)
    try:
        table = mounts.list_mounts()
        overlays = own_overlays(state, path, table)
        own = {os.fsencode(overlay.record.dir) for overlay in overlays}
        below = {mount.point for mount in mounts.mounts_below(os.fsencode(path), table)}
        prefix = len(os.fsencode(path)) + 1
        yield Place(
            path,
            fd,
            boundaries=frozenset(point[prefix:] for point in below - own),
            stamps=mounts.filesystem_of(fd, table) in mounts.STAMPED_FILESYSTEMS and not own & below,
            is_overlay=bool(own),
            overlay=_on_top(overlays, path) if below <= own else None,
        )
    finally:
        os.close(fd)


def _on_top(overlays: Sequence[Overlay], path: str) -> Overlay | None:
    is_alone = len(overlays) == 1 and overlays[0].record.dir == path and overlays[0].record.kind == "kernel"
    return overlays[0] if is_alone else None


@dataclasses.dataclass(frozen=True)
class _Made:
    """A capture before it is sent: what a delta does not need to send again is None.

    `tree` is what the next capture is compared with, where that is worth keeping.
    """

    kind: Kind
    layer: StoredFile | None
    manifest: bytes | None
    header: Header
    file_count: int
    total_bytes: int
    tree: Manifest | None = None


def capture(request: CaptureRequest, state: State, monitor: Monitor) -> Captured:
    """Capture a directory, and send what was made through its grants.

    That is a delta where the request names a parent that is whole, and little has changed since; nothing at all where
    nothing has changed; else a full layer.

    Raises:
        InvalidBackupConfigError: The directory or a pattern is not fit.
        BackupCreateError: Something cannot be read, a tool is missing or failed, or there is no space.
        StoreUnavailableError: The store cannot be written.
    """
    with opened_place(state, request.dir) as place, state.working() as work:
        try:
            made = _capture_delta(request, place, state, work, monitor) or _capture_full(request, place, work, monitor)
        except UnreadableError as error:
            raise BackupCreateError(
                f"{request.dir} cannot be backed up, for this user may not read {error}; "
                "change its mode, exclude it, or run as its owner"
            ) from None
        except (tools.ToolFailedError, tools.ToolMissingError, GitError) as error:
            raise BackupCreateError(f"{request.dir} cannot be backed up: {error}") from None
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise BackupCreateError(f"{request.dir} cannot be backed up: {error.strerror}{where}") from error
        monitor.progress("storing", 0)
        if made.layer is not None:
            transfer.send(request.layer, made.layer, state)
        manifest = None if made.manifest is None else transfer.send_bytes(request.manifest, made.manifest)
        if made.tree is not None:
            write_index(state, request.dir, _index(request, made, manifest, made.tree))
        return Captured(
            kind=made.kind,
            layer=made.layer,
            manifest=manifest,
            file_count=made.file_count,
            total_bytes=made.total_bytes,
            unstable_paths=tuple(display(path) for path in made.header.unstable),
            skipped_mounts=tuple(display(path) for path in made.header.mounts),
        )


def _index(request: CaptureRequest, made: _Made, manifest: StoredFile | None, tree: Manifest) -> Index:
    base = request.parent if made.kind == "delta" else None

    def digests(below: Sequence[Source], own: StoredFile | None) -> tuple[str, ...]:
        return tuple(each.sha256 for each in (*below, *([own] if own is not None else [])))

    return Index(
        digests(base.manifests if base else (), manifest), digests(base.layers if base else (), made.layer), tree
    )


def _made(kind: Kind, layer: StoredFile | None, tree: Manifest, *, stored: Manifest | None) -> _Made:
    files = [entry for entry in tree.entries.values() if not entry.is_dir]
    return _Made(
        kind,
        layer,
        None if stored is None else stored.content,
        tree.header,
        file_count=len(files),
        total_bytes=sum(entry.size for entry in files if not entry.hardlink),
        tree=tree if tree.header.stamps else None,
    )


# -- deltas --


def _capture_delta(request: CaptureRequest, place: Place, state: State, work: str, monitor: Monitor) -> _Made | None:
    """Capture what changed since the parent; None where a full layer is better."""
    if request.parent is None:
        return None
    try:
        layers = [transfer.fetch(source, state, monitor.check, reread=False) for source in request.parent.layers]
        manifests = [transfer.fetch_bytes(source) for source in request.parent.manifests]
        if place.overlay is not None:
            return _capture_upper(request, request.parent, place.overlay, manifests, layers, place, work, monitor)
        if not place.stamps:
            return None  # every file would have to be compared with the layers, which takes longer than a full capture
        index = read_index(state, request.dir)
        if index is None or index.manifests != tuple(source.sha256 for source in request.parent.manifests):
            return _capture_since(request, Manifest.from_chain(manifests), layers, place, work, monitor)
        made = _capture_since(request, index.tree, layers, place, work, monitor)
        return dataclasses.replace(made, tree=None) if made is not None and made.tree is index.tree else made
    except (BackupIntegrityError, StoreUnavailableError):
        return None  # nothing is built on what is damaged


def _capture_since(
    request: CaptureRequest, parent: Manifest, layers: Sequence[str], place: Place, work: str, monitor: Monitor
) -> _Made | None:
    ignored = git_ignored(place.fd, monitor.check) if request.use_gitignore else frozenset()
    rules = Rules(request.excludes, paths=ignored, cover=_cover(request))
    chain = Chain(lambda: layers, parent, work, monitor.check)

    def differ(doubtful: list[Entry]) -> set[bytes]:
        with chain.opened(doubtful) as kept:
            return differing(always(place.fd), kept, doubtful, monitor.check, write_out=True)

    moved: dict[bytes, int] = {}
    for _ in range(_ATTEMPTS):
        present = walk_tree(
            place.fd,
            rules,
            started_ns=time.time_ns(),
            stamps=True,
            boundaries=place.boundaries,
            known=parent,
            counted=lambda count: monitor.progress("reading", count, len(parent.entries)),
        )
        plan = make_plan(parent, present, differ=differ, comparison=Comparison(owners=True))
        if plan.is_empty:
            is_known = all(parent.entries.get(path) is entry for path, entry in present.entries.items())
            tree = parent if is_known else Manifest(present.header, present.entries, parent.layers)
            return _made("delta", None, tree, stored=None)
        delta = Delta(plan, present)
        if not _is_worth(delta, len(parent.entries), sum(entry.size for entry in parent.entries.values())):
            return None
        monitor.progress("archiving", 0, len(delta.entries))
        moved = _build_delta(delta, request, place, monitor, written=place.fd)
        if not moved:
            break
    present = _as_delta_has_it(present, moved)
    with transfer.sealing(request.layer, monitor.check) as sealed:
        shown = beyond_squashfs(present.entries.values(), frozenset(present.header.mounts), delta=True)
        header = msgspec.structs.replace(present.header, beyond_squashfs=shown)
        stored = Manifest(header, present.entries).since(parent, delta.brought)
        tree = Manifest(header, present.entries, layers_with(parent.layers, stored, len(layers)))
        return _made("delta", sealed(), tree, stored=stored)


def _is_worth(delta: Delta, parent_entries: int, parent_bytes: int) -> bool:
    """Whether a delta is quick to build, and much smaller than a full layer would be."""
    return (
        len(delta.entries) + len(delta.whiteouts) <= max(_FEW_ENTRIES, min(_MANY_ENTRIES, parent_entries // 4))
        and delta.bytes <= max(_FEW_BYTES, parent_bytes // 2)
        and not any(b"=" in name for entry in delta.entries for name in entry.xattrs or ())  # no tar file can say it
    )


def _build_delta(
    delta: Delta, request: CaptureRequest, place: Place, monitor: Monitor, *, written: int | None
) -> dict[bytes, int]:
    out = transfer.unfinished(request.layer)
    with suppress(FileNotFoundError):
        os.unlink(out)
    return build(delta, root=place.fd, out=out, compression=request.compression, written=written, check=monitor.check)


def _as_delta_has_it(present: Manifest, moved: Mapping[bytes, int]) -> Manifest:
    """Return the tree with files that were written to all the time as the layer happens to hold them."""
    if not moved:
        return present
    entries = dict(present.entries)
    for path, entry in present.entries.items():
        size = moved.get(entry.hardlink or path)
        if size is not None and not entry.is_dir:
            entries[path] = msgspec.structs.replace(entry, size=size, ino=0, ctime_ns=0)
    return Manifest(msgspec.structs.replace(present.header, unstable=tuple(sorted(moved))), entries)


def _capture_upper(
    request: CaptureRequest,
    parent: Parent,
    overlay: Overlay,
    manifests: Sequence[bytes],
    layers: Sequence[str],
    place: Place,
    work: str,
    monitor: Monitor,
) -> _Made | None:
    """Capture what the upper layer of an overlay changed since the parent, at the cost of that alone."""
    ignored = git_ignored(place.fd, monitor.check) if request.use_gitignore else frozenset()
    rules = Rules(request.excludes, paths=ignored, cover=_cover(request))
    header = read_header(manifests[-1])
    past = _past(header, parent, overlay, manifests, layers, place)
    stamps = place.upper_is_stamped()
    upper = os.open(overlay.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with shown_by(layers, work) as before:
            for _ in range(_ATTEMPTS):
                started = time.time_ns()
                changed = changed_since(
                    before,
                    place.fd,
                    [(b"", upper)],
                    monitor.check,
                    rules=rules,
                    links=header.hardlinks,
                    made=made_anew(header),
                    past=past,
                )
                if changed.plan.is_empty:
                    return _grown(parent, past, changed, None, None, header)
                delta = Delta(changed.plan, changed.now)
                if not _is_worth(delta, parent.file_count, parent.total_bytes):
                    return None
                moved = _build_delta(delta, request, place, monitor, written=upper if stamps else None)
                if not moved:
                    break
            changed = dataclasses.replace(changed, now=_as_delta_has_it(changed.now, moved))
            stored = delta_manifest(
                msgspec.structs.replace(
                    header,
                    started_ns=started,
                    stamps=stamps,
                    device=os.fstat(place.fd).st_dev,
                    unstable=tuple(sorted(moved)),
                ),
                changed,
                delta.brought,
                before,
                past,
            )
    finally:
        os.close(upper)
    with transfer.sealing(request.layer, monitor.check) as sealed:
        return _grown(parent, past, changed, sealed(), stored.content, stored.header)


def _grown(
    parent: Parent,
    past: Past,
    changed: Changed,
    layer: StoredFile | None,
    manifest: bytes | None,
    header: Header,
) -> _Made:
    files, size = past.growth(changed, header.hardlinks)
    return _Made("delta", layer, manifest, header, parent.file_count + files, parent.total_bytes + size)


def _past(
    header: Header,
    parent: Parent,
    overlay: Overlay,
    manifests: Sequence[bytes],
    layers: Sequence[str],
    place: Place,
) -> Past:
    """Return what manifests say of the parent that its layers do not show, and what was upon it.

    What the overlay itself is mounted upon says nothing: it is as its layers show it.
    """
    shown = overlay.record.layers
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(layers, shown, strict=False)))
    return Past.read(
        header,
        manifests[common:],
        [transfer.fetch_bytes(source) for source in parent.dropped],
        device=os.fstat(place.fd).st_dev,
        by_name=common < len(shown),
    )


# -- full layers --


def _capture_full(request: CaptureRequest, place: Place, work: str, monitor: Monitor) -> _Made:
    cover = _cover(request)
    ignored = git_ignored(place.fd, monitor.check) if request.use_gitignore else frozenset()
    rules = Rules(request.excludes, paths=ignored, cover=cover)
    partial = transfer.unfinished(request.layer)
    with _reading_view(place) as view:
        for attempt in range(1, _ATTEMPTS + 1):
            with suppress(FileNotFoundError):
                os.unlink(partial)
            manifest, complaints = _walk_and_build(view, place, rules, request, work, monitor)
            with transfer.sealing(request.layer, monitor.check) as sealed:
                doubtful = [*moved_since(view, manifest), *_complained(view, manifest, complaints)]
                stored = sealed()
            if not doubtful:
                return _made("full", stored, manifest, stored=manifest)
            with opened_layer(partial, [entry.path for entry in doubtful], work, monitor.check) as layer:
                unstable = _unstable(view, layer, manifest, doubtful, monitor)
                if not unstable:
                    return _made("full", stored, manifest, stored=manifest)
                if attempt == _ATTEMPTS:
                    manifest = _as_layer_has_it(manifest, layer, unstable)
                    return _made("full", stored, manifest, stored=manifest)
    raise AssertionError("unreachable")


def _cover(request: CaptureRequest) -> Iterable[bytes]:
    if not request.cover:
        return ()
    return Manifest.from_chain([transfer.fetch_bytes(source) for source in request.cover]).entries


@contextmanager
def _reading_view(place: Place) -> Iterator[int]:
    """Yield a view of the directory in which no symlink leads anywhere, for mksquashfs goes by paths."""
    try:
        view = linux.clone_for_reading(place.fd, os.fsencode(place.path))
    except OSError:
        view = os.dup(place.fd)  # an ordinary user: whoever may swap links here can read no more than we
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

    def build(excluded: Sequence[bytes]) -> squashfs.Build:
        return squashfs.Build(
            view,
            transfer.unfinished(request.layer),
            excluded=excluded,
            compression=request.compression,
            scratch=work,
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
        building = build(manifest.header.excluded + manifest.header.mounts)
    return manifest, building.finish(monitor.check)


def settle(place: Place) -> bool:
    """Write out what is written through mappings, and return whether that is done: stamps prove nothing else.

    The kernel stamps a file at the first write to a mapped page; further writes go unseen until the page has been
    written out. So they are written out after the time that stamps are compared with was taken.
    """
    done: list[bool] = []

    def sync() -> None:
        with suppress(OSError):
            linux.sync_filesystem(place.fd, place.path)
            done.append(True)

    thread = threading.Thread(target=sync, name="sandpoint-settle", daemon=True)
    thread.start()
    thread.join(_SETTLE_WAIT_S)
    return bool(done)


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
        except FileNotFoundError:
            pass
        except OSError as error:
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
            entries[current] = there
        if there.is_dir:
            prefix = current + b"/" if current else b""
            names = {prefix + os.fsencode(name) for name in _names(layer, current or b".")}
            pending += [name for name in names if name not in entries]
            for child in manifest.children.get(current, []):
                if child not in names and child not in manifest.header.mounts:
                    entries.pop(child, None)
