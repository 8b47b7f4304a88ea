"""What every store can do."""

import re
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from sandpoint.engine.relay import Relay
from sandpoint.errors import BackupNotFoundError, InvalidBackupConfigError
from sandpoint.models import (
    BackupMetadata,
    FileRole,
    Lifecycle,
    ReadGrant,
    SentFile,
    StoredFile,
    StoredLayer,
    WriteGrant,
    parse_backup_id,
)

LAYER_NAME = "data.sqsh"
MANIFEST_NAME = "manifest.zst"
METADATA_NAME = "meta.json"
BACKUPS = "backups/"


@dataclass(frozen=True)
class Upload:
    """The keys of the files of one new backup; `staging` is a folder to make them in, where the store has one."""

    layer_key: str
    manifest_key: str
    staging: str | None = None

    def key_of(self, role: FileRole) -> str:
        """Return the key of one of them."""
        return self.layer_key if role == "layer" else self.manifest_key


class Position(NamedTuple):
    """A backup's place in a list by time: milliseconds since 1970, then the id."""

    created_ms: int
    id: str

    def to_cursor(self) -> str:
        """Return it as the text that a client gives back."""
        return f"{self.created_ms:012x}.{self.id}"

    @classmethod
    def from_cursor(cls, cursor: str) -> "Position":
        """Read what `to_cursor` wrote.

        Raises:
            InvalidBackupConfigError: It is none.
        """
        time, _, backup_id = cursor.partition(".")
        try:
            return cls(int(time, 16), parse_backup_id(backup_id))
        except (ValueError, InvalidBackupConfigError):
            raise InvalidBackupConfigError(
                f"cursor: {cursor[:80]!r} is none; pass the next_cursor of the page before, or leave it out"
            ) from None

    @classmethod
    def of(cls, metadata: BackupMetadata) -> "Position":
        """Return a backup's place: that of its id, where the id was made by time, else that of its metadata.

        An id of another version is taken for one made by time if its first digits are one, from 2024 on and not after
        the backup was made. Most of those that are listed among ids made by time so have the place of their keys.
        """
        made = time_of(metadata.id)
        if made is not None:
            return cls(made, metadata.id)
        created = int(metadata.created_at.timestamp() * 1000)
        digits = UUID(metadata.id).int >> 80
        return cls(digits if FIRST_MS <= digits <= created else created, metadata.id)


FIRST_MS = 1_704_067_200_000
"""2024-01-01: no id that was made by time is older, unless its clock was wrong."""


