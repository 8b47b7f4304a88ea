"""Which files of a bucket no backup needs, and their removal. Who may do what when is said in `s3_markers`."""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from uuid import UUID

from sandpoint.errors import BackupNotFoundError
from sandpoint.models import BackupMetadata
from sandpoint.stores.base import BACKUPS, METADATA_NAME, id_in, key_of, may_be_anothers, time_of
from sandpoint.stores.s3_bucket import Bucket, side_by_side
from sandpoint.stores.s3_markers import Markers, Writers

Read = Callable[[str], BackupMetadata]
"""Returns a backup's metadata, or raises."""


_CLOCKS_APART_MS = 3_600_000

_AT_ONCE = 1000
"""Files that are removed before it is seen again whether they may be."""


@dataclass(frozen=True)
class _Upload:
    owner: str
    key: str
    id: str


@dataclass
class _Files:
    """What lies in the bucket: files and their sizes by backup, uploads that have not ended, and who is visible."""

    sizes: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    uploads: list[_Upload] = field(default_factory=list)
    visible: set[str] = field(default_factory=set)

    def hidden(self) -> set[str]:
        return {*self.sizes, *(upload.owner for upload in self.uploads)} - self.visible


class Reclaimer:
    """Removes files that no visible backup names and nobody is writing."""

    def __init__(self, bucket: Bucket, markers: Markers, read: Read) -> None:
        """Take the bucket, and how to read the metadata in it."""
        self._bucket = bucket
        self._markers = markers
        self._read = read
        self._named: dict[str, frozenset[str]] = {}
        """By backup, what it names of others: it never changes, and is read once."""
        self.hidden: set[str] = set()
        """Backups that were hidden here: nobody writes them, whatever they look like."""

    def reclaim(self, only: Collection[str] | None = None) -> tuple[list[str], int]:
        """Do it; return whose files, and how many bytes.

        Args:
            only: Look at the files of these backups. What names them was made after them, so that of all others only
                the younger ones are read.
        """
        before = self._look(only)
        self._markers.clear()
        hidden = before.hidden()
        doom = self._markers.doom(hidden)
        try:
            writers = self._markers.writers()
            now = self._look(only) if hidden else before
            now.visible |= before.visible  # an answer that was altered on its way hides none
            unneeded = self._unneeded(now, hidden - now.visible, writers)
            self._abort(before.uploads, writers)
            keys = [key for sizes in unneeded.values() for key in sizes]
            for start in range(0, len(keys), _AT_ONCE):
                doom.check()
                self._bucket.delete(keys[start : start + _AT_ONCE])
        finally:
            self._markers.lift(doom)
        self._markers.end(writers.dead)
        return list(unneeded), _total(unneeded)

    def _abort(self, uploads: Collection[_Upload], writers: Writers) -> None:
        for upload in uploads:
            if upload.owner not in writers.alive:
                self._bucket.abort_upload(upload.key, upload.id)

    def reclaimable(self, without: Collection[str]) -> tuple[list[str], int]:
        """Return what `reclaim` would, were some backups hidden."""
        writers = self._markers.writers()
        files = self._look()
        files.visible -= {*without}
        unneeded = self._unneeded(files, files.hidden(), writers)
        return list(unneeded), _total(unneeded)

    def _look(self, only: Collection[str] | None = None) -> _Files:
        files = _Files()
        after = "" if only is None else _before(only)
        # Before any marker is looked at: whoever writes one of these has a marker then, or has ended.
        for key, upload_id in self._bucket.uploads(BACKUPS):
            if (owner := _owner(key)) and time_of(owner) is not None and (only is None or owner in only):
                files.uploads.append(_Upload(owner, key, upload_id))
        for found in self._bucket.files(BACKUPS, after):
            if owner := _owner(found.key):
                if found.key == key_of(owner, METADATA_NAME):
                    files.visible.add(owner)
                elif (only is None or owner in only) and self._is_over(owner, found.age):
                    files.sizes[owner][found.key] = found.size
        return files

    def _is_over(self, owner: str, age: float) -> bool:
        return owner in self.hidden or not may_be_anothers(owner, age)

    def _unneeded(self, files: _Files, hidden: Collection[str], writers: Writers) -> dict[str, dict[str, int]]:
        candidates = [backup_id for backup_id in hidden if backup_id not in writers.alive]
        if not candidates:
            return {}
        needed = writers.needs.union(*self._named_by(files.visible))
        uploading = {upload.owner for upload in files.uploads}
        found: dict[str, dict[str, int]] = {}
        for backup_id in candidates:
            sizes = {key: size for key, size in files.sizes[backup_id].items() if key not in needed}
            if sizes or backup_id in uploading:
                found[backup_id] = sizes
        return found

    def _named_by(self, visible: Collection[str]) -> list[frozenset[str]]:
        """Return what visible backups name of others; one whose metadata is damaged may need any file."""
        known = self._named
        unread = [backup_id for backup_id in visible if backup_id not in known]
        named = dict(zip(unread, side_by_side(self._read_named, unread), strict=True))
        # One that was hidden meanwhile is asked for again: should a late request put it back, it is heard.
        self._named = known | {backup_id: keys for backup_id, keys in named.items() if keys is not None}
        return [self._named.get(backup_id, frozenset()) for backup_id in visible]

    def _read_named(self, backup_id: str) -> frozenset[str] | None:
        try:
            metadata = self._read(backup_id)
        except BackupNotFoundError:
            return None
        return frozenset(stored.key for stored in metadata.files if _owner(stored.key) != backup_id)


def _before(backup_ids: Collection[str]) -> str:
    """Return the id from which on all lies that may name files of some backups.

    Ids are made of times, by clocks that are at most half an hour apart: servers refuse requests of others.
    """
    made = [time_of(backup_id) for backup_id in backup_ids]
    if not made or None in made:
        return ""
    first = min(time for time in made if time is not None) - _CLOCKS_APART_MS
    return str(UUID(int=max(first, 0) << 80))


def _owner(key: str) -> str | None:
    """Return the id of the backup whose file a key is, None if it is nobody's."""
    return id_in(key.removeprefix(BACKUPS).partition("/")[0])


def _total(unneeded: dict[str, dict[str, int]]) -> int:
    return sum(sum(sizes.values()) for sizes in unneeded.values())
