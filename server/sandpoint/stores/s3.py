"""A store in a bucket of Amazon S3, Cloudflare R2, or whatever speaks S3.

{prefix}backups/{id}/...   as the storage format says
{prefix}incoming/{id}      of a backup that is being written: what it needs of others, and until when that holds
{prefix}doomed/{id}        of a hidden backup whose files are about to be removed

There are no locks. A writer puts its marker first and then looks whether what it needs is doomed; whoever reclaims
puts the other marker first and then looks who needs what. A store that reads what was written shows one to the other.
"""

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio.to_thread
from pydantic import BaseModel, ValidationError

from sandpoint.errors import (
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    SandpointError,
    StoreUnavailableError,
)
from sandpoint.models import BackupMetadata, StoredLayer, describe_invalid, parse_backup_id
from sandpoint.stores.base import LAYER_NAME, MANIFEST_NAME, METADATA_NAME, Position, key_of, time_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_log = logging.getLogger(__name__)

_MAX_METADATA_BYTES = 1 << 20
_BATCH = 16
"""Metadata read at a time, each by a request of its own."""

_FIRST_WINDOW_MS = 60_000
_WIDER = 8
"""How much further back each look for the newest backups goes: keys can be listed in ascending order only."""

_LEASE = timedelta(hours=24)
"""For so long a writer that says no more is taken to be alive."""


class _Marker(BaseModel):
    needs: tuple[str, ...]
    until: datetime