_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""RFC 9562, 5.7: 48 bits of time, the version, 12 bits, the variant, 62 bits."""


def time_of(backup_id: str) -> int | None:
    """Return the time in a UUIDv7, in milliseconds since 1970; None for other versions."""
    found = _UUID7.fullmatch(backup_id)
    return int(found[1] + found[2], 16) if found else None


UNMARKED_S = 3600.0
"""So long another program may take from the end of its archive to its metadata."""


def may_be_anothers(backup_id: str, age_s: float) -> bool:
    """Whether files that no metadata names may be those of a backup that another program is writing just now.

    It leaves no marker. Our ids are made by time, and theirs are not.
    """
    return time_of(backup_id) is None and age_s < UNMARKED_S


def without_login(url: str) -> str:
    """Return a URL without what somebody may have written before its host: messages show it."""
    return re.sub(r"//[^/]*@", "//...@", url)


def key_of(backup_id: str, name: str) -> str:
    """Return the key of a file of a backup."""
    return f"{BACKUPS}{backup_id}/{name}"


def id_in(name: str) -> str | None:
    """Return the backup's id that a name in a store is, None if it is something else's."""
    with suppress(InvalidBackupConfigError):
        if parse_backup_id(name) == name:
            return name
    return None


def not_found(backup_id: str) -> BackupNotFoundError:
    """Return the error for a backup that is not there."""
    return BackupNotFoundError(f"there is no backup {backup_id} in this store; list shows those that there are")


class Store(Protocol):
    """Keeps backups. A backup exists when its `meta.json` does.

    Raises, everywhere: `StoreUnavailableError` where the store cannot be reached, read or written.
    """

    @property
    def local_path(self) -> str | None:
        """Where it lies on this machine, if it does: no directory around or in it may be backed up."""
        ...

    @property
    def relay(self) -> Relay | None:
        """What carries files for engines that cannot reach the store; None where all that it grants is reachable."""
        ...

    async def check(self) -> None:
        """See that backups can be written, making the store if it is not there."""
        ...

    async def begin(self, backup_id: str, needs: Collection[StoredLayer] = (), *, ttl: float = 0) -> Upload:
        """Prepare for a new backup's files. End with `commit` or `abandon`.

        Args:
            backup_id: The new one.
            needs: Files of other backups that it will name: they are kept until the end.
            ttl: Seconds that it shall live.

        Raises:
            BackupIntegrityError: One of those is gone, or would go before its time.
            InvalidBackupConfigError: By the store's own rules nothing stays for so long.
        """
        ...

    async def has(self, files: Collection[StoredLayer], *, ttl: float) -> bool:
        """Whether files are there with their sizes, and stay for so many seconds as far as the store's rules say."""
        ...

    async def longest_ttl(self) -> float | None:
        """Return for how many seconds the store's own rules leave a new backup whole; None for as long as it likes."""
        ...

    async def grant_put(self, key: str, file: StoredFile) -> WriteGrant:
        """Grant leave to write a file of a backup that was begun."""
        ...

    async def accept(self, key: str, file: SentFile) -> None:
        """See that a file that was sent has arrived, whole.

        Raises:
            StoreUnavailableError: It has not.
        """
        ...

    async def commit(self, metadata: BackupMetadata) -> None:
        """Make a backup visible, once its files are there: an id is committed once."""
        ...

    async def abandon(self, backup_id: str) -> None:
        """Remove all parts of a backup that was not committed."""
        ...

    async def read(self, backup_id: str) -> BackupMetadata:
        """Return a backup's metadata.

        Raises:
            BackupNotFoundError: There is none of that id.
            BackupIntegrityError: Its metadata is damaged.
        """
        ...

    def newest(self, after: Position | None = None, *, about: int = 50) -> AsyncIterator[BackupMetadata]:
        """Iterate over backups, newest first, from just after a position; damaged ones are logged and passed over.

        Args:
            after: Where to go on; None to begin with the newest.
            about: How many are likely to be asked for: so many are read at a time.
        """
        ...

    def grant_get(self, stored: StoredLayer) -> ReadGrant:
        """Grant leave to read a file."""
        ...

    async def hide(self, backup_id: str) -> None:
        """Take a backup away from view, at once.

        Raises:
            BackupNotFoundError: There is none of that id, or no more.
        """
        ...

    async def reclaim(self, backup_ids: Collection[str] | None = None) -> tuple[list[str], int]:
        """Remove files that no visible backup names and nobody is writing; return whose, and how many bytes.

        Args:
            backup_ids: Look at the files of these at least; None for all that there are.

        Raises:
            BackupIntegrityError: A visible backup's metadata is damaged: what it needs is not known.
        """
        ...

    async def reclaimable(self, without: Collection[str] = ()) -> tuple[list[str], int]:
        """Return what `reclaim` would, were some backups hidden; nothing is changed."""
        ...

    async def lifecycle(self) -> Lifecycle:
        """Return the rules by which the store's own server removes files.

        Raises:
            InvalidBackupConfigError: It is a folder, which has none.
        """
        ...

    async def apply_lifecycle(self, days: int) -> Lifecycle:
        """Set rules by which files of backups go after so many days, and what was left behind sooner; return all rules.

        Raises:
            InvalidBackupConfigError: A backup would lose files before its time, or it is a folder.
        """
        ...
