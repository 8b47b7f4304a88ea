"""Restore: a directory made equal to a backup."""

import os
import stat
from contextlib import ExitStack, suppress

import msgspec

from sandpoint.engine import overlay as overlays
from sandpoint.engine import transfer
from sandpoint.engine.apply import Holders, staging_list
from sandpoint.engine.attributes import adjust
from sandpoint.engine.beside import beside
from sandpoint.engine.chain import Chain
from sandpoint.engine.compare import compare_with, explained, fetch_layers, read_manifest
from sandpoint.engine.copies import make_node
from sandpoint.engine.directory import create_directory, remove_directories
from sandpoint.engine.inplace import carry_out, refuse_conflicts
from sandpoint.engine.manifest import ACL_PREFIX, Entry, Header, display, has_acl, read_header
from sandpoint.engine.place import opened_place
from sandpoint.engine.plan import Comparison
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.errors import BackupRestoreError
from sandpoint.models import Applied, ApplyRequest


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
    made = [] if state.root.exists(request.dir) else create_directory(request.dir, state.root)
    try:
        with explained(request, "restored"):
            if request.mode == "overlay":
                return _restore_overlay(request, state, kind, monitor)
            return _restore_copy(request, state, monitor)
    except BaseException:
        remove_directories(made, state.root)
        raise


# -- copy --


def _restore_copy(request: ApplyRequest, state: State, monitor: Monitor) -> Applied:
    backup = read_manifest(request, state, monitor.check)
    with ExitStack() as stack:
        work = stack.enter_context(state.working())
        # The layer is read again beside the comparison.
        layers = stack.enter_context(
            beside(lambda stop: fetch_layers(request, state, stop, reread=True), monitor.check)
        )
        on_overlays = not request.paths and bool(overlays.own_overlays(state, request.dir))
        if on_overlays:
            layers()  # a damaged one is found before an overlay is taken down
            stack.enter_context(overlays.set_aside(state, request.dir, monitor.check))
        place = stack.enter_context(opened_place(state, request.dir))
        chain = Chain(layers, backup, work, monitor.check)
        # What was captured was an overlay, if there was one: the directory below is another tree.
        captured_as = () if on_overlays else request.captured_as
        compared = compare_with(request, backup, place, chain, state, monitor, captured_as=captured_as)
        refuse_conflicts(compared)
        monitor.progress("fetching", 0)
        layers()

        def fill(tree: str) -> None:
            brought = [*compared.plan.added, *compared.plan.replaced]
            monitor.progress("extracting", 0, len(brought))
            chain.extract(tree, brought, units=staging_list(compared.plan, whole=not request.paths))

        kept = carry_out(compared, place, fill, work, monitor)
        return Applied(
            mode="copy",
            changes=compared.plan.changes(),
            restamped=bool(compared.plan.restamped),
            unmounted=on_overlays,
            kept_paths=tuple(display(path) for path in kept),
            skipped_mounts=tuple(display(path) for path in compared.mounts),
        )


# -- overlay --


def _restore_overlay(request: ApplyRequest, state: State, kind: overlays.Kind | None, monitor: Monitor) -> Applied:
    if kind is None:
        _, reason = overlays.available_kind(state, in_turn=True)
        raise BackupRestoreError(f"this machine cannot mount overlays ({reason}); use mode 'copy'")
    monitor.progress("fetching", 0)
    manifests = transfer.fetch_all(request.manifests, state, monitor.check)
    with open(manifests[-1], "rb") as file:
        header = read_header(file)
    if kind == "fuse" and len(request.layers) > 1 and header.hardlinks:
        raise BackupRestoreError(
            "fuse-overlayfs gives files of different layers the same inode numbers, and this backup has several layers "
            "and hard links, which could no longer be told apart; use mode 'copy', or create with --full first"
        )
    layers = fetch_layers(request, state, monitor.check)
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
        if acls:
            _link_brought(root, header)
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


def _link_brought(root: int, header: Header) -> None:
    """Link what comes into the upper layer, files with ACLs and sockets: one by one they would be separate files."""
    brought = {e.path: e for e in header.beyond_squashfs if has_acl(e.xattrs) or stat.S_ISSOCK(e.mode)}
    for first, *others in header.hardlinks:
        if first not in brought:
            continue
        sources, holders = Holders(root), Holders(root)
        try:
            source, name = sources.of(first)
            os.chown(name, brought[first].uid, brought[first].gid, dir_fd=source, follow_symlinks=False)
            for path in others:
                holder, other = holders.of(path)
                status = os.fstat(holder)
                os.unlink(other, dir_fd=holder)
                os.link(name, other, src_dir_fd=source, dst_dir_fd=holder, follow_symlinks=False)
                os.utime(holder, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            sources.close()
            holders.close()


def _without_acls(entry: Entry) -> Entry:
    kept = {name: value for name, value in (entry.xattrs or {}).items() if not name.startswith(ACL_PREFIX)}
    return msgspec.structs.replace(entry, xattrs=kept or None)
