"""Who writes and who removes: markers in the bucket, for there are no locks.

incoming/{id}           of a backup that is being written: the keys of others that it needs, and until when that holds
doomed/{id}/{remover}   of a hidden backup whose unneeded files somebody is about to remove

A server that reads what was written shows one of two to the other, if each writes its marker first and then looks:

writer   1 put incoming/  2 list doomed/    3 see that what it needs is there  4 files, meta.json         5 end 1
remover  1 put doomed/    2 list incoming/  3 read every meta.json             4 remove files nobody named  5 end 1

- A writer that does not see the doom (its 2) put its marker before the remover's 2, so that what it needs is kept; or
  after the remover's 5, and misses the files at its 3, which is why 3 comes after 2. One that sees it gives up.
- A writer ends its marker after its meta.json is there: a remover that no longer sees the one sees the other.
- Each remover has markers of its own: one that ends leaves those of another, which may have looked earlier, in force.
- A hider removes meta.json, and the marker of a writer that died after its commit. It looks for nothing: what it hides
  is a remover's to judge, at 3.
- A dead writer's marker holds until its lease ends, then its files go. A living one renews its lease before that where
  a file takes so long, and neither renews nor commits in the last `_MARGIN` of it: clocks may be apart (the server
  refuses requests of more than 15 minutes), and its last request may be on its way for minutes.
- A dead remover's doom counts for `DOOM_S`, by the server's clock. A living one removes nothing at the end of that.
- A request that arrives when its sender has given it up can put a meta.json back that was abandoned or hidden in
  the same minutes. Its files are missing then, which verify and restore say; it goes with its ttl, or by delete.
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from sandpoint.errors import StoreUnavailableError
from sandpoint.stores.base import id_in
from sandpoint.stores.s3_bucket import Bucket, side_by_side

INCOMING = "incoming/"
DOOMED = "doomed/"

LEASE = timedelta(hours=24)
_MARGIN = timedelta(hours=1)

DOOM_S = 3600.0

_MAX_MARKER_BYTES = 1 << 20


class _Marker(BaseModel):
    needs: tuple[str, ...]
    until: datetime


@dataclass
class Lease:
    """A writer's own."""

    backup_id: str
    needs: tuple[str, ...]
    until: datetime


def new_lease(backup_id: str, needs: Collection[str]) -> Lease:
    """Return a lease from now on."""
    return Lease(backup_id, tuple(needs), datetime.now(UTC) + LEASE)


@dataclass(frozen=True)
class Writers:
    """Those that had markers: who lives, what they need, and who died."""

    alive: frozenset[str]
    needs: frozenset[str]
    dead: frozenset[str]


class Markers:
    """The markers of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        """Take the bucket that they lie in."""
        self._bucket = bucket

    # -- writers --

    def put(self, lease: Lease) -> None:
        """Say that a backup is being written."""
        marker = _Marker(needs=lease.needs, until=lease.until)
        self._bucket.put(INCOMING + lease.backup_id, marker.model_dump_json().encode())

    def hold(self, lease: Lease, seconds: float = 0) -> None:
        """See that a lease holds for so many seconds more, and renew it if need be.

        Raises:
            StoreUnavailableError: It has ended, or is about to: what was written may be removed.
        """
        now = datetime.now(UTC)
        if now > lease.until - _MARGIN:
            raise StoreUnavailableError(
                f"backup {lease.backup_id} took longer to write than the store waits for one "
                f"({LEASE.total_seconds() / 3600:.0f} hours since the last sign of life); try again"
            )
        end = now + timedelta(seconds=seconds) + _MARGIN
        if end > lease.until:
            lease.until = end + LEASE
            self.put(lease)

    def end(self, backup_ids: Iterable[str]) -> None:
        """Remove writers' markers."""
        self._bucket.delete([INCOMING + backup_id for backup_id in backup_ids])

    def writers(self) -> Writers:
        """Return who writes."""
        # Twice: a name may be altered on its way, and a writer who is missed loses its files.
        ids = {name for _ in range(2) for found in self._bucket.files(INCOMING) if (name := _writer_of(found.key))}
        markers = dict(zip(ids, side_by_side(self._read, ids), strict=True))
        now = datetime.now(UTC)
        alive = {backup_id: marker for backup_id, marker in markers.items() if marker and marker.until > now}
        return Writers(
            alive=frozenset(alive),
            needs=frozenset(key for marker in alive.values() for key in marker.needs),
            dead=frozenset(backup_id for backup_id, marker in markers.items() if marker and backup_id not in alive),
        )

    def _read(self, backup_id: str) -> _Marker | None:
        content = self._bucket.get(INCOMING + backup_id, _MAX_MARKER_BYTES)
        if content is None:
            return None  # it ended well meanwhile
        try:
            return _Marker.model_validate_json(content)
        except ValidationError as error:
            raise StoreUnavailableError(
                f"{INCOMING}{backup_id} in {self._bucket.connection.place} cannot be understood, so that what it needs "
                f"is not known: {error.error_count()} errors; delete it if nothing of yours writes that backup"
            ) from None

    # -- removers --

    def doom(self, backup_ids: Collection[str]) -> "Doom":
        """Say that the files of hidden backups are about to be removed."""
        doom = Doom(str(uuid4()), _clock())
        doom.keys = [f"{DOOMED}{backup_id}/{doom.remover}" for backup_id in backup_ids]
        try:
            side_by_side(lambda key: self._bucket.put(key, b""), doom.keys)
        except BaseException:
            self.lift(doom)
            raise
        return doom

    def lift(self, doom: "Doom") -> None:
        """Take it back, or say that it is done."""
        self._bucket.delete(doom.keys)

    def doomed(self) -> set[str]:
        """Return the ids of backups whose files somebody is about to remove."""
        return {_doomed_id(found.key) for found in self._bucket.files(DOOMED) if found.age < DOOM_S}

    def clear(self) -> None:
        """Remove the markers of dead removers."""
        self._bucket.delete([found.key for found in self._bucket.files(DOOMED) if found.age > 2 * DOOM_S])


class Doom:
    """A remover's own markers."""

    def __init__(self, remover: str, since: float) -> None:
        """Take note of when it began, before the first of them is written."""
        self.remover = remover
        self.keys: list[str] = []
        self._since = since

    def check(self) -> None:
        """See that it counts for all writers, before files are removed.

        Raises:
            StoreUnavailableError: Not for much longer.
        """
        if _clock() - self._since > 0.9 * DOOM_S:
            raise StoreUnavailableError("it took too long to see which files are needed: some are left; try again")


def _writer_of(key: str) -> str | None:
    return id_in(key.removeprefix(INCOMING))


def _doomed_id(key: str) -> str:
    return key.removeprefix(DOOMED).partition("/")[0]


def _clock() -> float:
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
