"""An engine in a process of its own, called as if it were here."""

import io
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Literal, cast

from pydantic import TypeAdapter

from sandpoint.engine import calls, wire
from sandpoint.engine.capture import Ask
from sandpoint.engine.freezing import Freezer
from sandpoint.engine.relay import Relay
from sandpoint.engine.tools import Check, Monitor
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
    StoredFile,
)
from sandpoint.sandboxes.connection import Connection
from sandpoint.sandboxes.passage import Passage

_STORED = TypeAdapter(StoredFile)


class RemoteEngine:
    """An engine at the other end of a connection. Implements `OpenEngine`.

    All calls raise `SandboxUnavailableError` where the engine is gone, or says what no engine would say.
    """

    def __init__(self, connection: Connection, relay: Relay | None, folder: str) -> None:
        """Take a connection to an engine that was told where to work.

        Args:
            connection: Closed with this.
            relay: What carries files to and from a store that the engine cannot reach.
            folder: Of this machine, for what waits to be carried there.
        """
        self._connection = connection
        self._relay = relay
        self._folder = folder

    @property
    def is_alive(self) -> bool:
        """Whether the engine answers: it ends with the container, which the line to it need not show."""
        try:
            self.id()
        except SandboxUnavailableError:
            return False
        return True

    def id(self) -> str:
        """See `Engine`."""
        return cast(str, self._call("id"))

    def enter(self, check: Check, joined: Callable[[], object]) -> None:
        """See `Engine`."""
        self._attended("enter", _Attendant(check, joined=joined), {}, undo="leave")

    def leave(self) -> None:
        """See `Engine`; an engine that is gone has left."""
        if self._connection.is_alive:
            self._call("leave")

    def capture(self, request: CaptureRequest, monitor: Monitor, ask: Ask, freezer: Freezer | None = None) -> Captured:
        """See `Engine`."""
        passage = Passage(self._relay, self._folder, monitor.check)
        attendant = _Attendant(monitor.check, monitor, passage, ask, freezer)
        captured = cast(Captured, self._attended("capture", attendant, {"request": request}))
        for sent in (captured.layer, captured.manifest):
            if sent is not None and not passage.has_arrived(StoredFile(size=sent.size, sha256=sent.sha256)):
                raise self._connection.give_up("it named a file that it did not send")
        return captured

    def adopt(self, request: AdoptRequest, monitor: Monitor) -> Adopted:
        """See `Engine`."""
        return cast(Adopted, self._watched("adopt", monitor, request=request))

    def last_capture(self, dir: str) -> LastCapture:
        """See `Engine`."""
        return cast(LastCapture, self._call("last_capture", dir=dir))

    def note_capture(self, dir: str, backup_id: str) -> None:
        """See `Engine`."""
        self._call("note_capture", dir=dir, backup_id=backup_id)

    def compare(self, request: CompareRequest, monitor: Monitor) -> Changes:
        """See `Engine`."""
        return cast(Changes, self._watched("compare", monitor, request=request))

    def compare_backups(self, older: CompareRequest, newer: CompareRequest, monitor: Monitor) -> Changes:
        """See `Engine`."""
        return cast(Changes, self._watched("compare_backups", monitor, older=older, newer=newer))

    def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, monitor: Monitor
    ) -> ContentChanges:
        """See `Engine`."""
        found = self._watched("compare_contents", monitor, backup=backup, other=other, max_bytes=max_bytes)
        return cast(ContentChanges, found)

    def open_file(self, request: ReadRequest, monitor: Monitor) -> BinaryIO:
        """See `Engine`; it can be read while the engine is there."""
        number = cast(int, self._watched("open_file", monitor, request=request))
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(self._connection, number), wire.MAX_BLOCK))

    def list_folder(self, request: FolderRequest, monitor: Monitor) -> Listing:
        """See `Engine`."""
        return cast(Listing, self._watched("list_folder", monitor, request=request))

    def restore(self, request: ApplyRequest, monitor: Monitor) -> Applied:
        """See `Engine`."""
        return cast(Applied, self._watched("restore", monitor, request=request))

    def auto_mode(self, dir: str) -> Literal["overlay", "copy"]:
        """See `Engine`."""
        return cast(Literal["overlay", "copy"], self._call("auto_mode", dir=dir))

    def overlay_on(self, dir: str) -> OverlayState | None:
        """See `Engine`."""
        return cast(OverlayState | None, self._call("overlay_on", dir=dir))

    def lost_overlays(self) -> list[LostOverlay]:
        """See `Engine`."""
        return cast(list[LostOverlay], self._call("lost_overlays"))

    def is_written(self, dir: str) -> bool:
        """See `Engine`."""
        return cast(bool, self._call("is_written", dir=dir))

    def exists(self, dir: str) -> bool:
        """See `Engine`."""
        return cast(bool, self._call("exists", dir=dir))

    def unmount(self, dir: str) -> None:
        """See `Engine`."""
        self._call("unmount", dir=dir)

    def prune(self, *, dry_run: bool) -> list[str]:
        """See `Engine`."""
        return cast(list[str], self._call("prune", dry_run=dry_run))

    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return cast(Capabilities, self._call("capabilities"))

    def close(self) -> None:
        """End the engine."""
        self._connection.close()

    def _watched(self, name: str, monitor: Monitor, **given: object) -> object:
        passage = Passage(self._relay, self._folder, monitor.check)
        return self._attended(name, _Attendant(monitor.check, monitor, passage), given)

    def _call(self, name: str, **given: object) -> object:
        return self._attended(name, _Attendant(_go_on), given)

    def _attended(
        self, name: str, attendant: "_Attendant", given: Mapping[str, object], *, undo: str | None = None
    ) -> object:
        call, passage = calls.CALLS[name], attendant.passage
        try:
            if passage is not None:
                given = {each: passage.translated(value) for each, value in given.items()}
            _, value, _ = self._connection.call(name, call.pack(given), attendant, undo=undo)
            return calls.checked(call.result, value, name)
        except wire.WireError as error:
            raise self._connection.give_up(str(error)) from error
        finally:
            if passage is not None:
                passage.close()


