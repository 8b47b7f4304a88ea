"""Compare: a backup with a directory as it is, or with another backup."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from sandpoint.engine import tools, transfer
from sandpoint.engine.chain import Chain
from sandpoint.engine.contents import Roots, always, differing
from sandpoint.engine.differences import Difference, Side, describe, differences, turned
from sandpoint.engine.git_index import is_only_refreshed
from sandpoint.engine.ignore import GitError, Rules, git_ignored
from sandpoint.engine.index import Index, read_index
from sandpoint.engine.inplace import Compared
from sandpoint.engine.manifest import Entry, Manifest, display, paths_named
from sandpoint.engine.place import Place, opened_place
from sandpoint.engine.plan import Comparison, Plan, ancestors, make_plan, select, without
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check, Monitor
from sandpoint.engine.walk import UnreadableError, walk_tree
from sandpoint.errors import BackupIntegrityError, BackupRestoreError, InvalidBackupConfigError
from sandpoint.models import Changes, CompareRequest, ContentChanges, StoredBackup

_MANY_DOUBTFUL = 500
"""So many files that may differ are looked up in the index first, where reading them would take longer."""


def compare(request: CompareRequest, state: State, monitor: Monitor) -> Changes:
    """Return what a restore would do to a directory: nothing is changed.

    A directory that is not there yet counts as empty. Where only git has noted other stamps of files in its index, and
    the request says that this is no change, there is none.

    Raises:
        InvalidBackupConfigError: The directory is not fit, or a path is neither in it nor in the backup.
        BackupIntegrityError: The manifest or the layer is damaged.
        BackupRestoreError: The directory cannot be read.
    """
    with _with_directory(request, state, monitor) as found:
        if not request.git_stamps and is_only_refreshed(found.plan, found.source, found.target, found.comparison):
            return Changes()
        return found.plan.changes()


def compare_backups(older: CompareRequest, newer: CompareRequest, state: State, monitor: Monitor) -> Changes:
    """Return what changed from one backup to another.

    Files that neither stamps nor a layer that both have prove to be the same are compared by their bytes.

    Raises:
        InvalidBackupConfigError: A path is in neither.
        BackupIntegrityError: A manifest or a layer is damaged.
        BackupRestoreError: A layer cannot be read.
    """
    with _with_backup(older, newer, state, monitor) as found:
        return found.plan.changes()


def compare_contents(
    backup: CompareRequest, other: CompareRequest | None, max_bytes: int, state: State, monitor: Monitor
) -> ContentChanges:
    """Return what changed since a backup, with contents: in its directory, or up to another backup.

    Raises:
        InvalidBackupConfigError: The directory is not fit, or a path is in neither tree.
        BackupIntegrityError: A manifest or a layer is damaged.
        BackupRestoreError: The directory or a layer cannot be read.
    """
    opened = _with_directory(backup, state, monitor) if other is None else _with_backup(backup, other, state, monitor)
    with opened as found:
        since = differences(found.plan, found.source.manifest)
        old, new = found.source, found.target
        if other is None:  # the plan leads back to the backup
            since, old, new = turned(since), new, old
        monitor.progress("reading", 0, len(since))
        files = describe(since, old, new, max_bytes=max_bytes, comparison=found.comparison, check=monitor.check)
    return ContentChanges(
        added=_of(since, lambda each: each.old is None),
        modified=_of(since, lambda each: each.old is not None and each.new is not None),
        removed=_of(since, lambda each: each.new is None),
        files=tuple(files),
    )


def _of(found: Sequence[Difference], belongs: Callable[[Difference], bool]) -> tuple[str, ...]:
    return tuple(sorted(display(each.path) or "." for each in found if belongs(each)))


# -- what is compared --


@dataclass(frozen=True)
class _Found:
    """The plan from one tree to another, and both while they can be read."""

    plan: Plan
    source: Side
    target: Side
    comparison: Comparison


@contextmanager
def _with_directory(request: CompareRequest, state: State, monitor: Monitor) -> Iterator[_Found]:
    """Compare a directory with a backup of it: the plan is that of a restore."""
    target = read_manifest(request, state, monitor.check)
    with state.working() as work, explained(request, "compared with the backup"):
        chain = Chain(lambda: fetch_layers(request, state, monitor.check), target, work, monitor.check)
        if not state.root.exists(request.dir):
            wanted = _wanted(target, _named(request, target))
            plan = Plan(added=[entry for path, entry in wanted.entries.items() if path])
            yield _Found(plan, _nothing(target), Side(wanted, chain.opened), Comparison())
            return
        with opened_place(state, request.dir) as place:
            compared = compare_with(request, target, place, chain, state, monitor)
            present = Side(compared.present, _always_open(place.fd))
            yield _Found(compared.plan, present, Side(compared.target, chain.opened), compared.comparison)


@contextmanager
def _with_backup(older: CompareRequest, newer: CompareRequest, state: State, monitor: Monitor) -> Iterator[_Found]:
    """Compare two backups: the plan leads from the older to the newer."""
    before, after = (read_manifest(each, state, monitor.check) for each in (older, newer))
    with state.working() as work, explained(older, "compared with the other backup"):
        first, second = (
            Chain(partial(fetch_layers, request, state, monitor.check), manifest, work, monitor.check)
            for request, manifest in ((older, before), (newer, after))
        )
        comparison = Comparison(owners=True, whole_seconds=older.whole_seconds or newer.whole_seconds)

        def differ(doubtful: list[Entry]) -> set[bytes]:
            unproven = [entry for entry in doubtful if not _same_layer(entry.path, (older, before), (newer, after))]
            if not unproven:
                return set()
            with first.opened(unproven) as old, second.opened(unproven) as new:
                return differing(old, new, unproven, monitor.check)

        request = _named(older, before, after)
        source, target = _wanted(before, request, after), _selected(_with_proven(before, after), request)
        untouchable = _leading(request, source, target)
        plan = make_plan(source, target, differ=differ, comparison=comparison, untouchable=untouchable)
        yield _Found(plan, Side(source, first.opened), Side(target, second.opened), comparison)


def _with_proven(before: Manifest, after: Manifest) -> Manifest:
    """Return a later tree with the very entries of an earlier one whose stamps prove that they are the same."""
    if before.header.device != after.header.device:
        return after
    return Manifest(after.header, {path: before.own(entry) for path, entry in after.entries.items()})


def _same_layer(path: bytes, *trees: tuple[StoredBackup, Manifest]) -> bool:
    """Whether backups have a path in the very same layer: then they have the same bytes of it."""
    return len({request.layers[manifest.layers.get(path, 0)].sha256 for request, manifest in trees}) == 1


def _nothing(backup: Manifest) -> Side:
    return Side(Manifest(backup.header, {}), _always_open(-1))


def _always_open(fd: int) -> Callable[[Sequence[Entry]], AbstractContextManager[Roots]]:
    return lambda _entries: nullcontext(always(fd))


@contextmanager
def explained(request: CompareRequest, what: str) -> Iterator[None]:
    """Tell what failed in the block as an error of Sandpoint's.

    Args:
        request: What was tried.
        what: Of the directory, what could not be done: "restored".

    Raises:
        BackupRestoreError: Something failed before anything was changed.
    """
    try:
        yield
    except UnreadableError as error:
        raise BackupRestoreError(
            f"{request.dir} cannot be compared with the backup, for this user may not read {error}; change its mode "
            "or run as its owner. Nothing was changed"
        ) from None
    except (tools.ToolFailedError, tools.ToolMissingError, GitError) as error:
        told = f"{error}{_advice(error)}"
        raise BackupRestoreError(f"{request.dir} cannot be {what}: {told}. Nothing was changed") from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        told = f"{error.strerror}{where}{_advice(error)}"
        raise BackupRestoreError(f"{request.dir} cannot be {what}: {told}. It is as before") from error


def _advice(error: Exception) -> str:
    if tools.is_for_want_of_space(error):
        return "; free some space on the filesystems of the directory and of the state directory"
    if isinstance(error, PermissionError):
        return "; let this user write there, or run as the owner"
    return ""


def read_manifest(backup: StoredBackup, state: State, check: Check) -> Manifest:
    """Return the manifest of a whole backup.

    Raises:
        BackupIntegrityError: It is damaged.
    """
    manifest = transfer.fetch_manifest(backup.manifests, state, check)
    if max(manifest.layers.values(), default=0) >= len(backup.layers):
        raise BackupIntegrityError(
            f"the backup's metadata names {len(backup.layers)} layers, and its manifests more; it is damaged"
        )
    return manifest


def fetch_layers(backup: StoredBackup, state: State, check: Check, *, reread: bool = False) -> list[str]:
    """Return the files of a backup's layers, checked; see `transfer.fetch`."""
    return transfer.fetch_all(backup.layers, state, check, reread=reread)


