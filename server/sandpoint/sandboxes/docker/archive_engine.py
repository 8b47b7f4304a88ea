"""The engine of the archive way: it works on a copy of the directory, and sends back what a restore has changed."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Literal, TypeVar

from sandpoint.engine.capture import Ask
from sandpoint.engine.compare import read_manifest
from sandpoint.engine.freezing import Freezer, paused
from sandpoint.engine.operations import LocalEngine
from sandpoint.engine.removal import remove_tree
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check, Monitor
from sandpoint.errors import BackupCreateError, BackupRestoreError, InvalidBackupConfigError, SandboxUnavailableError
from sandpoint.models import (
    Adopted,
    AdoptRequest,
    Applied,
    ApplyRequest,
    Capabilities,
    Capability,
    Captured,
    CaptureRequest,
    Changes,
    CompareRequest,
    ContentChanges,
    FolderRequest,
    LastCapture,
    Listing,
    LostOverlay,
    OverlayState,
    ReadRequest,
    StoredBackup,
)
from sandpoint.sandboxes.docker.archive_api import ContainerArchive, Mounted, RefusedError
from sandpoint.sandboxes.docker.mirror import (
    MirrorRoot,
    Tree,
    complete,
    empty,
    keep_copy,
    make_reached,
    opened,
    walked,
)
from sandpoint.sandboxes.docker.sending import Sending, UnsentError
from sandpoint.sandboxes.docker.unpack import HostileArchiveError, TornArchiveError, unpack

Stored = TypeVar("Stored", bound=StoredBackup)

_TRIES = 4
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_OVERLAY = (
    "the archive way, by Docker's API alone, cannot mount overlays; use mode 'copy', or make the direct way (Sandpoint "
    "as root on the engine's host) or the helper way possible: sandpoint doctor says what they need"
)


class ArchiveEngine:
    """One container, by Docker's API alone. Implements `OpenEngine`.

    In each turn a directory is fetched once: what is captured is what a restore in the same turn starts from.

    The API goes by paths, and follows links in them. Each part of a directory's path is looked at before and after
    it is read or written; a process in the container that swaps one for a link in between can still have another
    place of the container read or written. Nothing outside the container can be reached by that.
    """

    def __init__(self, api: ContainerArchive, state: State, root: MirrorRoot) -> None:
        """Take a container.

        Args:
            api: It.
            state: A state directory of this machine, for this container alone.
            root: That state directory's root, a folder in it.
        """
        self._api = api
        self._state = state
        self._root = root
        self._local = LocalEngine(state)
        self._folder = os.path.dirname(root.folder)
        self._fetched: set[str] = set()
        self._mounted: Mounted | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the container still runs, and the engine answers."""
        return self._api.is_running()

    # -- turns --

    def id(self) -> str:
        """See `Engine`."""
        return self._local.id()

    def enter(self, check: Check, joined: Callable[[], object]) -> None:
        """Wait for the operations that came before, then clear up after those that died."""
        self._local.enter(check, joined)
        try:
            self._drop()
        except BaseException:
            self._local.leave()
            raise

    def leave(self) -> None:
        """Remove the copies, and let the next one in."""
        try:
            self._drop()
        finally:
            self._local.leave()

    def _drop(self) -> None:
        self._fetched.clear()
        self._mounted = None
        self._root.points = frozenset()
        if os.path.lexists(self._folder):
            remove_tree(self._folder)

    # -- what needs no directory --

    def adopt(self, request: AdoptRequest, monitor: Monitor) -> Adopted:
        """See `Engine`."""
        return self._local.adopt(request, monitor)

    def last_capture(self, dir: str) -> LastCapture:
        """See `Engine`."""
        return self._local.last_capture(dir)

    def note_capture(self, dir: str, backup_id: str) -> None:
        """See `Engine`."""
        self._local.note_capture(dir, backup_id)

    def compare_backups(self, older: CompareRequest, newer: CompareRequest, monitor: Monitor) -> Changes:
        """See `Engine`."""
        return self._local.compare_backups(older, newer, monitor)

    def open_file(self, request: ReadRequest, monitor: Monitor) -> BinaryIO:
        """See `Engine`."""
        return self._local.open_file(request, monitor)

    def list_folder(self, request: FolderRequest, monitor: Monitor) -> Listing:
        """List a folder of a backup: the container has no part in it."""
        return self._local.list_folder(request, monitor)

    def auto_mode(self, dir: str) -> Literal["overlay", "copy"]:
        """Return `copy`."""
        return "copy"

    def overlay_on(self, dir: str) -> OverlayState | None:
        """Return None: this way mounts none, and sees none."""
        return None

    def lost_overlays(self) -> list[LostOverlay]:
        """Return none."""
        return []

    def is_written(self, dir: str) -> bool:
        """Return no: there are no overlays."""
        return False

    def unmount(self, dir: str) -> None:
        """There is nothing to take down."""

    def prune(self, *, dry_run: bool) -> list[str]:
        """Drop old notes."""
        return self._local.prune(dry_run=dry_run)

    def capabilities(self) -> Capabilities:
        """Return what can be done by the API alone."""
        found = self._local.capabilities()
        remover = None
        with suppress(RefusedError):
            remover = None if self._api.is_paused() else self._api.remover()
        items = [item for item in found.items if not item.name.startswith("overlay") and "fuse" not in item.name]
        return found.model_copy(
            update={
                "overlay": None,
                "items": (
                    *items,
                    Capability(
                        name="overlay restore",
                        available=False,
                        needed_for="restores in mode overlay",
                        detail="not by Docker's API alone",
                        remedy="the direct or the helper way",
                    ),
                    Capability(
                        name="rm in the container",
                        available=remover is not None,
                        needed_for="restores that remove files",
                        detail=" ".join(remover[:-2]) if remover else "",
                        remedy="" if remover else "unpause the container, put busybox into it, or use another way",
                    ),
                    Capability(
                        name="times in parts of a second, extended attributes, sockets",
                        available=False,
                        needed_for="backups that are exact in these",
                        detail="Docker's archives do not hold them",
                        remedy="the direct or the helper way",
                    ),
                ),
            }
        )

    def close(self) -> None:
        """There is nothing to end."""

    # -- what reads the directory --

    def exists(self, dir: str) -> bool:
        """Whether a directory is there, or anything else of that name."""
        with self._explained(dir, SandboxUnavailableError):
            self._reach(dir)
        return self._local.exists(dir)

    def capture(self, request: CaptureRequest, monitor: Monitor, ask: Ask, freezer: Freezer | None = None) -> Captured:
        """Capture a directory; see `Engine`. The container is paused while all of the directory is fetched."""
        with self._explained(request.dir, BackupCreateError):
            if freezer is not None:
                return self._capture_frozen(request, monitor, ask, freezer)
            self._fetch(request.dir, monitor)
        return self._local.capture(request, monitor, ask)

    def _capture_frozen(self, request: CaptureRequest, monitor: Monitor, ask: Ask, freezer: Freezer) -> Captured:
        self._fetched.discard(request.dir)
        with paused(freezer) as pause:
            self._fetch(request.dir, monitor)
        captured = self._local.capture(request.model_copy(update={"freeze": "never"}), monitor, ask)
        return captured.model_copy(update={"frozen_seconds": pause.seconds})

    def compare(self, request: CompareRequest, monitor: Monitor) -> Changes:
        """Compare a directory with a backup, as far as the API shows it."""
        self._fetch_for(request, monitor)
        return self._local.compare(_in_whole_seconds(request), monitor)

    def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, monitor: Monitor
    ) -> ContentChanges:
        """Compare a backup with its directory or another, with contents."""
        if other is None:
            self._fetch_for(backup, monitor)
            backup = _in_whole_seconds(backup)
        return self._local.compare_contents(backup, other, max_bytes, monitor)

    def _fetch_for(self, request: CompareRequest, monitor: Monitor) -> None:
        with self._explained(request.dir, BackupRestoreError):
            if self._fetch(request.dir, monitor):
                backup = read_manifest(request, self._state, monitor.check)
                with self._tree(request.dir) as tree:
                    complete(tree, backup, monitor.check)

    # -- restore --

    def restore(self, request: ApplyRequest, monitor: Monitor) -> Applied:
        """Make a directory equal to a backup, as far as the API can tell, or leave it as it was.

        Raises:
            BackupRestoreError: It failed; with `partly`, the directory is neither as before nor as the backup.
        """
        if request.mode == "overlay":
            raise BackupRestoreError(_NO_OVERLAY)
        self._fetch_for(request, monitor)
        with self._explained(request.dir, BackupRestoreError):
            return self._restore(request, monitor)

    def _restore(self, request: ApplyRequest, monitor: Monitor) -> Applied:
        sending = Sending(self._api, request.dir, self._where(), self._present)
        kept = os.path.join(self._folder, "before")
        before = None
        try:
            os.mkdir(kept, 0o700)
            with opened(kept) as fd:
                if self._local.exists(request.dir):
                    with self._tree(request.dir) as tree:
                        keep_copy(tree, fd)
                        before = Tree(fd, tree.manifest, tree.boundaries)
                applied = self._local.restore(_in_whole_seconds(request), monitor)
                with self._tree(request.dir) as after:
                    sending.carry_out(before, after, monitor)
            return applied
        except UnsentError as error:
            raise BackupRestoreError(str(error), partly=error.partly) from error.__cause__
        finally:
            self._fetched.discard(request.dir)
            remove_tree(kept)

    @contextmanager
    def _present(self, dir: str, boundaries: frozenset[bytes], check: Check) -> Iterator[Tree]:
        """Yield a directory as it is now."""
        folder = os.path.join(self._folder, "now")
        os.mkdir(folder, 0o700)
        try:
            with opened(folder) as fd:
                self._check_path(dir)
                self._unpack(dir, fd, boundaries, check)
                yield walked(fd, boundaries)
        finally:
            remove_tree(folder)

    # -- fetching --

    def _fetch(self, dir: str, monitor: Monitor) -> bool:
        """Fetch a directory if it was not in this turn; return whether it is there."""
        if dir in self._fetched:
            return True
        if not self._reach(dir) or not self._local.exists(dir):
            return False
        self._check_seen(dir)
        monitor.progress("fetching", 0)
        with self._opened_copy(dir) as fd:
            empty(fd)
            self._unpack(dir, fd, self._where().below(dir), monitor.check)
            self._check_path(dir)
        self._fetched.add(dir)
        return True

    def _unpack(self, dir: str, fd: int, boundaries: frozenset[bytes], check: Check) -> None:
        name = os.fsencode(os.path.basename(dir))
        for attempt in range(1, _TRIES + 1):
            try:
                with self._api.archive_of(dir) as chunks:
                    unpack(chunks, fd, name, boundaries=boundaries, check=check)
                return
            except TornArchiveError as error:
                if not self._api.is_running():
                    raise SandboxUnavailableError(
                        f"container {self._api.name} stopped or was removed while {dir} was read; start it again"
                    ) from None
                if attempt == _TRIES:
                    raise RefusedError(
                        f"it is written to all the time: its archive ended {_TRIES} times before its end, at last at "
                        f"{error}; stop what writes there, or pause the container"
                    ) from None
                empty(fd)

    def _reach(self, dir: str) -> bool:
        """Make in the copy what leads to a directory; return whether that itself is a directory."""
        parts = self._look_along(dir)
        names = [os.fsencode(part) for part in dir.split("/") if part]
        os.makedirs(self._root.folder, mode=0o700, exist_ok=True)
        if dir not in self._fetched:
            with opened(self._root.folder) as root:
                make_reached(root, parts, names)
        return len(parts) == len(names) and parts[-1][1] == "dir"

    def _look_along(self, dir: str) -> list[tuple[bytes, str]]:
        found: list[tuple[bytes, str]] = []
        path = ""
        for name in [part for part in dir.split("/") if part]:
            path = f"{path}/{name}"
            kind = self._api.kind_of(path)
            if kind is not None:
                found.append((os.fsencode(name), kind))
            if kind != "dir":
                break
        return found

    def _check_path(self, dir: str) -> None:
        parts = self._look_along(dir)
        if [kind for _, kind in parts] != ["dir"] * dir.count("/"):
            raise InvalidBackupConfigError(
                f"dir: {dir} was a directory a moment ago, and now it is none or there is a symlink in it; something "
                f"in container {self._api.name} moves it about"
            )

    def _check_seen(self, dir: str) -> None:
        holder = self._where().holder_of(dir)
        if holder is not None and holder in self._where().unseen:
            raise InvalidBackupConfigError(
                f"dir: {dir} lies on what is mounted at {holder} in container {self._api.name}, which Docker's API "
                "does not show (a tmpfs, or a mount that was made inside); use the direct or the helper way"
            )

    def _where(self) -> Mounted:
        if self._mounted is None:
            self._mounted = self._api.mounted()
            every = self._mounted.shown | self._mounted.unseen
            self._root.points = frozenset(os.fsencode(point) for point in every)
        return self._mounted

    @contextmanager
    def _opened_copy(self, dir: str) -> Iterator[int]:
        fd = self._root.open(dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _tree(self, dir: str) -> Iterator[Tree]:
        with self._opened_copy(dir) as fd:
            yield walked(fd, self._where().below(dir))

    @contextmanager
    def _explained(
        self, dir: str, kind: type[BackupCreateError] | type[BackupRestoreError] | type[SandboxUnavailableError]
    ) -> Iterator[None]:
        """Tell what failed in the block, before anything was changed."""
        try:
            yield
        except (RefusedError, HostileArchiveError) as error:
            raise kind(
                f"{dir} in container {self._api.name} cannot be read by Docker's API: {error}. Nothing was changed"
            ) from error
        except OSError as error:
            remedy = (
                f"; free some space in {self._state.path} or set SANDPOINT_STATE_DIR" if error.errno in _NO_ROOM else ""
            )
            failed = SandboxUnavailableError if error.errno in _NO_ROOM else kind
            raise failed(
                f"the copy of {dir} of container {self._api.name} cannot be made in {self._state.path}: "
                f"{error.strerror or error}{remedy}. Nothing was changed"
            ) from error


def _in_whole_seconds(request: Stored) -> Stored:
    return request.model_copy(update={"whole_seconds": True})
