"""Backups that another program wrote: an archive of a tree, without a manifest and without a digest.

Nothing says what such an archive ought to hold, so the kernel is not given it to mount. It is unpacked, and captured
anew into a layer and a manifest of our own, which from then on are as good as any.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sandpoint.engine import cache, remote, squashfs, tools, transfer
from sandpoint.engine.capture_full import capture_full
from sandpoint.engine.checked import other_size
from sandpoint.engine.made import layer_file, manifest_file
from sandpoint.engine.place import opened_place
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.errors import BackupIntegrityError
from sandpoint.models import Adopted, AdoptRequest, CaptureRequest, PathGrant


def adopt(request: AdoptRequest, state: State, monitor: Monitor) -> Adopted:
    """Fetch and unpack an archive, and put a layer and a manifest of what it holds into the cache.

    Raises:
        BackupIntegrityError: It is missing, has another size, or is no archive.
        StoreUnavailableError: It cannot be fetched.
        SandboxUnavailableError: There is no space to unpack it.
    """
    with state.working() as work, _explained(request, state):
        monitor.progress("fetching", 0)
        archive = _fetched(request, state, work, monitor)
        tree = os.path.join(work, "tree")
        monitor.progress("extracting", 0)
        squashfs.extract(archive, tree, None, scratch=work, check=monitor.check)
        capture = CaptureRequest(dir=tree, staging=work)
        with opened_place(state, tree) as place:
            made = capture_full(capture, place, state, work, monitor)
        assert made.layer is not None
        assert made.manifest is not None
        manifest = transfer.seal_bytes(manifest_file(capture), made.manifest)
        cache.add(state, layer_file(capture), made.layer)
        cache.add(state, manifest_file(capture), manifest)
        return Adopted(layer=made.layer, manifest=manifest)


def _fetched(request: AdoptRequest, state: State, work: str, monitor: Monitor) -> str:
    if isinstance(request.grant, PathGrant):
        path = request.grant.path
    else:
        path = os.path.join(work, "archive")
        remote.download(request.grant, request.size, state.relay, path, monitor.check)
    size = os.stat(path).st_size
    if size != request.size:
        raise other_size(remote.name_of(request.grant), size, request.size)
    return path


@contextmanager
def _explained(request: AdoptRequest, state: State) -> Iterator[None]:
    try:
        yield
    except (tools.ToolFailedError, tools.ToolMissingError) as error:
        raise BackupIntegrityError(
            f"{remote.name_of(request.grant)} cannot be unpacked: {error}; nothing was changed"
        ) from None
    except OSError as error:
        raise state.unwritable(error) from error
