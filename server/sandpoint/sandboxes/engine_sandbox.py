"""A sandbox whose engine is called from worker threads, wherever that runs."""

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Literal, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import ByteReceiveStream
from anyio.streams.file import FileReadStream

from sandpoint.engine.directory import check_allowed, is_within_any, parse_directory
from sandpoint.engine.freezing import Freezer
from sandpoint.engine.operations import Engine
from sandpoint.engine.tools import Monitor
from sandpoint.errors import InvalidBackupConfigError, StoreUnavailableError
from sandpoint.models import (
    Adopted,
    AdoptRequest,
    Applied,
    ApplyRequest,
    AskGrant,
    Capabilities,
    Captured,
    CaptureRequest,
    Changes,
    CompareRequest,
    ContentChanges,
    FileRole,
    FolderRequest,
    LastCapture,
    Listing,
    LostOverlay,
    OverlayState,
    Progress,
    ReadRequest,
    Report,
    StoredFile,
    WriteGrant,
)

Result = TypeVar("Result")

_POLL_S = 0.001
_REPORT_EVERY_S = 0.1


_held: ContextVar["tuple[EngineSandbox, Engine] | None"] = ContextVar("held", default=None)
"""Whose turn it is in this task, and the engine that waited for it."""


class _ThreadMonitor:
    """Carries progress out of a worker thread, and cancellation into it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = 0.0
        self._phase = ""

    def check(self) -> None:
        anyio.from_thread.check_cancelled()

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self.check()
        now = time.monotonic()
        if phase != self._phase or now - self._last >= _REPORT_EVERY_S:
            self._phase, self._last = phase, now
            anyio.from_thread.run(self._report, Progress(phase=phase, done=done, total=total))


class _LayerFile(FileReadStream):
    """An open file of a layer."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await super().receive(max_bytes)
        except anyio.BrokenResourceError as error:
            why = error.__cause__ or error
            raise StoreUnavailableError(f"the file cannot be read to its end: {why}") from error


