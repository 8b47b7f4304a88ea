"""A store in a folder of this machine.

backups/{id}/...   as the storage format says
incoming/{id}      held locked by the process that writes the backup; a dead writer's is cleared by the next
lock               held for moments, so that a marker is never seen before it is locked
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import anyio.to_thread

from sandpoint.engine.state import sync_directory, write_new
from sandpoint.errors import (
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    StoreUnavailableError,
)
from sandpoint.models import (
    BackupMetadata,
    Lifecycle,
    PathGrant,
    SentFile,
    StoredFile,
    StoredLayer,
    parse_backup_id,
)
from sandpoint.settings import resolve
from sandpoint.stores.base import (
    LAYER_NAME,
    MANIFEST_NAME,
    METADATA_NAME,
    Position,
    Upload,
    id_in,
    key_of,
    may_be_anothers,
    not_found,
    time_of,
    without_login,
)
from sandpoint.stores.metadata import MAX_METADATA_BYTES, parse_metadata
from sandpoint.stores.remembered import Remembered

_MOST_AT_ONCE = 100

_log = logging.getLogger(__name__)


def open_local_store(url: str, _settings: object = None) -> "LocalStore | None":
    """Return the store of a `file:` URL, None for other schemes.

    Raises:
        InvalidBackupConfigError: The URL names no absolute path of this machine.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not path.startswith("/") or path == "/" or "\0" in path:
        raise InvalidBackupConfigError(
            f"store: {without_login(url)!r} names no folder of this machine; write file:///absolute/path, with three "
            "slashes"
        )
    return LocalStore(resolve(path))


