"""Compare and restore: a directory against a backup, and made equal to it."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import msgspec

from sandpoint.engine import overlay as overlays
from sandpoint.engine import tools, transfer
from sandpoint.engine.apply import Holders, staging_list
from sandpoint.engine.attributes import adjust
from sandpoint.engine.beside import beside
from sandpoint.engine.capture import Place, opened_place
from sandpoint.engine.chain import Chain
from sandpoint.engine.contents import always, differing
from sandpoint.engine.copies import make_node
from sandpoint.engine.directory import create_directory, remove_directories
from sandpoint.engine.ignore import GitError, Rules, git_ignored
from sandpoint.engine.inplace import Compared, carry_out, refuse_conflicts
from sandpoint.engine.manifest import ACL_PREFIX, Entry, Header, Manifest, display, has_acl, read_header
from sandpoint.engine.plan import Comparison, ancestors, make_plan, select, without
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check, Monitor
from sandpoint.engine.walk import UnreadableError, walk_tree
from sandpoint.errors import BackupRestoreError, InvalidBackupConfigError
from sandpoint.models import Applied, ApplyRequest, Changes, CompareRequest


def compare(request: CompareRequest, state: State, monitor: Monitor) -> Changes:
    """Return what a restore would do to a directory: nothing is changed.

    A directory that is not there yet counts as empty.

    Raises:
        InvalidBackupConfigError: The directory is not fit, or a path is neither in it nor in the backup.
        BackupIntegrityError: The manifest or the layer is damaged.
        BackupRestoreError: The directory cannot be read.
    """
    target = _read_manifest(request)
    if not os.path.lexists(request.dir):
        wanted = _wanted(target, _named(request, target))
        return Changes(added=tuple(sorted(display(path) for path in wanted.entries if path)))
    with opened_place(state, request.dir) as place, state.working() as work, _explained(request):
        chain = Chain(lambda: _fetch(request, state, monitor.check), target, work, monitor.check)
        return _compare(request, target, place, chain, monitor).plan.changes()


def restore(request: ApplyRequest, state: State, kind: overlays.Kind | None, monitor: Monitor) -> Applied:
    """Make a directory equal to a backup; it is created if it is not there.

    Args:
        request: What to restore; a mode of `overlay` or `copy`.
        state: The state directory.
        kind: How this machine mounts overlays.
        monitor: Told of progress; may stop the restore, which is then undone.

    Raises:
        InvalidBackupConfigError: The directory is not fit, or a path is neither in it nor in the backup.
        BackupIntegrityError: The manifest or a layer is damaged; found before the directory is touched.
        BackupRestoreError: It failed; the directory is as before, or the message says otherwise.
    """
    made = [] if os.path.lexists(request.dir) else create_directory(request.dir)
    try:
        with _explained(request):
            if request.mode == "overlay":
                return _restore_overlay(request, state, kind, monitor)
            return _restore_copy(request, state, monitor)
    except BaseException:
        remove_directories(made)
        raise


@contextmanager
def _explained(request: CompareRequest) -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        raise BackupRestoreError(
            f"{request.dir} cannot be compared with the backup, for this user may not read {error}; change its mode "
            "or run as its owner. Nothing was changed"
        ) from None
    except (tools.ToolFailedError, tools.ToolMissingError, GitError) as error:
        raise BackupRestoreError(f"{request.dir} cannot be restored: {error}. Nothing was changed") from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BackupRestoreError(
            f"{request.dir} cannot be restored: {error.strerror}{where}. It is as before"
        ) from error


def _read_manifest(request: CompareRequest) -> Manifest:
    return Manifest.from_chain([transfer.fetch_bytes(source) for source in request.manifests])


def _fetch(request: CompareRequest, state: State, check: Check, *, reread: bool = False) -> list[str]:
    return [transfer.fetch(source, state, check, reread=reread) for source in request.layers]


def compare_backups(older: CompareRequest, newer: CompareRequest, state: State, monitor: Monitor) -> Changes:
    """Return what changed from one backup to another.

    Files whose stamps do not prove that they are the same are compared by their bytes.

    Raises:
        BackupIntegrityError: A manifest or a layer is damaged.
        BackupRestoreError: A layer cannot be read.
    """
    before, after = _read_manifest(older), _read_manifest(newer)
    entries = {
        path: before.entries[path]
        if before.entries.get(path) == entry and 0 < entry.ctime_ns < before.settled_before_ns
        else entry
        for path, entry in after.entries.items()
    }

    with state.working() as work, _explained(older):

        def differ(doubtful: list[Entry]) -> set[bytes]:
            first, second = (
                Chain(partial(_fetch, request, state, monitor.check), manifest, work, monitor.check)
                for request, manifest in ((older, before), (newer, after))
            )
            with first.opened(doubtful) as old, second.opened(doubtful) as new:
                return differing(old, new, doubtful, monitor.check)

        comparison = Comparison(owners=True)
        return make_plan(before, Manifest(after.header, entries), differ=differ, comparison=comparison).changes()


# -- comparing --


def _compare(
    request: CompareRequest,
    backup: Manifest,
    place: Place,
    chain: Chain,
    monitor: Monitor,
) -> Compared:
    present = _walk_present(request, backup, place, monitor)
    request = _named(request, backup, present)
    # What was a mount then or is one now is another filesystem's: its contents are neither in the backup nor to go.
    mounts = tuple(sorted({*present.header.mounts, *backup.header.mounts} & {*present.entries, *place.boundaries}))
    target = without(_wanted(backup, request, present), mounts)
    chosen = without(_selected(present, request), mounts)
    untouchable = frozenset(mounts) | _leading(request, chosen, target)
    comparison = Comparison(coarse_times=place.is_overlay)

    def differ(entries: list[Entry]) -> set[bytes]:
        with chain.opened(entries) as layers:
            return differing(always(place.fd), layers, entries, monitor.check)

    plan = make_plan(chosen, target, differ=differ, comparison=comparison, untouchable=untouchable)
    return Compared(plan, chosen, target, comparison, untouchable, mounts)


def _walk_present(request: CompareRequest, backup: Manifest, place: Place, monitor: Monitor) -> Manifest:
    ignored = git_ignored(place.fd, monitor.check) if request.use_gitignore else frozenset()
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
    unknown = {path for path in request.paths if all(os.fsencode(path) not in tree.entries for tree in trees)}
    if not unknown:
        return request
    known = {display(path): os.fsdecode(path) for tree in trees for path in tree.entries}
    paths = tuple(known.get(path, path) if path in unknown else path for path in request.paths)
    return request.model_copy(update={"paths": paths})


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


# -- copy --


def _restore_copy(request: ApplyRequest, state: State, monitor: Monitor) -> Applied:
    backup = _read_manifest(request)
    with ExitStack() as stack:
        work = stack.enter_context(state.working())
        # The layer is read again beside the comparison.
        layers = stack.enter_context(beside(lambda stop: _fetch(request, state, stop, reread=True), monitor.check))
        if not request.paths and overlays.own_overlays(state, request.dir):
            layers()  # a damaged one is found before an overlay is taken down
            stack.enter_context(overlays.set_aside(state, request.dir, monitor.check))
        place = stack.enter_context(opened_place(state, request.dir))
        chain = Chain(layers, backup, work, monitor.check)
        compared = _compare(request, backup, place, chain, monitor)
        refuse_conflicts(compared)
        layers()

        def fill(tree: str) -> None:
            brought = [*compared.plan.added, *compared.plan.replaced]
            monitor.progress("extracting", 0, len(brought))
            chain.extract(tree, brought, units=staging_list(compared.plan, whole=not request.paths))

        kept = carry_out(compared, place, fill, work, monitor)
        return Applied(
            mode="copy",
            changes=compared.plan.changes(),
            kept_paths=tuple(display(path) for path in kept),
            skipped_mounts=tuple(display(path) for path in compared.mounts),
        )


# -- overlay --


def _restore_overlay(request: ApplyRequest, state: State, kind: overlays.Kind | None, monitor: Monitor) -> Applied:
    if request.paths:
        raise InvalidBackupConfigError("paths: an overlay brings back the whole directory; use mode 'copy' for paths")
    if kind is None:
        _, reason = overlays.available_kind(state, in_turn=True)
        raise BackupRestoreError(f"this machine cannot mount overlays ({reason}); use mode 'copy'")
    header = read_header(transfer.fetch_bytes(request.manifests[-1]))
    layers = _fetch(request, state, monitor.check)
    monitor.progress("mounting", 0)
    overlays.restore_overlay(
        state,
        directory=request.dir,
        backup_id=request.backup_id,
        layers=layers,
        kind=kind,
        dress=lambda fd: _dress(fd, header, acls=kind == "kernel"),
        check=monitor.check,
    )
    return Applied(mode="overlay", changes=None)


def _dress(root: int, header: Header, *, acls: bool) -> None:
    """Set what a mounted layer does not show: directories of mounts, ACLs, the attributes of the directory itself.

    Args:
        root: The mounted layer.
        header: Of the backup's manifest.
        acls: Whether the mount can hold ACLs, which fuse-overlayfs cannot.
    """
    comparison = Comparison()
    ordered = sorted(header.beyond_squashfs, key=lambda entry: entry.path)
    holders = Holders(root)  # a manifest may name what lies outside
    try:
        for entry in ordered:
            if entry.path in header.mounts:
                holder, name = holders.of(entry.path)
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=holder)
            elif stat.S_ISSOCK(entry.mode):
                holder, name = holders.of(entry.path)
                with suppress(FileExistsError):
                    make_node(entry, holder, name)
        for entry in reversed(ordered):
            if not acls and entry.path and entry.path not in header.mounts:
                continue  # whatever is set brings it into the upper layer, and moves its directory's mtime
            if acls and has_acl(entry.xattrs):
                # The kernel sets ACLs on what lies in the upper layer only; every chown brings it there.
                holder, name = holders.of(entry.path)
                os.chown(name or b".", entry.uid, entry.gid, dir_fd=holder, follow_symlinks=False)
            adjust(*holders.of(entry.path), entry if acls else _without_acls(entry), comparison)
    finally:
        holders.close()


def _without_acls(entry: Entry) -> Entry:
    kept = {name: value for name, value in (entry.xattrs or {}).items() if not name.startswith(ACL_PREFIX)}
    return msgspec.structs.replace(entry, xattrs=kept or None)
