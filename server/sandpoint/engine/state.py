"""The state directory: the queue, work in progress, overlays, and notes of checked layers.

turns/            the queue of operations
work/{uuid}/      what one operation needs while it runs; what a dead one left is cleared by the next
overlays/{uuid}/  the upper layer and the record of each overlay mount
checked/{sha256}  the stamp of a file whose digest was seen to be this one
cache/            what was fetched from a store; see `sandpoint.engine.cache`
captures/{key}    the id of the last backup that was taken of a directory; with `.index`, what it held then
sandbox-id        names this machine's trees in the metadata of backups
"""

import errno
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sandpoint.engine import linux, mounts
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.layers import fuse_unmount
from sandpoint.engine.relay import Relay
from sandpoint.engine.removal import remove_tree
from sandpoint.engine.roots import HOST, Root
from sandpoint.engine.turns import Ticket
from sandpoint.errors import SandboxUnavailableError

_INSIDE_NOTE = "inside.json"
_TRIAL = "trial-"
_TRIAL_ENDS_S = 3600
_NOTES_END_S = 30 * 86400

DEFAULT_CACHE_BYTES = 10 << 30


class State:
    """The state directory of one sandbox. Its methods are for the one operation whose turn it is."""

    def __init__(
        self,
        path: str,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        relay: Relay | None = None,
        root: Root = HOST,
        sandbox_id: str | None = None,
        shared: str | None = None,
    ) -> None:
        """Name the directory; it is made when first used.

        Args:
            path: Where it is.
            cache_bytes: What the cache may hold between operations.
            relay: What carries files to and from a store that cannot be reached from here.
            root: Where the directories are that are backed up and restored.
            sandbox_id: The name of the trees there; None: one that is made up at first use.
            shared: A folder whose cache and notes of checked files this shares with the other state directories in its
                `sandboxes/`; None: it has its own.
        """
        self.path = path
        self.root = root
        self._sandbox_id = sandbox_id
        self.cache_bytes = cache_bytes
        self.relay = relay
        self.held: dict[str, int] = {}
        """Locks on the files of the cache that the operation uses, by digest."""
        self.work = os.path.join(path, "work")
        self.overlays = os.path.join(path, "overlays")
        self._shared = shared
        self.checked = os.path.join(shared or path, "checked")
        self.cache = os.path.join(shared or path, "cache")
        self._captures = os.path.join(path, "captures")

    def prepare(self) -> None:
        """Make the directory.

        Raises:
            SandboxUnavailableError: It cannot be made or written.
        """
        try:
            for folder in (self.path, self.work, self.overlays, self.checked, self.cache, self._captures):
                os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> SandboxUnavailableError:
        return SandboxUnavailableError(
            f"the state directory {self.path} cannot be used: {error.strerror}; set SANDPOINT_STATE_DIR to a "
            "folder that this user can write"
        )

    def unwritable(self, error: OSError) -> SandboxUnavailableError:
        """Return what is said where nothing more can be made in the directory."""
        return SandboxUnavailableError(
            f"the state directory {self.path} cannot be written: {error.strerror}; free some space there or set "
            "SANDPOINT_STATE_DIR"
        )

    @property
    def all_overlays(self) -> list[str]:
        """The folders of overlays whose layers may lie in the cache: its own, and those of all that share it."""
        if self._shared is None:
            return [self.overlays]
        others = os.path.join(self._shared, "sandboxes")
        names = os.listdir(others) if os.path.isdir(others) else []
        return [os.path.join(others, name, "overlays") for name in sorted(names)]

    def sandbox_id(self) -> str:
        """Return the name of the trees: where none was given, `local:` and 12 hex digits, made up at first use."""
        if self._sandbox_id is not None:
            return self._sandbox_id
        self.prepare()
        path = os.path.join(self.path, "sandbox-id")
        try:
            with suppress(FileExistsError):
                if not os.path.exists(path):
                    write_new(path, f"local:{uuid.uuid4().hex[:12]}\n".encode())
            with open(path) as file:
                return file.read().strip()
        except OSError as error:
            raise self.unwritable(error) from None

    def last_capture(self, directory: str) -> str | None:
        """Return the id of the last backup that was taken of a directory here."""
        return read_note(self._capture_note(directory))

    def note_capture(self, directory: str, backup_id: str) -> None:
        """Note a backup as the last one of a directory: without the note the next one is a full one."""
        self.prepare()
        path = self._capture_note(directory)
        with suppress(OSError):
            write_over(path, [backup_id.encode()])

    def index_path(self, directory: str) -> str:
        """Return the path of the file for what a directory held at its last capture."""
        return f"{self._capture_note(directory)}.index"

    def _capture_note(self, directory: str) -> str:
        return os.path.join(self._captures, hashlib.sha256(os.fsencode(directory)).hexdigest())

    def draw_ticket(self) -> Ticket:
        """Join the queue of operations."""
        self.prepare()
        try:
            return Ticket(os.path.join(self.path, "turns"))
        except OSError as error:
            raise self._unusable(error) from None

    def heal(self) -> None:
        """Clear away what operations left that died: scratch mounts and staging."""
        for name in os.listdir(self.work):
            self._clear(os.path.join(self.work, name))
        for name in os.listdir(self.checked) if self._shared is None else ():
            if "." in name:
                os.unlink(os.path.join(self.checked, name))
        for name in os.listdir(self.path):
            folder = os.path.join(self.path, name)
            if name.startswith(_TRIAL) and time.time() - os.lstat(folder).st_mtime > _TRIAL_ENDS_S:
                self._clear(folder)

    def forget_old_notes(self) -> None:
        """Remove notes of checked files and of captures that are a month old: most are of what is long gone.

        One that is missed only costs a reading, or a search for the last backup.
        """
        for folder in (self.checked, self._captures):
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                if time.time() - os.lstat(path).st_mtime > _NOTES_END_S:
                    os.unlink(path)

    def _clear(self, folder: str) -> None:
        unmount_below(folder)
        note = os.path.join(folder, _INSIDE_NOTE)
        # ValueError: it died while it wrote the note, before it made what is noted.
        with suppress(FileNotFoundError, ValueError), open(note) as file:
            self._remove_inside(json.load(file)["path"])
        remove_tree(folder)

    def _remove_inside(self, path: str) -> None:
        """Remove what a dead operation staged inside a directory."""
        parent, _, name = path.rpartition("/")
        try:
            holder = self.root.open(parent or "/", os.O_PATH | os.O_DIRECTORY)
        except OSError:  # the directory is gone, and what was staged in it
            return
        try:
            remove_tree(f"/proc/self/fd/{holder}/{name}")
        finally:
            os.close(holder)

    @contextmanager
    def trial(self) -> Iterator[str]:
        """Yield a folder for a moment's trial, for which nobody need wait for a turn."""
        self.prepare()
        folder = tempfile.mkdtemp(prefix=_TRIAL, dir=self.path)
        try:
            yield folder
        finally:
            self._clear(folder)

    @contextmanager
    def working(self) -> Iterator[str]:
        """Yield a folder for the time of one operation; it goes with all that is in or mounted on it."""
        self.prepare()
        folder = os.path.join(self.work, uuid.uuid4().hex)
        try:
            os.mkdir(folder, 0o700)
        except OSError as error:
            raise self.unwritable(error) from None
        try:
            yield folder
        finally:
            self._clear(folder)


