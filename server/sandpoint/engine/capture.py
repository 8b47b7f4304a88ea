"""Capture: a directory into a layer and a manifest, full or of what has changed."""

from collections.abc import Sequence

from sandpoint.engine import tools, transfer
from sandpoint.engine.capture_deltas import capture_delta
from sandpoint.engine.capture_full import capture_full
from sandpoint.engine.ignore import GitError
from sandpoint.engine.index import Index, write_index
from sandpoint.engine.made import Made
from sandpoint.engine.manifest import Manifest, display
from sandpoint.engine.place import opened_place
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.engine.walk import UnreadableError
from sandpoint.errors import BackupCreateError
from sandpoint.models import Captured, CaptureRequest, Source, StoredFile


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
            made = capture_delta(request, place, state, work, monitor) or capture_full(request, place, work, monitor)
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
        manifest = None if made.manifest is None else transfer.send_bytes(request.manifest, made.manifest, state)
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


def _index(request: CaptureRequest, made: Made, manifest: StoredFile | None, tree: Manifest) -> Index:
    base = request.parent if made.kind == "delta" else None

    def digests(below: Sequence[Source], own: StoredFile | None) -> tuple[str, ...]:
        return tuple(each.sha256 for each in (*below, *([own] if own is not None else [])))

    return Index(
        digests(base.manifests if base else (), manifest), digests(base.layers if base else (), made.layer), tree
    )
