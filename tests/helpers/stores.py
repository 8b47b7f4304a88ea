"""What the tests of stores share: a backup written through a store's own protocol."""

import hashlib
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sandpoint.models import BackupMetadata, StoredLayer
from sandpoint.stores import Store
from sandpoint.stores.base import Position, Upload

START_MS = 1_790_000_000_000
LAYER = b"a layer"
MANIFEST = b"a manifest"


def id_at(seconds: int, number: int = 0) -> str:
    """Return the UUIDv7 of a time, in seconds after an arbitrary start."""
    made = ((START_MS + seconds * 1000) << 80) | (7 << 76) | (2 << 62) | number
    return str(UUID(int=made))


def stored(key: str, content: bytes) -> StoredLayer:
    """Describe a file as it lies in a store."""
    return StoredLayer(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def describe(backup_id: str, upload: Upload, **changes: Any) -> BackupMetadata:
    """Make the metadata of a backup of one layer."""
    created = changes.pop("created_at", datetime.now(UTC))
    values: dict[str, Any] = {
        "format_version": 1,
        "id": backup_id,
        "dir": "/work",
        "sandbox_id": "local:0",
        "ttl": 259_200,
        "created_at": created,
        "expires_at": created + timedelta(seconds=259_200),
        "size_bytes": len(LAYER),
        "total_bytes": 1,
        "file_count": 1,
        "manifest": stored(upload.manifest_key, MANIFEST),
        "layers": (stored(upload.layer_key, LAYER),),
    }
    return BackupMetadata(**(values | changes))


async def upload_files(store: Store, backup_id: str, needs: Collection[StoredLayer] = ()) -> Upload:
    """Begin a backup and write its files."""
    upload = await store.begin(backup_id, needs)
    _write(upload)
    return upload


def _write(upload: Upload) -> None:
    Path(upload.layer.path).write_bytes(LAYER)
    Path(upload.manifest.path).write_bytes(MANIFEST)


async def put(store: Store, backup_id: str, **changes: Any) -> BackupMetadata:
    """Write a whole backup."""
    metadata = describe(backup_id, await upload_files(store, backup_id), **changes)
    await store.commit(metadata)
    return metadata


async def ids(store: Store, after: Position | None = None) -> list[str]:
    """Return the ids of a store's backups, newest first."""
    return [metadata.id async for metadata in store.newest(after)]


def read_file(store: Store, layers: Iterable[StoredLayer]) -> list[bytes]:
    """Return the contents of files of a store."""
    return [Path(store.source(layer).grant.path).read_bytes() for layer in layers]