def write_new(path: str, content: bytes) -> None:
    """Write a file whole and durably, or not at all.

    Raises:
        FileExistsError: It is there already.
    """
    temporary = f"{path}.{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_directory(os.path.dirname(path))


def read_note(path: str) -> str | None:
    """Return what a small file says; None where there is none."""
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def write_over(path: str, content: Iterable[bytes]) -> None:
    """Write a file whole, in place of what may be there; not durably: after a crash it may be torn."""
    partial = f"{path}.partial"
    with open(partial, "wb") as file:
        file.writelines(content)
    os.rename(partial, path)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Staging:
    """A folder from which files can be renamed into a directory, by two paths."""

    path: str
    """Where files are renamed from."""
    filled_at: str
    """Where they are put by programs: no symlink leads out of there, whoever else can write in the folder."""


@contextmanager
def staging_folder(root: Root, fd: int, directory: str, work: str) -> Iterator[Staging]:
    """Yield a new folder from which files can be renamed into a directory.

    That is the operation's own folder where it lies on the same mount. Else it is made inside the directory, under
    a name noted beforehand, so that the next operation clears it away should this one die.

    Args:
        root: Where the directory is.
        fd: The directory.
        directory: Its path.
        work: The operation's own folder.
    """
    work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        inside = not mounts.same_mount(fd, work_fd)
    finally:
        os.close(work_fd)
    if not inside:
        folder = os.path.join(work, "staging")
        os.mkdir(folder, 0o700)
        yield Staging(folder, folder)
        return
    name = f".sandpoint-{uuid.uuid4().hex}"
    with open(os.path.join(work, _INSIDE_NOTE), "x") as note:
        json.dump({"path": f"{directory}/{name}"}, note)
        note.flush()
        os.fsync(note.fileno())
    os.mkdir(name, 0o700, dir_fd=fd)
    try:
        with _opened_own(fd, name) as own:
            view = root.clone_for_writing(own)
            try:
                # By descriptor: whoever owns the directory can put a link where the folder was.
                yield Staging(f"/proc/self/fd/{own}", f"/proc/self/fd/{view}")
            finally:
                os.close(view)
    finally:
        remove_tree(f"/proc/self/fd/{fd}/{name}")


@contextmanager
def _opened_own(root: int, name: str) -> Iterator[int]:
    fd = linux.openat2(name.encode(), os.O_RDONLY | os.O_DIRECTORY, dir_fd=root, resolve=INSIDE)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the staging folder was exchanged for another's", name)
        _drop_acls(fd)
        yield fd
    finally:
        os.close(fd)


def _drop_acls(folder: int) -> None:
    # A default ACL of the directory would be passed on to all that is staged.
    with suppress(OSError):
        for name in os.listxattr(folder):
            if name.startswith("system.posix_acl_"):
                os.removexattr(folder, name)
    os.fchmod(folder, 0o700)


def unmount_below(folder: str) -> None:
    """Take away all mounts on and below a folder, the latest first."""
    point = os.fsencode(folder)
    table = mounts.list_mounts()
    for mount in reversed([*mounts.mounts_at(point, table), *mounts.mounts_below(point, table)]):
        if mount.fstype.startswith("fuse"):
            fuse_unmount(os.fsdecode(mount.point))
        else:
            linux.detach(mount.point)
