"""A store in a bucket of Amazon S3, Cloudflare R2, or whatever speaks S3.

{prefix}backups/{id}/...            as the storage format says
{prefix}incoming/, {prefix}doomed/  markers of those who write and remove: see `s3_markers`
"""

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from datetime import UTC, datetime
from uuid import uuid4

import anyio.to_thread

from sandpoint.engine.relay import Relay
from sandpoint.errors import (
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    StoreUnavailableError,
)
from sandpoint.models import (
    BackupMetadata,
    Lifecycle,
    ReadGrant,
    RelayGrant,
    SentFile,
    StoredFile,
    StoredLayer,
    WriteGrant,
    parse_backup_id,
)
from sandpoint.stores.base import (
    BACKUPS,
    LAYER_NAME,
    MANIFEST_NAME,
    METADATA_NAME,
    Position,
    Upload,
    key_of,
    not_found,
    time_of,
)
from sandpoint.stores.metadata import MAX_METADATA_BYTES, parse_metadata
from sandpoint.stores.s3_bucket import Bucket, side_by_side
from sandpoint.stores.s3_client import Connection
from sandpoint.stores.s3_lifecycle import Kept, apply_rules, show_rules
from sandpoint.stores.s3_listing import Listing
from sandpoint.stores.s3_markers import INCOMING, Lease, Markers, new_lease
from sandpoint.stores.s3_reclaim import Reclaimer
from sandpoint.stores.s3_transfers import Grants, S3Relay, granted_s

_log = logging.getLogger(__name__)


