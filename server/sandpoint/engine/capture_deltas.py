"""Capture of what has changed: since a backup of the same directory, or on an overlay of ours."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import msgspec

from sandpoint.engine import transfer
from sandpoint.engine.chain import Chain
from sandpoint.engine.contents import Roots, always, differing
from sandpoint.engine.delta import Delta, build
from sandpoint.engine.freezing import (
    Copies,
    Freezer,
    files_of,
    files_to_copy,
    look_again,
    paused,
    settled_before,
    unproven,
    write_out_itself,
    write_out_upper,
)
from sandpoint.engine.ignore import Rules, git_ignored
from sandpoint.engine.index import read_index
from sandpoint.engine.made import ATTEMPTS, Made, covered, layer_file, made_of
from sandpoint.engine.manifest import Entry, Header, Manifest, layers_with, read_header
from sandpoint.engine.overlay import Overlay, shown_by
from sandpoint.engine.place import Place
from sandpoint.engine.plan import Comparison, make_plan
from sandpoint.engine.stamps import Stamps
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.engine.upper import Changed, Past, changed_since, delta_manifest, made_anew
from sandpoint.engine.walk import Looking, beyond_squashfs, came_unseen, walk_if_changed, walk_tree
from sandpoint.errors import BackupIntegrityError, StoreUnavailableError
from sandpoint.models import CaptureRequest, Parent, StoredFile

_FEW_ENTRIES, _MANY_ENTRIES = 500, 5000
_FEW_BYTES = 1 << 20
"""So many may be in a delta, whatever the size of the tree, and in no case more: a tar stream takes mksquashfs more
than in proportion (20 entries 9 ms, 64,000 half a minute)."""


def is_proven(place: Place) -> bool:
    """Whether stamps prove of a directory what was written to."""
    return place.stamps or place.upper_is_stamped()


def capture_delta(
    request: CaptureRequest, place: Place, state: State, work: str, monitor: Monitor, freezer: Freezer | None
) -> Made | None:
    """Capture what changed since the parent; None where a full layer is better."""
    parent = request.parent
    if parent is None or (freezer is not None and not is_proven(place)):
        return None
    check = monitor.check
    try:
        transfer.assure((*parent.layers, *parent.manifests), state, check)
        if place.overlay is not None:
            return _on_overlay(request, parent, place.overlay, place, state, work, monitor, freezer)
        if not place.stamps and not request.look:
            return None  # every file would have to be compared with the layers, which takes longer than a full capture
        index = read_index(state, request.dir)
        known = index is not None and index.manifests == tuple(source.sha256 for source in parent.manifests)
        tree = index.tree if index is not None and known else transfer.fetch_manifest(parent.manifests, state, check)
        chain = Chain(lambda: transfer.fetch_all(parent.layers, state, check), tree, work, check)
        to_fetch = transfer.bytes_to_fetch(parent.layers, state)
        if freezer is None:
            made = _capture_since(request, tree, chain, place, state, monitor, to_fetch=to_fetch)
        else:
            made = _frozen_since(request, tree, chain, place, state, work, monitor, freezer, to_fetch=to_fetch)
        return replace(made, tree=None) if known and made is not None and made.tree is tree else made
    except (BackupIntegrityError, StoreUnavailableError):
        return None  # nothing is built on what is damaged


def _capture_since(
    request: CaptureRequest,
    parent: Manifest,
    chain: Chain,
    place: Place,
    state: State,
    monitor: Monitor,
    *,
    to_fetch: int,
) -> Made | None:
    rules = _rules(request, place, state, monitor)
    comparison = Comparison(owners=True)

    def differ(doubtful: list[Entry]) -> set[bytes]:
        # What has other attributes comes into the delta whatever its bytes are.
        doubtful = [entry for entry in doubtful if comparison.same(parent.entries[entry.path], entry)]
        if sum(entry.size for entry in doubtful) < to_fetch:
            return {entry.path for entry in doubtful}  # sent anew, they cost less than the layers that have them
        if not doubtful:
            return set()
        with chain.opened(doubtful) as kept:
            return differing(always(place.fd), kept, doubtful, monitor.check, write_out=True)

    moved: dict[bytes, int] = {}
    for _ in range(ATTEMPTS):
        found = _walk(parent, place, rules, monitor)
        if found is None:
            return _same(parent, request)
        present = found
        plan = make_plan(parent, present, differ=differ, comparison=comparison)
        if plan.is_empty:
            return _unchanged(parent, present)
        if request.look:
            return None
        delta = Delta(plan, present)
        if not _is_worth(delta, len(parent.entries), sum(entry.size for entry in parent.entries.values())):
            return None
        monitor.progress("archiving", 0, len(delta.entries))
        moved = _build_delta(delta, request, place, monitor, written=place.fd)
        if not moved:
            break
    return _sealed_since(request, parent, _as_delta_has_it(present, moved), delta, monitor)


def _rules(request: CaptureRequest, place: Place, state: State, monitor: Monitor) -> Rules:
    ignored = git_ignored(place, monitor.check) if request.use_gitignore else frozenset()
    return Rules(request.excludes, paths=ignored, cover=covered(request, state, monitor))


def _walk(parent: Manifest, place: Place, rules: Rules, monitor: Monitor) -> Manifest | None:
    """Return the tree as it is; None where stamps prove that it is the parent's."""
    for _ in range(ATTEMPTS):
        found = _walk_once(parent, place, rules, monitor)
        if found is None:
            return None
        unseen = came_unseen(place.fd, found, rules)
        if not unseen:
            return found
        restless = Manifest(msgspec.structs.replace(found.header, unstable=tuple(sorted(unseen))), found.entries)
    return restless