class LocalStore:
    """Backups in a folder. Implements `Store`."""

    def __init__(self, path: str) -> None:
        """Name the folder; it is made when first written to."""
        self._path = path
        self._backups = os.path.join(path, "backups")
        self._incoming = os.path.join(path, "incoming")
        self._writing: dict[str, int] = {}
        self._hidden: set[str] = set()
        self._remembered = Remembered()

    @property
    def local_path(self) -> str | None:
        """The folder."""
        return self._path

    async def longest_ttl(self) -> None:
        """Have no limit: nobody but a prune removes files of a folder."""
        return

    @property
    def relay(self) -> None:
        """Needed by nobody: files are read and written by their paths."""
        return

    def _folder(self, backup_id: str) -> str:
        return os.path.join(self._backups, backup_id)

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._path
            raise StoreUnavailableError(
                f"the store in {self._path} cannot be used: {error.strerror} ({where}); "
                "see that the folder can be written and has space, or set SANDPOINT_STORE"
            ) from error

    # -- writing --

    async def check(self) -> None:
        """Make the folders, and see that they can be written."""
        await anyio.to_thread.run_sync(self._check)

    def _check(self) -> None:
        with self._available():
            for folder in (self._backups, self._incoming):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            with self._locked():
                os.utime(self._incoming)

    async def begin(self, backup_id: str, needs: Collection[StoredLayer] = (), *, ttl: float = 0) -> Upload:
        """Make the backup's folder, note what it needs, and clear away what dead writers left."""
        return await anyio.to_thread.run_sync(self._begin, backup_id, needs)

    def _begin(self, backup_id: str, needs: Collection[StoredLayer]) -> Upload:
        self._check()
        with self._available():
            with self._locked():
                for left in self._dead_writers():
                    self._clear_parts(left)
                    self._remove_marker(left)
                marker = os.open(
                    os.path.join(self._incoming, backup_id),
                    os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                    0o600,
                )
                self._writing[backup_id] = marker
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Under the lock: `reclaim` either sees what is needed, or was done before and is seen here.
                with open(marker, "w", closefd=False) as file:
                    file.write("\n".join(stored.key for stored in needs))
            self._check_there(backup_id, needs)
            os.mkdir(self._folder(backup_id), 0o700)
            sync_directory(self._backups)
        layer_key, manifest_key = key_of(backup_id, LAYER_NAME), key_of(backup_id, MANIFEST_NAME)
        return Upload(layer_key=layer_key, manifest_key=manifest_key, staging=self._folder(backup_id))

    async def grant_put(self, key: str, file: StoredFile) -> PathGrant:
        """Grant leave to write a file by its path."""
        return PathGrant(path=os.path.join(self._path, key))

    async def accept(self, key: str, file: SentFile) -> None:
        """See that the file is there with its size."""
        await anyio.to_thread.run_sync(self._accept, key, file)

    def _accept(self, key: str, file: SentFile) -> None:
        with self._available():
            size = os.stat(os.path.join(self._path, key)).st_size
        if size != file.size:
            raise StoreUnavailableError(f"{key} has {size} bytes in the store where {file.size} were sent; try again")

    async def has(self, files: Collection[StoredLayer], *, ttl: float) -> bool:
        """Whether files are there with their sizes."""
        return await anyio.to_thread.run_sync(lambda: all(self._size(stored) == stored.size for stored in files))

    def _size(self, stored: StoredLayer) -> int:
        try:
            with self._available():
                return os.stat(os.path.join(self._path, stored.key)).st_size
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return -1
            raise

    def _check_there(self, backup_id: str, needs: Collection[StoredLayer]) -> None:
        for stored in needs:
            found = self._size(stored)
            if found != stored.size:
                self._finish(backup_id)
                raise BackupIntegrityError(f"{stored.key} is {'missing' if found < 0 else 'truncated'} in the store")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(os.path.join(self._path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _markers(self) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(self._incoming)
        return []

    def _dead_writers(self) -> list[str]:
        dead = []
        for name in self._markers():
            try:
                fd = os.open(os.path.join(self._incoming, name), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # it ended well meanwhile
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead.append(name)
            except BlockingIOError:
                pass  # its writer lives
            finally:
                os.close(fd)
        return dead

    def _clear_parts(self, backup_id: str) -> None:
        """Remove the files of a backup that was not committed."""
        folder = self._folder(backup_id)
        if os.path.isdir(folder) and not self._is_visible(backup_id):
            shutil.rmtree(folder)
        else:
            self._clear_unfinished(folder)

    def _is_visible(self, backup_id: str) -> bool:
        return os.path.exists(os.path.join(self._folder(backup_id), METADATA_NAME))

    @staticmethod
    def _clear_unfinished(folder: str) -> None:
        """Remove what `write_new` leaves when its process is killed just after the file has its name."""
        with suppress(FileNotFoundError):
            for name in os.listdir(folder):
                if name.startswith(f"{METADATA_NAME}."):
                    os.unlink(os.path.join(folder, name))

    async def commit(self, metadata: BackupMetadata) -> None:
        """Write `meta.json`, which makes the backup visible."""
        await anyio.to_thread.run_sync(self._commit, metadata)

    def _commit(self, metadata: BackupMetadata) -> None:
        with self._available():
            content = metadata.model_dump_json(by_alias=True, indent=2)
            write_new(os.path.join(self._folder(metadata.id), METADATA_NAME), content.encode() + b"\n")
            self._remove_marker(metadata.id)
        self._release(metadata.id)

    async def abandon(self, backup_id: str) -> None:
        """Remove what was written, unless it is visible already."""
        await anyio.to_thread.run_sync(self._finish, backup_id)

    def _finish(self, backup_id: str) -> None:
        if backup_id not in self._writing:
            return
        try:
            with self._available():
                self._clear_parts(backup_id)
                self._remove_marker(backup_id)
        finally:
            self._release(backup_id)  # what could not be cleared now is a dead writer's to others

    def _release(self, backup_id: str) -> None:
        marker = self._writing.pop(backup_id, None)
        if marker is not None:
            os.close(marker)

    def _remove_marker(self, backup_id: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._incoming, backup_id))

    # -- reading --

    async def read(self, backup_id: str) -> BackupMetadata:
        """Return a backup's metadata."""
        return await anyio.to_thread.run_sync(self._read, backup_id)

    def _read(self, backup_id: str) -> BackupMetadata:
        path = os.path.join(self._folder(parse_backup_id(backup_id)), METADATA_NAME)
        try:
            with self._available(), open(path, "rb") as file:
                content = file.read(MAX_METADATA_BYTES)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise not_found(backup_id) from None
            raise
        return parse_metadata(backup_id, content)

    async def newest(self, after: Position | None = None, *, about: int = 50) -> AsyncIterator[BackupMetadata]:
        """Iterate over backups, newest first; only those asked for are read."""
        positions = await anyio.to_thread.run_sync(self._positions)
        wanted = [position for position in positions if after is None or position < after]
        done = 0
        while done < len(wanted):
            batch = wanted[done : done + about]
            for metadata in await anyio.to_thread.run_sync(self._read_all, batch):
                yield metadata
            done += about
            about = min(2 * about, max(about, _MOST_AT_ONCE))  # who asks for more than likely looks for few among many

    def _positions(self) -> list[Position]:
        positions = []
        for name in self._ids():
            made = time_of(name)
            if made is not None:
                positions.append(Position(made, name))
            else:
                positions += [Position.of(metadata) for metadata in self._read_all([Position(0, name)])]
        return sorted(positions, reverse=True)

    def _ids(self) -> list[str]:
        ids: list[str] = []
        with self._available(), suppress(FileNotFoundError):
            ids = [name for name in os.listdir(self._backups) if id_in(name)]
        return ids

    def _read_again(self, backup_id: str) -> BackupMetadata:
        path = os.path.join(self._folder(backup_id), METADATA_NAME)
        return self._remembered.read(path, lambda: self._read(backup_id))

    def _read_all(self, positions: list[Position]) -> list[BackupMetadata]:
        found = []
        for position in positions:
            try:
                found.append(self._read_again(position.id))
            except BackupNotFoundError:
                continue  # being written, or hidden meanwhile
            except BackupIntegrityError as error:
                _log.warning("%s", error)
        return found

    def grant_get(self, stored: StoredLayer) -> PathGrant:
        """Grant leave to read a file by its path."""
        return PathGrant(path=os.path.join(self._path, stored.key))

    # -- removing --

    async def hide(self, backup_id: str) -> None:
        """Remove `meta.json`."""
        await anyio.to_thread.run_sync(self._hide, backup_id)

    def _hide(self, backup_id: str) -> None:
        folder = self._folder(backup_id)
        metadata = os.path.join(folder, METADATA_NAME)
        with self._available():
            try:
                os.stat(metadata)  # not there: perhaps it is being written, and the marker is its writer's
                with self._locked():
                    # A writer that died after its commit left its marker: whoever cleared up after it now, before
                    # this is done or after, would remove layers that others need.
                    self._remove_marker(backup_id)
                    os.unlink(metadata)
                    sync_directory(folder)
                self._hidden.add(backup_id)
            except FileNotFoundError:
                raise not_found(backup_id) from None

    async def reclaim(self, backup_ids: Collection[str] | None = None) -> tuple[list[str], int]:
        """Remove files of hidden and abandoned backups that no visible one names: always of all."""
        return await anyio.to_thread.run_sync(self._reclaim)

    def _reclaim(self) -> tuple[list[str], int]:
        if not os.path.isdir(self._path):
            return [], 0
        with self._available(), self._locked():
            for left in self._dead_writers():
                self._clear_unfinished(self._folder(left))
                self._remove_marker(left)
            unneeded = self._unneeded(self._markers(), ())
            freed = sum(self._remove(backup_id, names) for backup_id, names in unneeded.items())
            return list(unneeded), freed

    async def lifecycle(self) -> Lifecycle:
        """Refuse: nobody but a prune removes files of a folder."""
        self._refuse_rules()

    async def apply_lifecycle(self, days: int) -> Lifecycle:
        """Refuse, as `lifecycle`."""
        self._refuse_rules()

    def _refuse_rules(self) -> NoReturn:
        raise InvalidBackupConfigError(
            f"store: {self._path} is a folder, and only a bucket (s3://bucket/prefix) has rules of its own; use "
            "'sandpoint prune'"
        )

    async def reclaimable(self, without: Collection[str] = ()) -> tuple[list[str], int]:
        """Return what `reclaim` would, were some backups hidden."""
        return await anyio.to_thread.run_sync(self._reclaimable, without)

    def _reclaimable(self, without: Collection[str]) -> tuple[list[str], int]:
        if not os.path.isdir(self._path):
            return [], 0
        with self._available(), self._locked():
            writing = {*self._markers()} - {*self._dead_writers()}
            unneeded = self._unneeded(writing, without)
            return list(unneeded), sum(
                os.lstat(os.path.join(self._folder(backup_id), name)).st_size
                for backup_id, names in unneeded.items()
                for name in names
            )

    def _unneeded(self, writing: Collection[str], without: Collection[str]) -> dict[str, list[str]]:
        """Return the files of hidden backups that no visible one names, by backup; none for an empty folder.

        Under the lock, so that nobody begins. Others may end meanwhile: a writer makes its backup visible before it
        removes its marker, so the markers are read first, and what one of them no longer said the metadata does.
        """
        hidden = [
            backup_id
            for backup_id in self._ids()
            if backup_id not in writing and (backup_id in without or self._is_over(backup_id))
        ]
        if not hidden:
            return {}
        needed = self._awaited_keys(writing)
        needed |= self._named_keys(without)
        found: dict[str, list[str]] = {}
        for backup_id in hidden:
            names = [name for name in os.listdir(self._folder(backup_id)) if name != METADATA_NAME]
            unneeded = [name for name in names if key_of(backup_id, name) not in needed]
            if unneeded or not names:
                found[backup_id] = unneeded
        return found

    def _is_over(self, backup_id: str) -> bool:
        """Whether a backup is not visible, and nobody may be about to make it so who leaves no marker."""
        if self._is_visible(backup_id):
            return False
        return backup_id in self._hidden or not may_be_anothers(backup_id, self._age(backup_id))

    def _age(self, backup_id: str) -> float:
        with os.scandir(self._folder(backup_id)) as files:
            changed = [file.stat(follow_symlinks=False).st_ctime for file in files]
        return time.time() - max(changed, default=os.stat(self._folder(backup_id)).st_ctime)

    def _remove(self, backup_id: str, names: Iterable[str]) -> int:
        """Remove files of a hidden backup, and its folder with the last; return their bytes."""
        folder = self._folder(backup_id)
        freed = 0
        for name in names:
            freed += os.lstat(os.path.join(folder, name)).st_size
            os.unlink(os.path.join(folder, name))
        if not os.listdir(folder):
            os.rmdir(folder)
        return freed

    def _awaited_keys(self, writing: Iterable[str]) -> set[str]:
        """Return what backups that are being written will name."""
        keys: set[str] = set()
        for backup_id in writing:
            with suppress(FileNotFoundError), open(os.path.join(self._incoming, backup_id)) as marker:
                keys.update(marker.read().split("\n"))
        return keys

    def _named_keys(self, without: Collection[str]) -> set[str]:
        return {stored.key for metadata in self._read_strictly(without) for stored in metadata.files}

    def _read_strictly(self, without: Collection[str]) -> list[BackupMetadata]:
        # A backup whose metadata cannot be read may need any layer: nothing is reclaimed until it is dealt with.
        found = []
        for backup_id in self._ids():
            if backup_id not in without:
                with suppress(BackupNotFoundError):
                    found.append(self._read(backup_id))
        return found