def open_s3_store(url: str) -> "S3Store | None":
    """Return the store of an `s3:` URL, None for other schemes.

    Raises:
        InvalidBackupConfigError: The URL names no bucket.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return None
    prefix = parts.path.strip("/")
    if not parts.netloc or parts.query or parts.fragment:
        raise InvalidBackupConfigError(f"store: {url!r} names no bucket; write s3://bucket or s3://bucket/prefix")
    return S3Store(parts.netloc, f"{prefix}/" if prefix else "")


class S3Store:
    """Backups in a bucket. Implements `Store`."""

    def __init__(self, bucket: str, prefix: str = "", *, connect: Callable[[], "S3Client"] | None = None) -> None:
        """Name the bucket; nothing is asked of it yet.

        Args:
            bucket: Its name.
            prefix: Of all keys, ending with a slash if not empty.
            connect: Makes the client; by default from the environment, as AWS's own tools do.
        """
        self._bucket = bucket
        self._prefix = prefix
        self._connect = connect or _connect

    @property
    def local_path(self) -> str | None:
        """It lies elsewhere."""
        return None

    @cached_property
    def _client(self) -> "S3Client":
        return self._connect()

    # -- requests --

    @contextmanager
    def _available(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(f"the bucket {self._bucket} cannot be used: {_why(error)}") from error

    def _get(self, key: str, limit: int) -> bytes | None:
        with self._available():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except self._client.exceptions.NoSuchKey:
                return None
            with answer["Body"] as body:
                return body.read(limit)

    def _size(self, key: str) -> int | None:
        with self._available():
            try:
                return self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)["ContentLength"]
            except self._client.exceptions.ClientError as error:
                if _status(error) == 404:
                    return None
                raise

    def _put(self, key: str, content: bytes, *, once: bool = False) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if once else {}
        with self._available():
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content, **condition)

    def _delete(self, keys: Iterable[str]) -> None:
        wanted = [{"Key": self._prefix + key} for key in keys]
        for start in range(0, len(wanted), 1000):
            with self._available():
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": wanted[start : start + 1000], "Quiet": True}
                )
            if failed := answer.get("Errors"):
                raise StoreUnavailableError(
                    f"{failed[0].get('Key')} cannot be deleted from {self._bucket}: {failed[0].get('Message')}"
                )

    def _list(self, below: str, *, after: str = "") -> Iterator[tuple[str, int]]:
        """Yield keys and sizes below a prefix, in ascending order."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._available():
            for page in pages.paginate(
                Bucket=self._bucket, Prefix=self._prefix + below, StartAfter=self._prefix + after if after else ""
            ):
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self._prefix), found["Size"]

    # -- writing --

    async def check(self) -> None:
        """See that the bucket is there, and can be written."""
        await anyio.to_thread.run_sync(self._check)

    def _check(self) -> None:
        key = f"incoming/check-{datetime.now(UTC):%Y%m%d%H%M%S%f}"
        self._put(key, b"")
        self._delete([key])

    def _begin(self, backup_id: str, needs: Collection[StoredLayer]) -> None:
        marker = _Marker(needs=tuple(stored.key for stored in needs), until=datetime.now(UTC) + _LEASE)
        self._put(f"incoming/{backup_id}", marker.model_dump_json().encode(), once=True)
        try:
            self._check_there(needs)
        except BaseException:
            self._delete([f"incoming/{backup_id}"])
            raise

    def _check_there(self, needs: Collection[StoredLayer]) -> None:
        # After the marker: who reclaims either sees that, or has put its own, which is seen here.
        for owner in {stored.key.split("/")[1] for stored in needs}:
            if self._size(f"doomed/{owner}") is not None:
                raise BackupIntegrityError(f"backup {owner} is being removed from the store")
        for stored in needs:
            found = self._size(stored.key)
            if found != stored.size:
                raise BackupIntegrityError(
                    f"{stored.key} is {'missing' if found is None else 'truncated'} in the store"
                )

    async def commit(self, metadata: BackupMetadata) -> None:
        """Write `meta.json`, which makes the backup visible."""
        await anyio.to_thread.run_sync(self._commit, metadata)

    def _commit(self, metadata: BackupMetadata) -> None:
        key = key_of(metadata.id, METADATA_NAME)
        if self._size(key) is not None:  # not every server knows the condition
            raise StoreUnavailableError(f"the store has a backup {metadata.id} already")
        self._put(key, metadata.model_dump_json(by_alias=True, indent=2).encode() + b"\n", once=True)
        self._delete([f"incoming/{metadata.id}"])

    async def abandon(self, backup_id: str) -> None:
        """Remove what was written, unless it is visible already."""
        await anyio.to_thread.run_sync(self._abandon, backup_id)

    def _abandon(self, backup_id: str) -> None:
        if self._size(key_of(backup_id, METADATA_NAME)) is None:
            self._delete([key for key, _ in self._list(f"backups/{backup_id}/")])
        self._delete([f"incoming/{backup_id}"])

    # -- reading --

    async def read(self, backup_id: str) -> BackupMetadata:
        """Return a backup's metadata."""
        return await anyio.to_thread.run_sync(self._read, backup_id)

    def _read(self, backup_id: str) -> BackupMetadata:
        content = self._get(key_of(parse_backup_id(backup_id), METADATA_NAME), _MAX_METADATA_BYTES)
        if content is None:
            raise BackupNotFoundError(f"there is no backup {backup_id} in this store; list shows those that there are")
        try:
            metadata = BackupMetadata.model_validate_json(content)
        except ValidationError as error:
            raise BackupIntegrityError(
                f"the metadata of backup {backup_id} is damaged: {describe_invalid(error)[:300]}; nothing was changed"
            ) from None
        if metadata.id != backup_id:
            raise BackupIntegrityError(f"the metadata of backup {backup_id} is that of {metadata.id}")
        return metadata

    async def newest(self, after: Position | None = None, *, about: int = 50) -> AsyncIterator[BackupMetadata]:
        """Iterate over backups, newest first; only those asked for are read, some at a time."""
        async for batch in self._batches(after):
            found: list[BackupMetadata | None] = [None] * len(batch)

            async def read(index: int, position: Position) -> None:
                with suppress(BackupNotFoundError):  # being written, or hidden meanwhile
                    try:
                        found[index] = await self.read(position.id)  # noqa: B023
                    except BackupIntegrityError as error:
                        _log.warning("%s", error)

            async with anyio.create_task_group() as group:
                for index, position in enumerate(batch):
                    group.start_soon(read, index, position)
            for metadata in found:
                if metadata is not None:
                    yield metadata

    async def _batches(self, after: Position | None) -> AsyncIterator[list[Position]]:
        """Yield positions, newest first: looks back ever further, for keys come in ascending order only."""
        end_ms = int(datetime.now(UTC).timestamp() * 1000) + _FIRST_WINDOW_MS if after is None else after.created_ms + 1
        window = _FIRST_WINDOW_MS
        while end_ms > 0:
            start_ms = max(0, end_ms - window)
            found = await anyio.to_thread.run_sync(self._between, start_ms, end_ms)
            wanted = sorted((each for each in found if after is None or each < after), reverse=True)
            for start in range(0, len(wanted), _BATCH):
                yield wanted[start : start + _BATCH]
            end_ms, window = start_ms, window * _WIDER

    def _between(self, start_ms: int, end_ms: int) -> list[Position]:
        """Return the positions of backups whose ids were made in a span of time."""
        positions = []
        for key, _ in self._list("backups/", after=f"backups/{_lowest_id(start_ms)[:-1]}"):
            backup_id, _, name = key.removeprefix("backups/").partition("/")
            with suppress(InvalidBackupConfigError):
                made = time_of(parse_backup_id(backup_id))
                if made is not None and made >= end_ms:
                    break
                if made is not None and name == METADATA_NAME:
                    positions.append(Position(made, backup_id))
        return positions

    # -- removing --

    async def hide(self, backup_id: str) -> None:
        """Remove `meta.json`."""
        await anyio.to_thread.run_sync(self._hide, backup_id)

    def _hide(self, backup_id: str) -> None:
        key = key_of(backup_id, METADATA_NAME)
        if self._size(key) is None:
            raise BackupNotFoundError(f"there is no backup {backup_id} in this store; list shows those that there are")
        self._delete([key])


def _lowest_id(made_ms: int) -> str:
    """Return the lowest UUIDv7 of a moment."""
    digits = f"{made_ms:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"


def _status(error: Exception) -> int | None:
    response: dict[str, Any] = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status is not None else None


def _why(error: Exception) -> str:
    details = getattr(error, "response", {}).get("Error", {})
    return f"{details.get('Code')}: {details.get('Message')}" if details else str(error)


def _connect() -> "S3Client":
    import boto3
    from botocore.config import Config

    # Some servers refuse the checksums that boto3 adds of itself; digests are compared here anyway.
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 5},
        max_pool_connections=_BATCH,
    )
    return boto3.client("s3", config=config)


__all__ = ["LAYER_NAME", "MANIFEST_NAME", "S3Store", "SandpointError", "open_s3_store"]