def _walk_once(parent: Manifest, place: Place, rules: Rules, monitor: Monitor) -> Manifest | None:
    if not place.stamps:
        return walk_tree(place.fd, rules, started_ns=0, stamps=False, boundaries=place.boundaries)
    return walk_if_changed(place.fd, rules, **_looking(parent, place, monitor))


def _looking(parent: Manifest, place: Place, monitor: Monitor) -> Looking:
    return Looking(
        started_ns=time.time_ns(),
        stamps=True,
        boundaries=place.boundaries,
        known=parent,
        counted=lambda count: monitor.progress("reading", count, len(parent.entries)),
    )


def _same(parent: Manifest, request: CaptureRequest) -> Made:
    if request.look:
        return Made("delta", None, None, parent.header, file_count=0, total_bytes=0, tree=parent)
    return made_of("delta", None, parent, stored=None)


def _unchanged(parent: Manifest, present: Manifest) -> Made:
    return made_of("delta", None, Manifest(present.header, present.entries, parent.layers), stored=None)


def _sealed_since(request: CaptureRequest, parent: Manifest, present: Manifest, delta: Delta, monitor: Monitor) -> Made:
    below = 0 if request.parent is None else len(request.parent.layers)
    with transfer.sealing(layer_file(request), monitor.check) as sealed:
        shown = beyond_squashfs(present.entries.values(), frozenset(present.header.mounts), delta=True)
        header = msgspec.structs.replace(present.header, beyond_squashfs=shown)
        stored = Manifest(header, present.entries).since(parent, delta.brought)
        tree = Manifest(header, present.entries, layers_with(parent.layers, stored, below))
        return made_of("delta", sealed(), tree, stored=stored)


def _frozen_since(
    request: CaptureRequest,
    parent: Manifest,
    chain: Chain,
    place: Place,
    state: State,
    work: str,
    monitor: Monitor,
    freezer: Freezer,
    *,
    to_fetch: int,
) -> Made | None:
    """As `_capture_since`, with a pause in which only what changed since the walk is copied.

    The files whose bytes count were copied before it, and from the copies the layer is made after it.
    """
    check = monitor.check
    rules = _rules(request, place, state, monitor)
    comparison = Comparison(owners=True)
    present = walked = walk_tree(place.fd, rules, **_looking(parent, place, monitor))
    compared: set[bytes] = set()
    different: set[bytes] = set()

    def compare(doubtful: list[Entry], tree: Roots, *, write_out: bool) -> set[bytes]:
        if sum(entry.size for entry in doubtful) < to_fetch:
            return {entry.path for entry in doubtful}
        if not doubtful:
            return set()
        with chain.opened(doubtful) as kept:
            return differing(tree, kept, doubtful, check, write_out=write_out)

    def differ_before(doubtful: list[Entry]) -> set[bytes]:
        alike = [entry for entry in doubtful if comparison.same(parent.entries[entry.path], entry)]
        compared.update(entry.path for entry in alike)
        different.update(compare(alike, always(place.fd), write_out=True))
        return different

    delta = Delta(make_plan(parent, walked, differ=differ_before, comparison=comparison), walked)
    if not _may_freeze(request, delta, len(parent.entries), sum(entry.size for entry in parent.entries.values())):
        return None
    with Copies(work) as copies:
        copies.take(place.fd, files_of(delta.entries), check, write_out=write_out_itself)
        with Stamps(place.fd, walked, check) as stamps, paused(freezer) as pause:
            again = look_again(stamps, place.fd, walked, rules, check)
            files = files_to_copy(again, walked, parent, copies)
            copies.take(place.fd, files, check)
        present = again.applied_to(walked, files)

        def differ(doubtful: list[Entry]) -> set[bytes]:
            alike = [entry for entry in doubtful if comparison.same(parent.entries[entry.path], entry)]
            known = {entry.path for entry in alike if walked.entries.get(entry.path) is entry} & compared
            lost = {entry.path for entry in alike if entry.path not in known and copies.of(entry) is None}
            copied = [entry for entry in alike if entry.path not in known | lost]
            return (known & different) | lost | compare(copied, copies, write_out=False)

        plan = make_plan(parent, present, differ=differ, comparison=comparison)
        if plan.is_empty:
            return replace(_unchanged(parent, present), frozen_seconds=pause.seconds)
        delta = Delta(plan, present)
        if not _fits_tar(delta):
            return None
        monitor.progress("archiving", 0, len(delta.entries))
        moved = _build_delta(delta, request, place, monitor, written=place.fd, copies=copies)
    made = _sealed_since(request, parent, _as_delta_has_it(present, moved), delta, monitor)
    return replace(made, frozen_seconds=pause.seconds)


