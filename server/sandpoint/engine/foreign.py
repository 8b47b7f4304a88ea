"""Backups that another program wrote: an archive of a tree, without a manifest and without a digest.

Nothing says what such an archive ought to hold, so the kernel is not given it to mount. It is unpacked, and captured
anew into a layer and a manifest of our own, which from then on are as good as any.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

from sandpoint.engine import cache, remote, squashfs, tools, transfer
from sandpoint.engine.capture_full import capture_full
from sandpoint.engine.made import layer_file, manifest_file
from sandpoint.engine.place import opened_place
from sandpoint.engine.roots import HOST
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.engine.walk import UnreadableError
from sandpoint.errors import BackupIntegrityError, BackupRestoreError, SandboxUnavailableError
from sandpoint.models import Adopted, AdoptRequest, CachedGrant, CaptureRequest, PathGrant, Source


def adopt(request: AdoptRequest, state: State, monitor: Monitor) -> Adopted:
    """Fetch and unpack an archive, and put a layer and a manifest of what it holds into the cache.

    Both are held there until `cache.release`, for no store has them.

    Raises:
        BackupIntegrityError: It is missing, has another size, or is no archive.
        BackupRestoreError: This user, or this machine, cannot unpack it whole.
        StoreUnavailableError: It cannot be fetched.
        SandboxUnavailableError: There is no space to unpack it.
    """
    try:
        return _adopt(request, state, monitor)
    except SandboxUnavailableError:
        if not cache.trim(state, budget=0):  # what nobody uses just now gives way
            raise
        return _adopt(request, state, monitor)


def _adopt(request: AdoptRequest, state: State, monitor: Monitor) -> Adopted:
    with state.working() as work, _explained(request, state):
        monitor.progress("fetching", 0)
        archive = _fetched(request, state, work, monitor)
        tree = os.path.join(os.path.realpath(work), "tree")
        monitor.progress("extracting", 0)
        squashfs.extract(archive, tree, None, scratch=work, check=monitor.check)
        capture = CaptureRequest(dir=tree, staging=work)
        here = copy(state)
        here.root = HOST  # it is unpacked next to the engine, wherever the directories of the sandbox are
        with opened_place(here, tree) as place:
            made = capture_full(capture, place, state, work, monitor)
        assert made.layer is not None
        assert made.manifest is not None
        _check_all_there(request, archive, layer_file(capture))
        manifest = transfer.seal_bytes(manifest_file(capture), made.manifest)
        for path, stored in ((layer_file(capture), made.layer), (manifest_file(capture), manifest)):
            cache.add(state, path, stored)
            cache.fetch(Source(**dict(stored), grant=CachedGrant()), state, monitor.check, reread=False)
        return Adopted(layer=made.layer, manifest=manifest)


def _fetched(request: AdoptRequest, state: State, work: str, monitor: Monitor) -> str:
    if isinstance(request.grant, PathGrant):
        transfer.check_size(request.grant, request.size, state.relay, monitor.check)
        return request.grant.path
    path = os.path.join(work, "archive")
    remote.download(request.grant, request.size, state.relay, path, monitor.check)
    return path


def _check_all_there(request: AdoptRequest, archive: str, layer: str) -> None:
    # What this user may not make, a device for instance, unsquashfs leaves out with a warning.
    theirs, ours = squashfs.count_inodes(archive), squashfs.count_inodes(layer)
    if theirs != ours:
        raise BackupRestoreError(
            f"{remote.name_of(request.grant)} cannot be unpacked whole here: of {theirs} files and directories in it "
            f"{ours} arrived; run as root, who can make them all. Nothing was changed"
        )


@contextmanager
def _explained(request: AdoptRequest, state: State) -> Iterator[None]:
    name = remote.name_of(request.grant)
    try:
        yield
    except tools.ToolFailedError as error:
        if tools.is_for_want_of_space(error):
            raise state.unwritable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from None
        raise BackupIntegrityError(f"{name} cannot be unpacked: {error}; nothing was changed") from None
    except tools.ToolMissingError as error:
        raise BackupRestoreError(f"{name} cannot be unpacked: {error}. Nothing was changed") from None
    except UnreadableError as error:
        raise BackupRestoreError(
            f"{name} cannot be unpacked by this user, who may not read {error}; run as root. Nothing was changed"
        ) from None
    except OSError as error:
        raise state.unwritable(error) from error
