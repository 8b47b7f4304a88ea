"""Everything that can be asked of an engine, in plain calls: where the engine runs is no matter to the caller.

All but `id` and `capabilities` are called between `enter` and `leave`, by one operation at a time.
"""

import time
from collections.abc import Callable
from typing import BinaryIO, Literal, Protocol

from sandpoint.engine import cache, foreign, reading
from sandpoint.engine import capture as capture_engine
from sandpoint.engine import compare as compare_engine
from sandpoint.engine import overlay as overlays
from sandpoint.engine import restore as restore_engine
from sandpoint.engine.capabilities import find_capabilities
from sandpoint.engine.capture import Ask
from sandpoint.engine.freezing import Freezer
from sandpoint.engine.state import State
from sandpoint.engine.tools import Check, Monitor
from sandpoint.engine.turns import Ticket
from sandpoint.errors import SandboxUnavailableError
from sandpoint.models import (
    Adopted,
    AdoptRequest,
    Applied,
    ApplyRequest,
    Capabilities,
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
)

_POLL_S = 0.01
_FAR = 10


class Engine(Protocol):
    """What an engine does; see `LocalEngine`, the one that does it, for what each call raises and leaves."""

    def id(self) -> str:
        """Return the name of the sandbox in the metadata of its backups."""
        ...

    def enter(self, check: Check, joined: Callable[[], object]) -> None:
        """Wait for all that was asked of this sandbox before, here and in other processes.

        `joined` is called once it has its place in the queue.
        """
        ...

    def leave(self) -> None:
        """Let the next one in."""
        ...

    def capture(self, request: CaptureRequest, monitor: Monitor, ask: Ask, freezer: Freezer | None = None) -> Captured:
        """Capture a directory; `freezer` is there where the request says that it may be needed."""
        ...

    def adopt(self, request: AdoptRequest, monitor: Monitor) -> Adopted:
        """Make a backup of ours of another program's."""
        ...

    def last_capture(self, dir: str) -> LastCapture:
        """Return the last backup taken of a directory, and the one that an overlay on it shows."""
        ...

    def note_capture(self, dir: str, backup_id: str) -> None:
        """Note that a backup of a directory is there."""
        ...

    def compare(self, request: CompareRequest, monitor: Monitor) -> Changes:
        """Compare a directory with a backup."""
        ...

    def compare_backups(self, older: CompareRequest, newer: CompareRequest, monitor: Monitor) -> Changes:
        """Compare two backups."""
        ...

    def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, monitor: Monitor
    ) -> ContentChanges:
        """Compare a backup with its directory or another, with contents."""
        ...

    def open_file(self, request: ReadRequest, monitor: Monitor) -> BinaryIO:
        """Open a file of a backup."""
        ...

    def list_folder(self, request: FolderRequest, monitor: Monitor) -> Listing:
        """List a folder of a backup."""
        ...

    def restore(self, request: ApplyRequest, monitor: Monitor) -> Applied:
        """Make a directory equal to a backup; the mode is not `auto`."""
        ...

    def auto_mode(self, dir: str) -> Literal["overlay", "copy"]:
        """Return how a directory is best restored."""
        ...

    def overlay_on(self, dir: str) -> OverlayState | None:
        """Return the overlay of ours that is mounted on a directory."""
        ...

    def lost_overlays(self) -> list[LostOverlay]:
        """Return the overlays that are mounted no more; not only in a turn."""
        ...

    def is_written(self, dir: str) -> bool:
        """Whether anything was written to overlays at or below a directory."""
        ...

    def exists(self, dir: str) -> bool:
        """Whether a directory is there."""
        ...

    def unmount(self, dir: str) -> None:
        """Take the overlay on a directory down, and those below it, and drop what was written to them."""
        ...

    def prune(self, *, dry_run: bool) -> list[str]:
        """Drop overlays that are mounted no more, and old notes; return the overlays' directories."""
        ...

    def capabilities(self) -> Capabilities:
        """Return what can be done here, found out by trying."""
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


