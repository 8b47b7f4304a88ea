"""Capture: a directory into a layer and a manifest, full or of what has changed."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from sandpoint.engine import tools, transfer
from sandpoint.engine.capture_deltas import capture_delta, is_proven
from sandpoint.engine.capture_full import capture_full
from sandpoint.engine.directory import is_within
from sandpoint.engine.freezing import Freezer, paused
from sandpoint.engine.ignore import GitError
from sandpoint.engine.index import Index, write_index
from sandpoint.engine.made import Made, layer_file, manifest_file
from sandpoint.engine.manifest import Manifest, display
from sandpoint.engine.place import Place, opened_place
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.engine.walk import UnreadableError
from sandpoint.errors import BackupCreateError, StoreUnavailableError
from sandpoint.models import Captured, CaptureRequest, FileRole, SentFile, Source, StoredFile, WriteGrant

Ask = Callable[[FileRole, StoredFile], WriteGrant]
"""Asked for leave to write a file, once its size and digest are known."""


def capture(
    request: CaptureRequest, state: State, monitor: Monitor, ask: Ask, freezer: Freezer | None = None
) -> Captured:
    """Capture a directory, and send what was made through the grants that are given for it.

    That is a delta where the request names a parent that is whole, and little has changed since; nothing at all where
    nothing has changed; else a full layer.

    Args:
        request: What to capture.
        state: The state directory.
        monitor: Told of progress; may stop it.
        ask: Asked for a grant for each file.
        freezer: Stops all that writes to the directory, for as short as can be, if the request says so.

    Raises:
        InvalidBackupConfigError: The directory or a pattern is not fit.
        BackupCreateError: Something cannot be read, a tool is missing or failed, or there is no space.
        StoreUnavailableError: The store cannot be written.
    """
    with opened_place(state, request.dir) as place, state.working() as work:
        request = request.model_copy(update={"staging": request.staging or work})
        try:
            made = capture_delta(request, place, state, work, monitor, freezer)
            if made is None and request.look:
                return Captured(kind="full", layer=None, manifest=None, file_count=0, total_bytes=0)
            made = made or _capture_full(request, place, state, work, monitor, freezer)
            monitor.progress("storing", 0)
            layer, manifest = _send(request, made, state, monitor, ask)
        except UnreadableError as error:
            raise BackupCreateError(
                f"{request.dir} cannot be backed up, for this user may not read {error}; "
                "change its mode, exclude it, or run as its owner"
            ) from None
        except (tools.ToolFailedError, tools.ToolMissingError, GitError) as error:
            raise BackupCreateError(f"{request.dir} cannot be backed up: {error}{_advice(error)}") from None
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            told = f"{error.strerror}{where}{_advice(error)}"
            raise BackupCreateError(f"{request.dir} cannot be backed up: {told}") from error
        if made.tree is not None:
            write_index(state, request.dir, _index(request, made, manifest, made.tree))
        return Captured(
            kind=made.kind,
            layer=layer,
            manifest=manifest,
            file_count=made.file_count,
            total_bytes=made.total_bytes,
            unstable_paths=tuple(display(path) for path in made.header.unstable),
            skipped_mounts=tuple(display(path) for path in made.header.mounts),
            frozen_seconds=made.frozen_seconds,
        )


def _advice(error: Exception) -> str:
    if not tools.is_for_want_of_space(error):
        return ""
    return "; free some space where backups and the state directory are, by 'sandpoint prune' for instance"


def _capture_full(
    request: CaptureRequest, place: Place, state: State, work: str, monitor: Monitor, freezer: Freezer | None
) -> Made:
    if freezer is None or (request.freeze == "if_little" and is_proven(place)):
        return capture_full(request, place, state, work, monitor)
    with paused(freezer) as pause:
        made = capture_full(request, place, state, work, monitor)
    return replace(made, frozen_seconds=pause.seconds)


def _send(
    request: CaptureRequest, made: Made, state: State, monitor: Monitor, ask: Ask
) -> tuple[SentFile | None, SentFile | None]:
    layer = manifest = None
    if made.layer is not None:
        layer = transfer.send(layer_file(request), made.layer, ask("layer", made.layer), state, monitor.check)
    else:
        with suppress(FileNotFoundError):
            os.unlink(layer_file(request))  # of an attempt before all that it had found changed back
    if made.manifest is not None:
        path = manifest_file(request)
        stored = _seal(path, made.manifest, state)
        manifest = transfer.send(path, stored, ask("manifest", stored), state, monitor.check)
    return layer, manifest


def _seal(path: str, content: bytes, state: State) -> StoredFile:
    try:
        return transfer.seal_bytes(path, content)
    except OSError as error:
        if is_within(path, state.path):
            raise state.unwritable(error) from error
        raise StoreUnavailableError(f"{path} cannot be written: {error.strerror}; free some space there") from error


def _index(request: CaptureRequest, made: Made, manifest: StoredFile | None, tree: Manifest) -> Index:
    base = request.parent if made.kind == "delta" else None

    def digests(below: Sequence[Source], own: StoredFile | None) -> tuple[str, ...]:
        return tuple(each.sha256 for each in (*below, *([own] if own is not None else [])))

    return Index(
        digests(base.manifests if base else (), manifest), digests(base.layers if base else (), made.layer), tree
    )