class S3Store:
    """Backups in a bucket. Implements `Store`."""

    def __init__(self, connection: Connection, prefix: str = "", *, direct: bool = False) -> None:
        """Name the bucket; nothing is asked of it yet.

        Args:
            connection: Where it is.
            prefix: Of all keys, ending with a slash if not empty.
            direct: Whether files go through this client, for engines that cannot reach the bucket.
        """
        self._bucket = Bucket(connection, prefix)
        self._markers = Markers(self._bucket)
        self._grants = Grants(self._bucket)
        self._relay = S3Relay(self._bucket) if direct else None
        self._reclaimer = Reclaimer(self._bucket, self._markers, self._read)
        self._listing = Listing(lambda after: self._bucket.folders(BACKUPS, after), self._place)
        self._kept = Kept(self._bucket)
        self._leases: dict[str, Lease] = {}

    def __repr__(self) -> str:
        return f"S3Store({self._bucket.connection!r}, {self._bucket.prefix!r}, direct={self._relay is not None})"

    @property
    def local_path(self) -> None:
        """It lies elsewhere."""
        return

    @property
    def relay(self) -> Relay | None:
        """The server's own client, in direct mode."""
        return self._relay

    # -- writing --

    async def check(self) -> None:
        """See that the bucket is there, and can be written and listed."""
        await anyio.to_thread.run_sync(self._check)

    def _check(self) -> None:
        probe = f"{INCOMING}check-{uuid4()}"
        self._bucket.put(probe, b"")
        try:
            self._markers.doomed()
        finally:
            self._bucket.delete([probe])

    async def begin(self, backup_id: str, needs: Collection[StoredLayer] = (), *, ttl: float = 0) -> Upload:
        """Put the writer's marker, then see that what it needs is there and stays."""
        return await anyio.to_thread.run_sync(self._begin, backup_id, needs, ttl)

    def _begin(self, backup_id: str, needs: Collection[StoredLayer], ttl: float = 0) -> Upload:
        lease = self._leases[backup_id] = new_lease(backup_id, [stored.key for stored in needs])
        self._markers.put(lease)
        try:
            self._check_kept(needs, ttl)
            self._check_there(needs)
        except BackupIntegrityError:
            self._leases.pop(backup_id)
            with suppress(StoreUnavailableError):  # what failed first is the news; the marker ends by itself
                self._markers.end([backup_id])
            raise
        self._check_unused(backup_id)
        return Upload(layer_key=key_of(backup_id, LAYER_NAME), manifest_key=key_of(backup_id, MANIFEST_NAME))

    async def has(self, files: Collection[StoredLayer], *, ttl: float) -> bool:
        """Whether files are there with their sizes, nobody is about to remove them, and the bucket's rules do not."""
        return await anyio.to_thread.run_sync(self._has, files, ttl)

    def _has(self, files: Collection[StoredLayer], ttl: float) -> bool:
        try:
            self._check_kept(files, ttl)
            self._check_there(files)
        except BackupIntegrityError:
            return False
        return True

    def _check_kept(self, needs: Collection[StoredLayer], ttl: float) -> None:
        days = self._kept.days()
        if days is None:
            return
        if ttl > days * 86_400:
            raise InvalidBackupConfigError(
                f"ttl: by its rules the bucket removes files after {days} days; use at most {days * 86_400}, or set "
                "the rules anew with 'sandpoint lifecycle apply --days N'"
            )
        now = datetime.now(UTC).timestamp()
        made = [time_of(stored.key.split("/")[1]) or 0 for stored in needs]
        if made and now - min(made) / 1000 + ttl > days * 86_400:
            raise BackupIntegrityError("by its rules the bucket removes what this would be built on before its time")

    def _check_there(self, needs: Collection[StoredLayer]) -> None:
        if not needs:
            return
        doomed = self._markers.doomed()
        sizes = side_by_side(lambda stored: self._bucket.size(stored.key), needs)
        for stored, size in zip(needs, sizes, strict=True):
            if size != stored.size:
                raise BackupIntegrityError(f"{stored.key} is {'missing' if size is None else 'truncated'} in the store")
            if stored.key.split("/")[1] in doomed:
                raise BackupIntegrityError(f"{stored.key} is about to be removed from the store")

    def _check_unused(self, backup_id: str) -> None:
        if self._bucket.size(key_of(backup_id, METADATA_NAME)) is not None:
            raise StoreUnavailableError(f"the store has a backup {backup_id} already")

    async def longest_ttl(self) -> float | None:
        """Return what the bucket's rules say, as far as they may be known."""
        days = await anyio.to_thread.run_sync(self._kept.days)
        return None if days is None else days * 86_400.0

    async def grant_put(self, key: str, file: StoredFile) -> WriteGrant:
        """Grant leave to write a file by URLs, or through this client in direct mode."""
        return await anyio.to_thread.run_sync(self._grant_put, key, file)

    def _grant_put(self, key: str, file: StoredFile) -> WriteGrant:
        self._markers.hold(self._leases[key.split("/")[1]], granted_s(file.size))
        return self._grants.put(key, file) if self._relay is None else RelayGrant(key=key)

    async def accept(self, key: str, file: SentFile) -> None:
        """Put the file together where it was sent in parts, and see that it is there as it was sent."""
        await anyio.to_thread.run_sync(self._grants.accept, key, file)

    async def commit(self, metadata: BackupMetadata) -> None:
        """Write `meta.json`, which makes the backup visible."""
        await anyio.to_thread.run_sync(self._commit, metadata)

    def _commit(self, metadata: BackupMetadata) -> None:
        key = key_of(metadata.id, METADATA_NAME)
        content = metadata.model_dump_json(by_alias=True, indent=2).encode() + b"\n"
        if metadata.id in self._leases:
            self._markers.hold(self._leases[metadata.id])
        self._check_unused(metadata.id)  # not every server knows the condition of the next request
        if not self._put_once(key, content):
            raise StoreUnavailableError(f"the store has a backup {metadata.id} already")
        self._grants.forget(key_of(metadata.id, ""))
        try:
            self._markers.end([metadata.id])
        except StoreUnavailableError as error:
            _log.info("backup %s is there, but for its marker, which ends by itself: %s", metadata.id, error)
        self._leases.pop(metadata.id, None)  # last: whoever is cancelled before abandons it, which ends the marker

    def _put_once(self, key: str, content: bytes) -> bool:
        """Write a file unless another is there; one that is the same is this one, whose answer was lost."""
        try:
            if self._bucket.put_new(key, content):
                return True
            there = self._bucket.get(key, MAX_METADATA_BYTES)
        except StoreUnavailableError:
            if self._bucket.get(key, MAX_METADATA_BYTES) == content:
                return True
            raise
        if there is None:
            raise StoreUnavailableError(f"{key} could not be written, for somebody else was writing it; try again")
        return there == content

    async def abandon(self, backup_id: str) -> None:
        """Remove what was written, unless it is visible already."""
        await anyio.to_thread.run_sync(self._abandon, backup_id)

    def _abandon(self, backup_id: str) -> None:
        if self._leases.pop(backup_id, None) is None:
            return
        below = key_of(backup_id, "")
        # MinIO lists no uploads below a prefix, and others none at all: what is known is not looked for.
        for key, upload_id in self._grants.forget(below):
            self._bucket.abort_upload(key, upload_id)
        for key, upload_id in self._bucket.uploads(below):
            self._bucket.abort_upload(key, upload_id)
        if self._bucket.size(key_of(backup_id, METADATA_NAME)) is None:
            self._bucket.delete([found.key for found in self._bucket.files(below)])
        self._markers.end([backup_id])

    # -- reading --

    async def read(self, backup_id: str) -> BackupMetadata:
        """Return a backup's metadata."""
        return await anyio.to_thread.run_sync(self._read, backup_id)

    def _read(self, backup_id: str) -> BackupMetadata:
        content = self._bucket.get(key_of(parse_backup_id(backup_id), METADATA_NAME), MAX_METADATA_BYTES)
        if content is None:
            raise not_found(backup_id)
        return parse_metadata(backup_id, content)

    def _read_listed(self, backup_id: str) -> BackupMetadata | None:
        try:
            return self._read(backup_id)
        except BackupNotFoundError:
            return None  # being written, or hidden meanwhile
        except BackupIntegrityError as error:
            _log.warning("%s", error)
            return None

    def _read_all(self, backup_ids: Collection[str]) -> list[BackupMetadata]:
        return [metadata for metadata in side_by_side(self._read_listed, backup_ids) if metadata is not None]

    async def newest(self, after: Position | None = None, *, about: int = 50) -> AsyncIterator[BackupMetadata]:
        """Iterate over backups, newest first; only those asked for are read, so many at a time."""
        batches = self._listing.newest(after, int(datetime.now(UTC).timestamp() * 1000))
        while (batch := await anyio.to_thread.run_sync(next, batches, None)) is not None:
            for start in range(0, len(batch), about):
                some = [position.id for position in batch[start : start + about]]
                for metadata in await anyio.to_thread.run_sync(self._read_all, some):
                    yield metadata

    def _place(self, backup_ids: Collection[str]) -> dict[str, Position]:
        return {metadata.id: Position.of(metadata) for metadata in self._read_all(backup_ids)}

    def grant_get(self, stored: StoredLayer) -> ReadGrant:
        """Grant leave to read a file by a URL, or through this client in direct mode."""
        return self._grants.get(stored.key, stored.size) if self._relay is None else RelayGrant(key=stored.key)

    # -- removing --

    async def hide(self, backup_id: str) -> None:
        """Remove `meta.json`."""
        await anyio.to_thread.run_sync(self._hide, backup_id)

    def _hide(self, backup_id: str) -> None:
        key = key_of(parse_backup_id(backup_id), METADATA_NAME)
        if self._bucket.get(key, 1) is None:
            raise not_found(backup_id)
        # A writer that died after its commit left its marker: it would keep the files for a day.
        self._markers.end([backup_id])
        self._bucket.delete([key])
        self._reclaimer.hidden.add(backup_id)

    async def reclaim(self, backup_ids: Collection[str] | None = None) -> tuple[list[str], int]:
        """Remove files of hidden and abandoned backups that no visible one names."""
        return await anyio.to_thread.run_sync(self._reclaimer.reclaim, backup_ids)

    async def reclaimable(self, without: Collection[str] = ()) -> tuple[list[str], int]:
        """Return what `reclaim` would, were some backups hidden."""
        return await anyio.to_thread.run_sync(self._reclaimer.reclaimable, without)

    # -- the bucket's own rules --

    async def lifecycle(self) -> Lifecycle:
        """Return the rules by which the server itself removes files of this bucket."""
        return await anyio.to_thread.run_sync(show_rules, self._bucket)

    async def apply_lifecycle(self, days: int) -> Lifecycle:
        """Set rules by which backups go after so many days, and what was left behind after two; return all rules.

        Raises:
            InvalidBackupConfigError: A backup would lose files before its time; the message names the least `days`.
        """
        return await anyio.to_thread.run_sync(apply_rules, self._bucket, days, self._read)