class EngineSandbox:
    """Implements `Sandbox` by an engine."""

    def __init__(
        self, connect: Callable[[], Engine], *, allowed_dirs: Sequence[str] | None, kept_out: Sequence[str] = ()
    ) -> None:
        """Describe the sandbox; nothing is started yet.

        Args:
            connect: Returns the engine, started if need be. Called in a worker thread before each call of the engine.
            allowed_dirs: Directories that may be used, with all below them; None allows any but the system's.
            kept_out: Directories that may not lie in one used, nor it in them.
        """
        self._connect = connect
        self._arrivals: deque[object] = deque()
        self._allowed = allowed_dirs
        self._kept_out = tuple(kept_out)

    @property
    def option(self) -> str:
        """Nothing: a command line means this machine if it is not told otherwise."""
        return ""

    async def id(self) -> str:
        """Return the sandbox's name in the metadata of its backups."""
        return await self._call(lambda engine: engine.id())

    def resolve(self, dir: str) -> str:
        """Return a directory's path in its one form; see `Sandbox`."""
        path = parse_directory(dir)
        check_allowed(path, self._allowed, self._kept_out)
        return path

    def is_allowed(self, dir: str) -> bool:
        """Whether a directory is one of the allowed ones or below; see `Sandbox`."""
        return self._allowed is None or is_within_any(dir, self._allowed)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the operations that came before; see `Engine.enter`."""
        # Those that wait hold a thread each: they must not take those that whoever is before them needs.
        crowd = anyio.CapacityLimiter(math.inf)
        arrival = object()
        self._arrivals.append(arrival)
        try:
            engine = await anyio.to_thread.run_sync(self._enter, arrival, limiter=crowd)
        except BaseException:
            with suppress(ValueError):  # it had joined the queue already
                self._arrivals.remove(arrival)
            raise
        before = _held.set((self, engine))
        try:
            yield
        finally:
            _held.reset(before)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(engine.leave, limiter=crowd)

    def _enter(self, arrival: object) -> Engine:
        check = anyio.from_thread.check_cancelled
        while self._arrivals[0] is not arrival:  # threads do not begin in the order in which they were asked for
            check()
            time.sleep(_POLL_S)
        engine = self._connect()
        engine.enter(check, joined=self._arrivals.popleft)
        return engine

    async def capture(self, request: CaptureRequest, report: Report, ask: AskGrant) -> Captured:
        """Capture a directory; see `Engine.capture`."""

        def granted(role: FileRole, file: StoredFile) -> WriteGrant:
            return anyio.from_thread.run(ask, role, file)

        def work(engine: Engine, monitor: Monitor) -> Captured:
            if request.freeze == "never":
                return engine.capture(request, monitor, granted)
            with self._freezer() as freezer:
                return engine.capture(request, monitor, granted, freezer)

        return await self._watched(work, report)

    async def check_freeze(self) -> None:
        """Refuse: what runs on this machine is not to be stopped."""
        self._freezer()

    def _freezer(self) -> AbstractContextManager[Freezer]:
        raise InvalidBackupConfigError(
            "freeze: only what runs in a container can be paused for a backup, with the sandbox docker:NAME; here, "
            "stop what writes to the directory, or back up without freeze"
        )

    async def adopt(self, request: AdoptRequest, report: Report) -> Adopted:
        """Make a backup of ours of another program's; see `Engine.adopt`."""
        return await self._watched(lambda engine, monitor: engine.adopt(request, monitor), report)

    async def last_capture(self, dir: str) -> LastCapture:
        """Return the last backup taken of a directory, and the one that an overlay on it shows."""
        return await self._call(lambda engine: engine.last_capture(dir))

    async def note_capture(self, dir: str, backup_id: str) -> None:
        """Note that a backup of a directory is there."""
        await self._call(lambda engine: engine.note_capture(dir, backup_id))

    async def compare(self, request: CompareRequest, report: Report) -> Changes:
        """Compare a directory with a backup; see `Engine.compare`."""
        return await self._watched(lambda engine, monitor: engine.compare(request, monitor), report)

    async def compare_backups(self, older: CompareRequest, newer: CompareRequest, report: Report) -> Changes:
        """Compare two backups; see `Engine.compare_backups`."""
        return await self._watched(lambda engine, monitor: engine.compare_backups(older, newer, monitor), report)

    async def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, report: Report
    ) -> ContentChanges:
        """Compare a backup with its directory or another; see `Engine.compare_contents`."""
        return await self._watched(
            lambda engine, monitor: engine.compare_contents(backup, other, max_bytes, monitor), report
        )

    async def open_file(self, request: ReadRequest, report: Report) -> ByteReceiveStream:
        """Open a file of a backup; see `Engine.open_file`."""
        return _LayerFile(await self._watched(lambda engine, monitor: engine.open_file(request, monitor), report))

    async def list_folder(self, request: FolderRequest, report: Report) -> Listing:
        """List a folder of a backup; see `Engine.list_folder`."""
        return await self._watched(lambda engine, monitor: engine.list_folder(request, monitor), report)

    async def restore(self, request: ApplyRequest, report: Report) -> Applied:
        """Restore a directory; see `Engine.restore`."""
        return await self._watched(lambda engine, monitor: engine.restore(request, monitor), report)

    async def auto_mode(self, dir: str) -> Literal["overlay", "copy"]:
        """Return what `auto` means for a directory; see `Engine.auto_mode`."""
        return await self._call(lambda engine: engine.auto_mode(dir))

    async def overlay_on(self, dir: str) -> OverlayState | None:
        """Return the overlay of ours that is mounted on a directory."""
        return await self._call(lambda engine: engine.overlay_on(dir))

    async def lost_overlays(self) -> list[LostOverlay]:
        """Return the overlays that are mounted no more."""
        return await self._call(lambda engine: engine.lost_overlays())

    async def is_written(self, dir: str) -> bool:
        """Whether anything was written to overlays at or below a directory."""
        return await self._call(lambda engine: engine.is_written(dir))

    async def exists(self, dir: str) -> bool:
        """Whether a directory is there."""
        return await self._call(lambda engine: engine.exists(dir))

    async def unmount(self, dir: str) -> None:
        """Take the overlay on a directory down, and those below it, and drop what was written to them."""
        await self._call(lambda engine: engine.unmount(dir))

    async def prune(self, *, dry_run: bool = False) -> list[str]:
        """Drop overlays that are mounted no more, and old notes; return the overlays' directories."""
        return await self._call(lambda engine: engine.prune(dry_run=dry_run))

    async def clear_leftovers(self, *, dry_run: bool = False) -> list[str]:
        """There is no other sandbox beside this one."""
        return []

    async def capabilities(self) -> Capabilities:
        """Return what the sandbox can do, found out by trying."""
        return await self._call(lambda engine: engine.capabilities())

    async def close(self) -> None:
        """End what was started for it."""
        await self._call(lambda engine: engine.close())

    @staticmethod
    async def _in_thread(work: Callable[[], Result]) -> Result:
        return await anyio.to_thread.run_sync(work)

    async def _call(self, work: Callable[[Engine], Result]) -> Result:
        return await anyio.to_thread.run_sync(lambda: self._ask(work))

    async def _watched(self, work: Callable[[Engine, Monitor], Result], report: Report) -> Result:
        return await anyio.to_thread.run_sync(lambda: self._ask(lambda engine: work(engine, _ThreadMonitor(report))))

    def _ask(self, work: Callable[[Engine], Result]) -> Result:
        held = _held.get()
        # All of a turn is done by one engine: one that was started since has not waited for its turn.
        engine = held[1] if held is not None and held[0] is self else self._connect()
        return self._watch(engine, lambda: work(engine))

    def _watch(self, engine: Engine, work: Callable[[], Result]) -> Result:
        """Ask something of an engine."""
        return work()