def _is_worth(delta: Delta, parent_entries: int, parent_bytes: int) -> bool:
    """Whether a delta is quick to build, and much smaller than a full layer would be."""
    return (
        len(delta.entries) + len(delta.whiteouts) <= max(_FEW_ENTRIES, min(_MANY_ENTRIES, parent_entries // 4))
        and delta.bytes <= max(_FEW_BYTES, parent_bytes // 2)
        and _fits_tar(delta)
    )


def _may_freeze(request: CaptureRequest, delta: Delta, parent_entries: int, parent_bytes: int) -> bool:
    """Whether a frozen capture is to be a delta; one that must be frozen is, whatever it costs after the pause."""
    if request.freeze == "always":
        return _fits_tar(delta)
    return _is_worth(delta, parent_entries, parent_bytes)


def _fits_tar(delta: Delta) -> bool:
    return not any(b"=" in name for entry in delta.entries for name in entry.xattrs or ())


def _build_delta(
    delta: Delta,
    request: CaptureRequest,
    place: Place,
    monitor: Monitor,
    *,
    written: int | None,
    copies: Copies | None = None,
) -> dict[bytes, int]:
    out = layer_file(request)
    with suppress(FileNotFoundError):
        os.unlink(out)
    return build(
        delta,
        root=place.fd,
        out=out,
        compression=request.compression,
        written=written,
        check=monitor.check,
        copied=copies.of if copies is not None else lambda _entry: None,
    )


def _as_delta_has_it(present: Manifest, moved: Mapping[bytes, int]) -> Manifest:
    """Return the tree with files that were written to all the time as the layer happens to hold them."""
    if not moved:
        return present
    entries = dict(present.entries)
    for path, entry in present.entries.items():
        size = moved.get(entry.hardlink or path)
        if size is not None and not entry.is_dir:
            entries[path] = msgspec.structs.replace(entry, size=size, ino=0, ctime_ns=0)
    unstable = tuple(sorted({*present.header.unstable, *moved}))
    return Manifest(msgspec.structs.replace(present.header, unstable=unstable), entries)


def _on_overlay(
    request: CaptureRequest,
    parent: Parent,
    overlay: Overlay,
    place: Place,
    state: State,
    work: str,
    monitor: Monitor,
    freezer: Freezer | None,
) -> Made | None:
    """Capture what the upper layer of an overlay changed since the parent, at the cost of that alone."""
    layers = transfer.fetch_all(parent.layers, state, monitor.check)
    with ExitStack() as opened:
        try:
            before = opened.enter_context(shown_by(layers, work))
        except OSError:
            return None  # no loop device is left, say; a full capture needs none
        upper = os.open(overlay.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        opened.callback(os.close, upper)
        with open(transfer.fetch(parent.manifests[-1], state, monitor.check), "rb") as file:
            header = read_header(file)
        past = _past(header, parent, overlay, layers, place, state, monitor)
        rules = _rules(request, place, state, monitor)
        look = partial(
            changed_since,
            before,
            place.fd,
            [(b"", upper)],
            monitor.check,
            rules=rules,
            links=header.hardlinks,
            made=made_anew(header),
            past=past,
        )
        upon = _Upon(request, parent, header, past, before, upper, place, rules, look, monitor)
        if freezer is None:
            return _capture_upper(upon)
        return _frozen_upper(upon, work, freezer)


@dataclass(frozen=True)
class _Upon:
    """What a capture of an overlay's upper layer is made of."""

    request: CaptureRequest
    parent: Parent
    header: Header
    past: Past
    before: int
    upper: int
    place: Place
    rules: Rules
    look: Callable[[], Changed]
    monitor: Monitor

    def look_well(self) -> Changed:
        """Look again if something came where it had been looked already; name where that goes on."""
        for _ in range(ATTEMPTS):
            changed = self.look()
            unseen = came_unseen(self.place.fd, changed.now, self.rules, upper=self.upper)
            if not unseen:
                break
        header = msgspec.structs.replace(changed.now.header, unstable=tuple(sorted(unseen)))
        return replace(changed, now=Manifest(header, changed.now.entries))


def _capture_upper(upon: _Upon) -> Made | None:
    stamps = upon.place.upper_is_stamped()
    for _ in range(ATTEMPTS):
        started = time.time_ns()
        changed = upon.look_well()
        if changed.plan.is_empty:
            return _unchanged_upper(upon, changed)
        if upon.request.look:
            return None
        delta = Delta(changed.plan, changed.now)
        if not _is_worth(delta, upon.parent.file_count, upon.parent.total_bytes):
            return None
        written = upon.upper if stamps else None
        moved = _build_delta(delta, upon.request, upon.place, upon.monitor, written=written)
        if not moved:
            break
    return _sealed_upper(upon, changed, delta, moved, started, stamps=stamps)


def _frozen_upper(upon: _Upon, work: str, freezer: Freezer) -> Made | None:
    """As `_capture_upper`, with a pause; see `_frozen_since`."""
    check, place = upon.monitor.check, upon.place
    started = time.time_ns()
    changed = upon.look()
    delta = Delta(changed.plan, changed.now)
    if not _may_freeze(upon.request, delta, upon.parent.file_count, upon.parent.total_bytes):
        return None
    with Copies(work) as copies:
        copies.take(place.fd, files_of(delta.entries), check, write_out=write_out_upper(upon.upper))
        with paused(freezer) as pause:
            changed = upon.look()
            delta = Delta(changed.plan, changed.now)
            files = [each for each in files_of(delta.entries) if not copies.has(each, settled_before(started))]
            copies.take(place.fd, files, check)
        if changed.plan.is_empty:
            made = _unchanged_upper(upon, changed)
        elif not _fits_tar(delta):
            return None
        else:
            moved = _build_delta(delta, upon.request, place, upon.monitor, written=upon.upper, copies=copies)
            changed = replace(changed, now=unproven(changed.now, files))
            made = _sealed_upper(upon, changed, delta, moved, started, stamps=True)
    return replace(made, frozen_seconds=pause.seconds)


def _sealed_upper(
    upon: _Upon, changed: Changed, delta: Delta, moved: Mapping[bytes, int], started: int, *, stamps: bool
) -> Made:
    changed = replace(changed, now=_as_delta_has_it(changed.now, moved))
    now = msgspec.structs.replace(
        upon.header,
        started_ns=started,
        stamps=stamps,
        device=os.fstat(upon.place.fd).st_dev,
        unstable=changed.now.header.unstable,
    )
    stored = delta_manifest(now, changed, delta.brought, upon.before, upon.past)
    with transfer.sealing(layer_file(upon.request), upon.monitor.check) as sealed:
        return _grown(upon.parent, upon.past, changed, sealed(), stored.content, stored.header)


def _unchanged_upper(upon: _Upon, changed: Changed) -> Made:
    header = msgspec.structs.replace(upon.header, unstable=changed.now.header.unstable)
    return _grown(upon.parent, upon.past, changed, None, None, header)


def _grown(
    parent: Parent,
    past: Past,
    changed: Changed,
    layer: StoredFile | None,
    manifest: bytes | None,
    header: Header,
) -> Made:
    files, size = past.growth(changed, header.hardlinks)
    return Made("delta", layer, manifest, header, parent.file_count + files, parent.total_bytes + size)


def _past(
    header: Header,
    parent: Parent,
    overlay: Overlay,
    layers: Sequence[str],
    place: Place,
    state: State,
    monitor: Monitor,
) -> Past:
    """Return what manifests say of the parent that its layers do not show, and what was upon it.

    What the overlay itself is mounted upon says nothing: it is as its layers show it.
    """
    shown = overlay.record.layers
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(layers, shown, strict=False)))
    upon, dropped = (
        [transfer.fetch_bytes(source, state, monitor.check) for source in sources]
        for sources in (parent.manifests[common:], parent.dropped)
    )
    return Past.read(
        header,
        upon,
        dropped,
        device=os.fstat(place.fd).st_dev,
        by_name=common < len(shown),
    )
