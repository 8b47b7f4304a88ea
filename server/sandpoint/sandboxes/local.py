"""The sandbox that is this machine: the engine in worker threads."""

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import ByteReceiveStream
from anyio.streams.file import FileReadStream

from sandpoint.engine import cache, foreign, reading
from sandpoint.engine import capture as capture_engine
from sandpoint.engine import compare as compare_engine
from sandpoint.engine import overlay as overlays
from sandpoint.engine import restore as restore_engine
from sandpoint.engine.capabilities import find_capabilities
from sandpoint.engine.directory import check_allowed, is_within_any, parse_directory
from sandpoint.engine.relay import Relay
from sandpoint.engine.state import DEFAULT_CACHE_BYTES, State
from sandpoint.engine.tools import Monitor
from sandpoint.errors import StoreUnavailableError
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
    Progress,
    ReadRequest,
    Report,
    StoredFile,
    WriteGrant,
)
from sandpoint.sandboxes.base import LastCapture, OverlayState

Result = TypeVar("Result")

_POLL_S = 0.01
_REPORT_EVERY_S = 0.1


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


class LocalSandbox:
    """Directories of this machine. Implements `Sandbox`."""

    def __init__(
        self,
        state_dir: str,
        *,
        allowed_dirs: Sequence[str] | None = None,
        kept_out: Sequence[str] = (),
        overlay: Literal["kernel", "fuse"] | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        relay: Relay | None = None,
    ) -> None:
        """Describe the sandbox; nothing is made or read yet.

        Args:
            state_dir: The state directory's path.
            allowed_dirs: Directories that may be used, with all below them; None allows any but the system's.
            kept_out: Directories, besides the state directory, that may not lie in one used, nor it in them.
            overlay: Mount overlays this way only; by default the kernel's where it can, else FUSE.
            cache_bytes: What the cache of the store's files may hold between operations.
            relay: What carries files to and from a store that cannot be reached from here.
        """
        self._state = State(state_dir, cache_bytes=cache_bytes, relay=relay)
        self._allowed = allowed_dirs
        self._kept_out = (state_dir, *kept_out)
        self._overlay = overlay

    async def id(self) -> str:
        """Return `local:` and a number made up when the state directory was first used."""
        return self._state.sandbox_id()

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
        """Wait for the operations that came before, then clear up after those that died."""
        ticket = self._state.draw_ticket()
        try:
            while not ticket.is_next():  # noqa: ASYNC110 - the queue is shared with other processes
                await anyio.sleep(_POLL_S)
            await anyio.to_thread.run_sync(self._heal)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(cache.release, self._state)
        finally:
            ticket.give_back()

    def _heal(self) -> None:
        self._state.heal()
        overlays.heal(self._state)

    async def capture(self, request: CaptureRequest, report: Report, ask: AskGrant) -> Captured:
        """Capture a directory; see `sandpoint.engine.capture.capture`."""

        def granted(role: FileRole, file: StoredFile) -> WriteGrant:
            return anyio.from_thread.run(ask, role, file)

        return await self._run(lambda monitor: capture_engine.capture(request, self._state, monitor, granted), report)

    async def adopt(self, request: AdoptRequest, report: Report) -> Adopted:
        """Make a backup of ours of another program's; see `sandpoint.engine.foreign.adopt`."""
        return await self._run(lambda monitor: foreign.adopt(request, self._state, monitor), report)

    async def last_capture(self, dir: str) -> LastCapture:
        """Return the last backup taken of a directory, and the one that an overlay on it shows."""
        overlay = self._find_overlay(dir)
        noted = self._state.last_capture(dir) if overlay is None else overlay.last_capture()
        shown = None if overlay is None else overlay.record.backup_id
        ids = tuple(dict.fromkeys(each for each in (noted, shown) if each is not None))
        return LastCapture(backup_ids=ids, on_overlay=overlay is not None)

    async def note_capture(self, dir: str, backup_id: str) -> None:
        """Note in the state directory that a backup of a directory is there."""
        overlay = self._find_overlay(dir)
        if overlay is None:
            self._state.note_capture(dir, backup_id)
        else:
            overlay.note_capture(backup_id)

    async def compare(self, request: CompareRequest, report: Report) -> Changes:
        """Compare a directory with a backup; see `sandpoint.engine.compare.compare`."""
        return await self._run(lambda monitor: compare_engine.compare(request, self._state, monitor), report)

    async def compare_backups(self, older: CompareRequest, newer: CompareRequest, report: Report) -> Changes:
        """Compare two backups; see `sandpoint.engine.compare.compare_backups`."""
        return await self._run(
            lambda monitor: compare_engine.compare_backups(older, newer, self._state, monitor), report
        )

    async def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, report: Report
    ) -> ContentChanges:
        """Compare a backup with its directory or another; see `sandpoint.engine.compare.compare_contents`."""
        return await self._run(
            lambda monitor: compare_engine.compare_contents(backup, other, max_bytes, self._state, monitor), report
        )

    async def open_file(self, request: ReadRequest, report: Report) -> ByteReceiveStream:
        """Open a file of a backup; see `sandpoint.engine.reading.open_file`."""
        return _LayerFile(await self._run(lambda monitor: reading.open_file(request, self._state, monitor), report))

    async def restore(self, request: ApplyRequest, report: Report) -> Applied:
        """Restore a directory; see `sandpoint.engine.restore.restore`.

        Here `auto` is `copy`: on a person's own machine an overlay is gone after a reboot.
        """

        def work(monitor: Monitor) -> Applied:
            kind = None
            if request.mode == "overlay":
                kind, _ = overlays.available_kind(self._state, self._overlay, in_turn=True)
            return restore_engine.restore(request, self._state, kind, monitor)

        return await self._run(work, report)

    async def overlay_on(self, dir: str) -> OverlayState | None:
        """Return the overlay of ours that is mounted on a directory."""
        overlay = self._find_overlay(dir)
        if overlay is None:
            return None
        return OverlayState(backup_id=overlay.record.backup_id)

    async def is_written(self, dir: str) -> bool:
        """Whether anything was written to overlays at or below a directory."""
        self._state.prepare()
        return any(overlay.is_written() for overlay in overlays.own_overlays(self._state, dir))

    async def exists(self, dir: str) -> bool:
        """Whether a directory is there."""
        return await anyio.to_thread.run_sync(os.path.lexists, dir)

    async def unmount(self, dir: str) -> None:
        """Take the overlay on a directory down, and those below it, and drop what was written to them."""

        def work() -> None:
            with overlays.set_aside(self._state, dir, lambda: None):
                pass

        await anyio.to_thread.run_sync(work)

    def _find_overlay(self, dir: str) -> overlays.Overlay | None:
        self._state.prepare()
        return next((o for o in overlays.own_overlays(self._state, dir) if o.record.dir == dir), None)

    async def prune(self, *, dry_run: bool = False) -> list[str]:
        """Drop overlays that are mounted no more, and old notes; return the overlays' directories."""

        def work() -> list[str]:
            self._state.prepare()
            lost = overlays.orphans(self._state)
            if not dry_run:
                self._state.forget_old_notes()
                for overlay in lost:
                    overlay.discard()
            return [overlay.record.dir for overlay in lost]

        return await anyio.to_thread.run_sync(work)

    async def capabilities(self) -> Capabilities:
        """Return what this machine can do, found out by trying."""
        return await anyio.to_thread.run_sync(find_capabilities, self._state, self._overlay)

    async def _run(self, work: Callable[[Monitor], Result], report: Report) -> Result:
        return await anyio.to_thread.run_sync(work, _ThreadMonitor(report))
