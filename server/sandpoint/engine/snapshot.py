"""Snapshots: a directory kept as a manifest and plain copies of its files, to be brought back often and soon.

The snapshots of one directory share the copies of what did not change from one to the next. They need no program and
no mount.

{folder}/objects/{number}   the content of a file
{folder}/{number}.manifest  a saved snapshot's manifest, and {number}.objects, the numbers of its files' contents
"""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.contents import open_regular, same_bytes
from sandpoint.engine.copies import copy_content, stage
from sandpoint.engine.directory import create_directory
from sandpoint.engine.ignore import Rules
from sandpoint.engine.inplace import Compared, carry_out, is_closed, open_up, refuse_conflicts
from sandpoint.engine.manifest import Entry, Manifest, display
from sandpoint.engine.place import Place, opened_place, settle
from sandpoint.engine.plan import Comparison, Plan, make_plan, without
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.engine.walk import UnreadableError, walk_tree
from sandpoint.errors import BackupCreateError

_TRIES = 5


@dataclass(frozen=True)
class Snapshot:
    """A directory as it was at one time. `objects` are the numbers of its files' contents, by path."""

    manifest: Manifest
    objects: dict[bytes, int]

    def number_of(self, path: bytes) -> int:
        """Return the number of a file's content; files that are hard links of one another share it."""
        return self.objects.get(path) or self.objects[self.manifest.entries[path].hardlink]

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The contents that it needs."""
        return frozenset(self.objects.values())


class _MovedError(Exception):
    """A file was written to after the walk had seen it; the message names it."""


class Snapshots:
    """The snapshots of one directory, in a folder of their own."""

    def __init__(self, directory: str, folder: str, state: State, monitor: Monitor) -> None:
        """Name the folder; it is made when first used.

        Args:
            directory: An absolute path without links.
            folder: Where contents are kept.
            state: Holds what an operation needs while it runs.
            monitor: May stop an operation.
        """
        self.directory = directory
        self.folder = folder
        self._objects = os.path.join(folder, "objects")
        self._state = state
        self._monitor = monitor
        self._last: Snapshot | None = None
        self._count = 0

    # -- taking --

    def take(self) -> Snapshot:
        """Take a snapshot.

        Raises:
            InvalidBackupConfigError: The directory cannot be opened.
            UnreadableError: An entry may not be read.
            BackupCreateError: A file does not come to rest.
            OSError: There is no room, or the filesystem failed.
        """
        os.makedirs(self._objects, mode=0o700, exist_ok=True)
        moved = ""
        with opened_place(self._state, self.directory) as place:
            for _ in range(_TRIES):
                try:
                    self._last = self._try(place)
                except _MovedError as error:
                    moved = str(error)
                else:
                    return self._last
        raise BackupCreateError(
            f"{self.directory}/{moved} is written to all the time, so that its state cannot be kept; stop what writes "
            "to it first"
        )

    def _try(self, place: Place) -> Snapshot:
        count = self._count
        try:
            return self._take(place)
        except BaseException:
            for number in range(count + 1, self._count + 1):
                with suppress(FileNotFoundError):
                    os.unlink(self._path_of(number))
            raise

    def _take(self, place: Place) -> Snapshot:
        started = time.time_ns()
        last = self._last
        # The first time everything is written out at once; later on, each file whose stamp proves nothing is.
        stamps = place.stamps and (last.manifest.header.stamps if last is not None else settle(place))
        manifest = walk_tree(
            place.fd,
            Rules(),
            started_ns=started,
            stamps=stamps,
            boundaries=place.boundaries,
            known=last.manifest if last is not None and stamps else None,
        )
        objects = {}
        for entry in manifest.entries.values():
            if entry.is_file and entry.size and not entry.hardlink:
                self._monitor.check()
                objects[entry.path] = self._kept(last, entry) or self._keep(place, last, entry)
        return Snapshot(manifest, objects)

    @staticmethod
    def _kept(last: Snapshot | None, entry: Entry) -> int | None:
        """Return the content that was kept of a file before, if it is proven to be still the same."""
        if last is None or last.manifest.entries.get(entry.path) is not entry:
            return None
        return last.objects.get(entry.path)

    def _keep(self, place: Place, last: Snapshot | None, entry: Entry) -> int:
        with _opened_live(place, entry) as live:
            with suppress(OSError):  # where it cannot be, stamps are not trusted either
                linux.write_out(live)
            number = last.objects.get(entry.path) if last is not None else None
            if number is None or not self._is_same(live, number):
                self._count += 1
                number = self._count
                self._copy(live, number)
            status = os.fstat(live)
            if (status.st_ctime_ns, status.st_size) != (entry.ctime_ns, entry.size):
                raise _MovedError(display(entry.path))
            return number

    def _is_same(self, live: int, number: int) -> bool:
        kept = self._open_object(number)
        try:
            if os.fstat(kept).st_size != os.fstat(live).st_size:
                return False
            same = same_bytes(live, kept)
        finally:
            os.close(kept)
        os.lseek(live, 0, os.SEEK_SET)
        return same

    def _copy(self, live: int, number: int) -> None:
        target = os.open(self._path_of(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_content(live, target)
        finally:
            os.close(target)

    def _path_of(self, number: int) -> str:
        return os.path.join(self._objects, str(number))

    def _open_object(self, number: int) -> int:
        return os.open(self._path_of(number), os.O_RDONLY | os.O_CLOEXEC)

    def keep_only(self, snapshots: Iterable[Snapshot]) -> None:
        """Remove contents that neither these snapshots nor the last one need."""
        needed = frozenset[int]().union(*(each.numbers for each in (*snapshots, self._last) if each is not None))
        for name in os.listdir(self._objects):
            if int(name) not in needed:
                os.unlink(self._path_of(int(name)))

    # -- comparing and bringing back --

    def compare(self, snapshot: Snapshot) -> Plan:
        """Return the steps that led from a snapshot to the directory as it is; mounts in it do not count.

        Raises:
            InvalidBackupConfigError: The directory cannot be opened.
            UnreadableError: An entry may not be read.
            OSError: The filesystem failed.
        """
        with opened_place(self._state, self.directory) as place:
            present = self._walk(place, snapshot)
            mounts = _mounts_of(present, snapshot)
            return make_plan(
                without(snapshot.manifest, mounts),
                without(present, mounts),
                differ=self._differ(place, snapshot),
                comparison=Comparison(),
                untouchable=mounts,
            )

    def bring_back(self, snapshot: Snapshot) -> None:
        """Make the directory equal to a snapshot, whatever became of it; mounts in it are left alone.

        Raises:
            UnreadableError: An entry of another user may not be read; nothing was changed.
            BackupRestoreError: A step failed; the directory is as before, or the message says otherwise.
            OSError: There is no room, or the filesystem failed; nothing was changed.
        """
        self._remake_directory()
        with self._state.working() as work, opened_place(self._state, self.directory) as place:
            present = self._walk_opened_up(place, snapshot)
            mounts = _mounts_of(present, snapshot)
            present, target = without(present, mounts), without(snapshot.manifest, mounts)
            comparison = Comparison()
            plan = make_plan(
                present,
                target,
                differ=self._differ(place, snapshot),
                comparison=comparison,
                untouchable=mounts,
            )
            compared = Compared(plan, present, target, comparison, frozenset(mounts), mounts)
            refuse_conflicts(compared)
            carry_out(compared, place, lambda tree: self._fill(tree, plan, snapshot), work, self._monitor)

    def _remake_directory(self) -> None:
        try:
            status = os.lstat(self.directory)
        except FileNotFoundError:
            create_directory(self.directory)
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(self.directory)
            create_directory(self.directory)
        elif is_closed(status):
            os.chmod(self.directory, stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IXUSR)

    def _walk_opened_up(self, place: Place, snapshot: Snapshot) -> Manifest:
        try:
            return self._walk(place, snapshot)
        except UnreadableError:
            open_up(place.fd)
            return self._walk(place, snapshot)

    def _walk(self, place: Place, snapshot: Snapshot) -> Manifest:
        return walk_tree(
            place.fd,
            Rules(),
            started_ns=0,
            stamps=False,
            boundaries=place.boundaries | frozenset(snapshot.manifest.header.mounts),
            known=snapshot.manifest if place.stamps and snapshot.manifest.header.stamps else None,
        )

    def _differ(self, place: Place, snapshot: Snapshot) -> Callable[[list[Entry]], set[bytes]]:
        def differ(doubtful: list[Entry]) -> set[bytes]:
            return {entry.path for entry in doubtful if not self._is_unchanged(place, snapshot, entry)}

        return differ

    def _is_unchanged(self, place: Place, snapshot: Snapshot, entry: Entry) -> bool:
        self._monitor.check()
        try:
            with _opened_live(place, entry) as live:
                return self._is_same(live, snapshot.number_of(entry.path))
        except _MovedError:
            return False

    def _fill(self, tree: str, plan: Plan, snapshot: Snapshot) -> None:
        os.mkdir(tree, 0o700)
        staged = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            stage(
                (*plan.added, *plan.replaced),
                staged,
                lambda entry: self._open_object(snapshot.number_of(entry.path)),
                self._monitor.check,
            )
        finally:
            os.close(staged)

    # -- for another process --

    def save(self, snapshot: Snapshot, number: int) -> None:
        """Write a snapshot into the folder, for `load`."""
        for suffix, content in (
            ("objects", msgspec.msgpack.encode(snapshot.objects)),
            ("manifest", snapshot.manifest.content),
        ):
            path = os.path.join(self.folder, f"{number}.{suffix}")
            with open(f"{path}.partial", "wb") as file:
                file.write(content)
            os.rename(f"{path}.partial", path)

    def load(self, number: int) -> Snapshot:
        """Read a snapshot that was saved.

        Raises:
            BackupIntegrityError, OSError, msgspec.MsgspecError: It is not there, or damaged.
        """
        with open(os.path.join(self.folder, f"{number}.manifest"), "rb") as file:
            manifest = Manifest.from_bytes(file.read())
        with open(os.path.join(self.folder, f"{number}.objects"), "rb") as file:
            return Snapshot(manifest, msgspec.msgpack.decode(file.read(), type=dict[bytes, int]))


def _mounts_of(present: Manifest, snapshot: Snapshot) -> tuple[bytes, ...]:
    return tuple(sorted({*present.header.mounts, *snapshot.manifest.header.mounts}))


@contextmanager
def _opened_live(place: Place, entry: Entry) -> Iterator[int]:
    try:
        fd = open_regular(place.fd, entry.path)
    except OSError:
        raise _MovedError(display(entry.path)) from None
    try:
        yield fd
    finally:
        os.close(fd)
