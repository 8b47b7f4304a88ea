"""What the tests of stores share: a backup written through a store's own protocol."""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio.to_thread
import urllib3

from sandpoint.errors import BackupIntegrityError
from sandpoint.models import (
    BackupMetadata,
    GetGrant,
    MultipartGrant,
    PathGrant,
    PutGrant,
    RelayGrant,
    SentFile,
    StoredFile,
    StoredLayer,
    WriteGrant,
)
from sandpoint.stores import Store
from sandpoint.stores.base import Position, Upload
from sandpoint.stores.s3 import S3Store

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
    await write_file(store, upload.layer_key, LAYER)
    await write_file(store, upload.manifest_key, MANIFEST)
    return upload


async def write_file(store: Store, key: str, content: bytes) -> None:
    """Write a file by whatever grant the store gives, as an engine would."""
    described = StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    grant = await store.grant_put(key, described)
    parts = await anyio.to_thread.run_sync(send, store, grant, content)
    await store.accept(key, SentFile(size=described.size, sha256=described.sha256, parts=parts))


def send(store: Store, grant: WriteGrant, content: bytes) -> tuple[str, ...]:
    """Send a file; return the ETags of its parts, where it goes in parts."""
    match grant:
        case PathGrant():
            Path(grant.path).write_bytes(content)
        case PutGrant():
            request("PUT", grant.url, content, grant.headers)
        case MultipartGrant():
            starts = range(0, len(content), grant.part_bytes)
            pieces = [content[start : start + grant.part_bytes] for start in starts]
            return tuple(
                request("PUT", url, piece).headers["ETag"] for url, piece in zip(grant.urls, pieces, strict=True)
            )
        case RelayGrant():
            assert store.relay is not None
            with tempfile.NamedTemporaryFile() as file:
                file.write(content)
                file.flush()
                store.relay.write(grant.key, file.name, lambda: None)
    return ()


def receive(store: Store, layer: StoredLayer) -> bytes:
    """Return the content of a file, by whatever grant the store gives.

    Raises:
        FileNotFoundError: It is not there.
    """
    grant = store.grant_get(layer)
    match grant:
        case PathGrant():
            return Path(grant.path).read_bytes()
        case GetGrant():
            return request("GET", grant.url).data
        case _:
            assert store.relay is not None
            try:
                return b"".join(store.relay.read(layer.key))
            except BackupIntegrityError:
                raise FileNotFoundError(layer.key) from None


def request(
    method: str, url: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
) -> urllib3.BaseHTTPResponse:
    """Make a request as an engine would, without credentials.

    Raises:
        FileNotFoundError: There is no such file.
    """
    authority = os.environ.get("AWS_CA_BUNDLE")
    with urllib3.PoolManager(ca_certs=authority) as pool:
        answer = pool.request(method, url, body=content, headers=headers, retries=False, timeout=30)
    if answer.status == 404:
        raise FileNotFoundError
    assert answer.status in {200, 206}, answer.data
    return answer


async def put(store: Store, backup_id: str, **changes: Any) -> BackupMetadata:
    """Write a whole backup."""
    metadata = describe(backup_id, await upload_files(store, backup_id), **changes)
    await store.commit(metadata)
    return metadata


async def put_foreign(store: Store, backup_id: str, **changes: Any) -> None:
    """Write a backup as Cloudflare's Sandbox SDK does."""
    values = {
        "id": backup_id,
        "dir": "/workspace",
        "name": None,
        "sizeBytes": len(LAYER),
        "ttl": 259_200,
        "createdAt": datetime.now(UTC).isoformat(),
    }
    await put_raw(store, f"backups/{backup_id}/data.sqsh", LAYER)
    await put_raw(store, f"backups/{backup_id}/meta.json", json.dumps(values | changes).encode())


async def put_raw(store: Store, key: str, content: bytes) -> None:
    """Write a file as others may, without asking."""
    await anyio.to_thread.run_sync(_put_raw, store, key, content)


def _put_raw(store: Store, key: str, content: bytes) -> None:
    if isinstance(store, S3Store):
        store._bucket.put(key, content)
        return
    assert store.local_path is not None
    path = Path(store.local_path, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


async def ids(store: Store, after: Position | None = None) -> list[str]:
    """Return the ids of a store's backups, newest first."""
    return [metadata.id async for metadata in store.newest(after)]


def read_file(store: Store, layers: Iterable[StoredLayer]) -> list[bytes]:
    """Return the contents of files of a store."""
    return [receive(store, layer) for layer in layers]
