"""What a capture made, before it is sent."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from sandpoint.engine import transfer
from sandpoint.engine.manifest import Header, Manifest
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.models import CaptureRequest, Kind, StoredFile

ATTEMPTS = 2
"""Whole captures before paths that are still written to are named as unstable."""


@dataclass(frozen=True)
class Made:
    """A capture before it is sent: what a delta does not need to send again is None.

    `tree` is what the next capture is compared with, where that is worth keeping. `frozen_seconds` is None where all
    that wrote to the directory went on.
    """

    kind: Kind
    layer: StoredFile | None
    manifest: bytes | None
    header: Header
    file_count: int
    total_bytes: int
    tree: Manifest | None = None
    frozen_seconds: float | None = None


def made_of(kind: Kind, layer: StoredFile | None, tree: Manifest, *, stored: Manifest | None) -> Made:
    """Return what is made of a whole tree; `stored` is the manifest to send."""
    files = [entry for entry in tree.entries.values() if not entry.is_dir]
    return Made(
        kind,
        layer,
        None if stored is None else stored.content,
        tree.header,
        file_count=len(files),
        total_bytes=sum(entry.size for entry in files if not entry.hardlink),
        tree=tree if tree.header.stamps else None,
    )


def layer_file(request: CaptureRequest) -> str:
    """Return where the layer is made, until it is sent."""
    return _staged(request, "layer")


def manifest_file(request: CaptureRequest) -> str:
    """Return where the manifest is written, until it is sent."""
    return _staged(request, "manifest")


def _staged(request: CaptureRequest, name: str) -> str:
    assert request.staging is not None, "set before anything is made"
    return os.path.join(request.staging, f"{name}.partial")


def covered(request: CaptureRequest, state: State, monitor: Monitor) -> Iterable[bytes]:
    """Return the paths that are captured although a rule excludes them.

    Raises:
        BackupIntegrityError: A manifest is damaged.
    """
    if not request.cover or not (request.excludes or request.use_gitignore):
        return ()
    return transfer.fetch_manifest(request.cover, state, monitor.check).entries