def compare_with(
    request: CompareRequest,
    backup: Manifest,
    place: Place,
    chain: Chain,
    state: State,
    monitor: Monitor,
    *,
    captured_as: Sequence[str] = (),
) -> Compared:
    """Compare an open directory with a backup, and plan a restore.

    Args:
        request: What is compared.
        backup: Its manifest.
        place: The directory.
        chain: The backup's layers.
        state: The state directory.
        monitor: Told of progress; may stop it.
        captured_as: Digests of the manifests of a backup that was taken of the directory in the same turn: what it
            found there counts, so that a restore undoes nothing that this backup does not hold.

    Raises:
        InvalidBackupConfigError: A path is neither in it nor in the backup.
        UnreadableError: Something in it may not be read.
    """
    index = read_index(state, place.path, alike=backup) if captured_as else None
    captured = _as_captured(index, captured_as, request, backup, place)
    present = captured or _walk_present(request, backup, place, monitor)
    request = _named(request, backup, present)
    # What was a mount then or is one now is another filesystem's: its contents are neither in the backup nor to go.
    mounts = tuple(sorted({*present.header.mounts, *backup.header.mounts} & {*present.entries, *place.boundaries}))
    target = without(_wanted(backup, request, present), mounts)
    chosen = without(_selected(present, request), mounts)
    untouchable = frozenset(mounts) | _leading(request, chosen, target)
    comparison = Comparison(coarse_times=place.is_overlay, whole_seconds=request.whole_seconds)

    def differ(doubtful: list[Entry]) -> set[bytes]:
        proof = index
        if proof is None and len(doubtful) > _MANY_DOUBTFUL and place.stamps:
            proof = read_index(state, place.path, alike=backup)
        unproven = doubtful if proof is None else list(_unproven(doubtful, proof, present, request, backup, place))
        if not unproven:
            return set()
        with chain.opened(unproven) as layers:
            return differing(always(place.fd), layers, unproven, monitor.check)

    plan = make_plan(chosen, target, differ=differ, comparison=comparison, untouchable=untouchable)
    return Compared(plan, chosen, target, comparison, untouchable, mounts)