class LocalEngine:
    """The engine in this process. Implements `Engine`."""

    def __init__(self, state: State, overlay: Literal["kernel", "fuse"] | None = None) -> None:
        """Take a state directory; nothing is made or read yet.

        Args:
            state: Where what it needs is kept, and where directories are.
            overlay: Mount overlays this way only; by default the kernel's where it can, else FUSE.
        """
        self.state = state
        self._overlay = overlay
        self._ticket: Ticket | None = None

    def id(self) -> str:
        """Return `local:` and a number made up when the state directory was first used, or what that was told."""
        return self.state.sandbox_id()

    def enter(self, check: Check, joined: Callable[[], object]) -> None:
        """Wait for the operations that came before, then clear up after those that died."""
        ticket = self.state.draw_ticket()
        try:
            joined()
            while before := ticket.before():
                check()
                # Who comes next looks often; a crowd that did would take the time of whoever works.
                time.sleep(_POLL_S * min(before, _FAR))
            self._heal()
        except BaseException:
            ticket.give_back()
            raise
        self._ticket = ticket

    def _heal(self) -> None:
        try:
            self.state.heal()
            overlays.heal(self.state)
        except OSError as error:
            raise SandboxUnavailableError(
                f"what an operation that died has left in {self.state.path} cannot be cleared away: {error}; remove "
                "what is named, then try again"
            ) from error

    def leave(self) -> None:
        """Drop what the cache holds too much, and let the next one in."""
        ticket, self._ticket = self._ticket, None
        assert ticket is not None, "entered before"
        try:
            cache.release(self.state)
        finally:
            ticket.give_back()

    def capture(self, request: CaptureRequest, monitor: Monitor, ask: Ask, freezer: Freezer | None = None) -> Captured:
        """Capture a directory; see `sandpoint.engine.capture.capture`."""
        return capture_engine.capture(request, self.state, monitor, ask, freezer)

    def adopt(self, request: AdoptRequest, monitor: Monitor) -> Adopted:
        """Make a backup of ours of another program's; see `sandpoint.engine.foreign.adopt`."""
        return foreign.adopt(request, self.state, monitor)

    def last_capture(self, dir: str) -> LastCapture:
        """Return the last backup taken of a directory, and the one that an overlay on it shows."""
        overlay = self._find_overlay(dir)
        noted = self.state.last_capture(dir) if overlay is None else overlay.last_capture()
        shown = None if overlay is None else overlay.record.backup_id
        ids = tuple(dict.fromkeys(each for each in (noted, shown) if each is not None))
        return LastCapture(backup_ids=ids, on_overlay=overlay is not None)

    def note_capture(self, dir: str, backup_id: str) -> None:
        """Note in the state directory that a backup of a directory is there."""
        overlay = self._find_overlay(dir)
        if overlay is None:
            self.state.note_capture(dir, backup_id)
        else:
            overlay.note_capture(backup_id)

    def compare(self, request: CompareRequest, monitor: Monitor) -> Changes:
        """Compare a directory with a backup; see `sandpoint.engine.compare.compare`."""
        return compare_engine.compare(request, self.state, monitor)

    def compare_backups(self, older: CompareRequest, newer: CompareRequest, monitor: Monitor) -> Changes:
        """Compare two backups; see `sandpoint.engine.compare.compare_backups`."""
        return compare_engine.compare_backups(older, newer, self.state, monitor)

    def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, monitor: Monitor
    ) -> ContentChanges:
        """Compare a backup with its directory or another; see `sandpoint.engine.compare.compare_contents`."""
        return compare_engine.compare_contents(backup, other, max_bytes, self.state, monitor)

    def open_file(self, request: ReadRequest, monitor: Monitor) -> BinaryIO:
        """Open a file of a backup; see `sandpoint.engine.reading.open_file`."""
        return reading.open_file(request, self.state, monitor)

    def list_folder(self, request: FolderRequest, monitor: Monitor) -> Listing:
        """List a folder of a backup; see `sandpoint.engine.reading.folder`."""
        return reading.folder(request, self.state, monitor)

    def restore(self, request: ApplyRequest, monitor: Monitor) -> Applied:
        """Restore a directory; see `sandpoint.engine.restore.restore`."""
        kind = None
        if request.mode == "overlay":
            kind, _ = overlays.available_kind(self.state, self._overlay, in_turn=True)
        return restore_engine.restore(request, self.state, kind, monitor)

    def auto_mode(self, dir: str) -> Literal["overlay", "copy"]:
        """Return how a directory is best restored: by overlay where one would be seen by all who use it."""
        if not self.state.root.suits_overlay(dir):
            return "copy"
        kind, _ = overlays.available_kind(self.state, self._overlay, in_turn=True)
        return "copy" if kind is None else "overlay"

    def overlay_on(self, dir: str) -> OverlayState | None:
        """Return the overlay of ours that is mounted on a directory."""
        overlay = self._find_overlay(dir)
        return None if overlay is None else OverlayState(backup_id=overlay.record.backup_id)

    def lost_overlays(self) -> list[LostOverlay]:
        """Return the youngest overlay of each directory that has none any more; what was written goes with a prune."""
        lost = {
            each.record.dir: each for each in sorted(overlays.orphans(self.state), key=lambda o: o.record.created_ns)
        }
        there = {each.record.dir for each in overlays.own_overlays(self.state, "/")} if lost else set()
        return [
            LostOverlay(dir=directory, backup_id=overlay.record.backup_id)
            for directory, overlay in sorted(lost.items())
            if directory not in there
        ]

    def is_written(self, dir: str) -> bool:
        """Whether anything was written to overlays at or below a directory."""
        self.state.prepare()
        return any(overlay.is_written() for overlay in overlays.own_overlays(self.state, dir))

    def exists(self, dir: str) -> bool:
        """Whether a directory is there, or anything else of that name."""
        return self.state.root.exists(dir)

    def unmount(self, dir: str) -> None:
        """Take the overlay on a directory down, and those below it, and drop what was written to them."""
        with overlays.set_aside(self.state, dir, lambda: None):
            pass

    def _find_overlay(self, dir: str) -> overlays.Overlay | None:
        self.state.prepare()
        return next((o for o in overlays.own_overlays(self.state, dir) if o.record.dir == dir), None)

    def prune(self, *, dry_run: bool) -> list[str]:
        """Drop overlays that are mounted no more, and old notes; return the overlays' directories."""
        self.state.prepare()
        lost = overlays.orphans(self.state)
        if not dry_run:
            self.state.forget_old_notes()
            for overlay in lost:
                overlay.discard()
        return [overlay.record.dir for overlay in lost]

    def capabilities(self) -> Capabilities:
        """Return what this machine can do, found out by trying."""
        return find_capabilities(self.state, self._overlay)

    def close(self) -> None:
        """End what was started for it."""
        self.state.root.close()