class _Attendant:
    """Attends to a call for its monitor. Implements `Attendant`."""

    def __init__(
        self,
        check: Check,
        monitor: Monitor | None = None,
        passage: Passage | None = None,
        ask: Ask | None = None,
        freezer: Freezer | None = None,
        *,
        joined: Callable[[], object] | None = None,
    ) -> None:
        self.check = check
        self._monitor = monitor
        self.passage = passage
        self._ask = ask
        self._freezer = freezer
        self._joined = joined

    def told(self, message: wire.Joined | wire.Advance) -> None:
        if isinstance(message, wire.Advance) and self._monitor is not None:
            self._monitor.progress(message.phase, message.done, message.total)
        elif isinstance(message, wire.Joined) and self._joined is not None:
            joined, self._joined = self._joined, None
            joined()

    def asked(self, question: wire.Question, content: bytes) -> tuple[Any, bytes] | None:
        if isinstance(question, wire.AskFreezer):
            return self._freeze(pause=question.pause), b""
        if self.passage is None:
            raise SandboxUnavailableError("the engine asked for a file where none is needed")
        if isinstance(question, wire.AskBlock):
            return None, self.passage.read(question)
        if isinstance(question, wire.SendBlock):
            return (None, b"") if self.passage.write(question, content) else None
        if self._ask is None:
            raise SandboxUnavailableError("the engine asked for leave to write where nothing is written")
        file = calls.checked(_STORED, {"size": question.size, "sha256": question.sha256}, "a question")
        return self.passage.granted(file, self._ask(question.role, file)).model_dump(), b""

    def _freeze(self, *, pause: bool) -> float | None:
        if self._freezer is None:
            raise SandboxUnavailableError("the engine asked for a pause where none was wanted")
        if not pause:
            return self._freezer.unpause()
        self._freezer.pause()
        return None


class _RemoteFile(io.RawIOBase):
    """A file that the engine has open."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            _, _, content = self._connection.call(calls.READ_FILE, {calls.FILE: self._number}, _Attendant(_go_on))
            self._rest = memoryview(content)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._connection.tell(calls.CLOSE_FILE, {calls.FILE: self._number})
        super().close()


def _go_on() -> None:
    """Stop nothing."""