def _unproven(
    doubtful: Sequence[Entry],
    proof: Index,
    present: Manifest,
    request: CompareRequest,
    backup: Manifest,
    place: Place,
) -> Iterator[Entry]:
    """Yield the entries of which an index does not say that the directory has the bytes of the backup's layers."""
    device = os.fstat(place.fd).st_dev
    digests = [source.sha256 for source in request.layers]
    for entry in doubtful:
        if not proof.proves(present.entries[entry.path], device, digests[backup.layers.get(entry.path, 0)]):
            yield entry


def _as_captured(
    index: Index | None, captured_as: Sequence[str], request: CompareRequest, backup: Manifest, place: Place
) -> Manifest | None:
    """Return the tree as it was captured, if it is just what a look at the directory for a restore would find."""
    if index is None or index.manifests != tuple(captured_as) or not place.stamps:
        return None
    tree, now = index.tree, os.fstat(place.fd).st_dev
    left_out_alike = not request.use_gitignore and not any(path in tree.entries for path in backup.header.excluded)
    same_mounts = frozenset(tree.header.mounts) == place.boundaries >= frozenset(backup.header.mounts)
    if not left_out_alike or not same_mounts or tree.header.unstable or tree.header.device != now:
        return None
    return tree


def _walk_present(request: CompareRequest, backup: Manifest, place: Place, monitor: Monitor) -> Manifest:
    ignored = git_ignored(place, monitor.check) if request.use_gitignore else frozenset()
    rules = Rules(request.excludes, paths={*ignored, *backup.header.excluded}, cover=backup.entries)
    return walk_tree(
        place.fd,
        rules,
        started_ns=0,
        stamps=False,
        boundaries=place.boundaries | frozenset(backup.header.mounts),
        known=backup if place.stamps else None,
        counted=lambda count: monitor.progress("comparing", count, len(backup.entries)),
    )


def _paths(request: CompareRequest) -> list[bytes]:
    return [os.fsencode(path) for path in request.paths]


def _named(request: CompareRequest, *trees: Manifest) -> CompareRequest:
    """Return the request with names that are shown escaped, as diff prints them, put back into their bytes."""
    named = paths_named(request.paths, trees)
    paths = tuple(os.fsdecode(path) for path in named)
    return request if paths == request.paths else request.model_copy(update={"paths": paths})


def _wanted(backup: Manifest, request: CompareRequest, present: Manifest | None = None) -> Manifest:
    for path in _paths(request):
        if path not in backup.entries and (present is None or path not in present.entries):
            raise InvalidBackupConfigError(
                f"paths: {display(path)} is neither in the backup nor in {request.dir}; "
                "paths are relative to the directory, as diff prints them"
            )
    return select(backup, _paths(request)) if request.paths else backup


def _selected(present: Manifest, request: CompareRequest) -> Manifest:
    return select(present, _paths(request)) if request.paths else present


def _leading(request: CompareRequest, present: Manifest, target: Manifest) -> frozenset[bytes]:
    """Return the directories above the paths to restore that are there and stay as they are."""
    above = {directory for path in _paths(request) for directory in ancestors(path)}
    return frozenset(
        path
        for path in above
        if path in present.entries
        and present.entries[path].is_dir
        and (path not in target.entries or target.entries[path].is_dir)
    )
