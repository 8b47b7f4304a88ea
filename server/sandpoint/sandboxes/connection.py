"""The server's side of the wire to an engine in a process of its own. See `sandpoint.engine.wire`."""

import itertools
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sandpoint.engine import wire
from sandpoint.errors import ERRORS, BackupRestoreError, SandboxUnavailableError, SandpointError

_POLL_S = 0.05
_SILENCE_S = 60.0
_DOUBT_S = 1.5
"""Silence after which somebody else is asked."""
_STOP_S = 60.0
_HELLO_S = 30.0
_KEPT = 32
"""Messages of a call that wait for the thread that called: the engine waits when there are more."""
_TEXT = 16_000


class Stream(Protocol):
    """Bytes from and to an engine."""

    def read(self, count: int) -> bytes:
        """Return at most so many of the next bytes, at least one; none at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Write all."""
        ...

    def is_alive(self) -> bool:
        """Whether the engine runs, as far as can be told without it; may take a while.

        Raises:
            SandboxUnavailableError: That cannot be found out.
        """
        ...

    def end(self) -> None:
        """Let it go, from any thread: a read or a write that waits comes to its end."""
        ...

    def close(self) -> None:
        """Release it, once nobody reads it any more."""
        ...

    def last_words(self) -> str:
        """Return the end of what the engine said elsewhere than in messages."""
        ...


class UnfitError(Exception):
    """The engine cannot work where it is; the message says why."""


class Attendant(Protocol):
    """Who attends to a call while it runs. What it raises ends the call, but for a `SandpointError` to a question."""

    def check(self) -> None:
        """Raise to stop the call. Called every 50 ms."""

    def told(self, message: wire.Joined | wire.Advance) -> None:
        """Take note."""

    def asked(self, question: wire.Question, content: bytes) -> tuple[Any, bytes] | None:
        """Return an answer, None where none is due."""


class Connection:
    """A line to an engine. Its methods may be called from many threads."""

    def __init__(self, stream: Stream, name: str) -> None:
        """Take a stream to an engine that was just started.

        Args:
            stream: Closed in the end.
            name: What messages call the engine.
        """
        self._stream = stream
        self._name = name
        self._sending = threading.Lock()
        self._ids = itertools.count()
        self._calls: dict[int, queue.Queue[tuple[wire.FromEngine, bytes]]] = {}
        self._greeting: queue.SimpleQueue[wire.Hello | wire.Unfit] = queue.SimpleQueue()
        self._broken = threading.Event()
        self._why = ""
        self._heard = self._looked = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="sandpoint-engine", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether the engine was there a moment ago."""
        return not self._broken.is_set()

    def greet(self, configure: wire.Configure) -> wire.Hello:
        """Tell the engine where to work.

        Raises:
            UnfitError: It cannot work there.
            SandboxUnavailableError: It did not start.
        """
        self._send(configure)
        deadline = time.monotonic() + _HELLO_S
        while time.monotonic() < deadline:
            with suppress(queue.Empty):
                found = self._greeting.get(timeout=_POLL_S)
                if isinstance(found, wire.Unfit):
                    raise UnfitError(found.message[:_TEXT])
                return found
            self._look_after()
            if self._broken.is_set() and self._greeting.empty():
                raise self._gone()
        self._break(f"it said nothing in {_HELLO_S:.0f} s")
        raise self._gone()

    def call(
        self, name: str, args: dict[str, Any], attendant: Attendant, *, undo: str | None = None
    ) -> tuple[int, Any, bytes]:
        """Call the engine and wait for the end; return the call's number, and what it returned.

        Args:
            name: Of the call.
            args: As they go over the wire.
            attendant: Attends to it.
            undo: What to call where it came to its end although it was to stop.

        Raises:
            SandpointError: The call did.
            SandboxUnavailableError: The engine is gone, or fell silent.
            BaseException: What `attendant` raised; the call has ended, or the engine was given up.
        """
        number = next(self._ids)
        inbox = self._calls[number] = queue.Queue(_KEPT)
        try:
            self._heard = time.monotonic()  # one with nothing to do is silent
            self._send(wire.Request(id=number, call=name, args=args))
            try:
                end, content = self._attend(inbox, attendant)
            except BaseException:
                if isinstance(self._stop(number, inbox), wire.Result) and undo is not None:
                    self.tell(undo, {})
                raise
            return number, self._value(end, name), content
        finally:
            del self._calls[number]

    def tell(self, name: str, args: dict[str, Any]) -> None:
        """Call the engine without waiting for the end; one that is gone need not be told."""
        with suppress(SandboxUnavailableError):
            self._send(wire.Request(id=next(self._ids), call=name, args=args))

    def give_up(self, why: str) -> SandboxUnavailableError:
        """End the line because of what the engine did; return what is to be raised."""
        self._break(why)
        return self._gone()

    def close(self) -> None:
        """End the line, and with it the engine."""
        self._break("it was closed")
        self._reader.join()

    def _attend(
        self, inbox: queue.Queue[tuple[wire.FromEngine, bytes]], attendant: Attendant
    ) -> tuple[wire.Result | wire.Failure, bytes]:
        while True:
            message, content = self._receive(inbox, attendant.check)
            if isinstance(message, wire.Result | wire.Failure):
                return message, content
            if isinstance(message, wire.Question):
                self._answer(message, content, attendant)
            elif isinstance(message, wire.Joined | wire.Advance):
                attendant.told(message)

    def _receive(
        self, inbox: queue.Queue[tuple[wire.FromEngine, bytes]], check: Callable[[], None]
    ) -> tuple[wire.FromEngine, bytes]:
        while True:
            with suppress(queue.Empty):
                return inbox.get(timeout=_POLL_S)
            check()
            self._look_after()
            if self._broken.is_set() and inbox.empty():
                raise self._gone()

    def _look_after(self) -> None:
        """Break a line that only seems to be there."""
        now = time.monotonic()
        if now - self._heard > _SILENCE_S:
            self._break(f"it said nothing in {_SILENCE_S:.0f} s")
        elif now - max(self._heard, self._looked) > _DOUBT_S:
            self._looked = now
            try:
                runs = self._stream.is_alive()
            except SandboxUnavailableError as error:
                self._break(str(error))
            else:
                if not runs:
                    self._break("it ended")

    def _answer(self, question: wire.Question, content: bytes, attendant: Attendant) -> None:
        try:
            answer = attendant.asked(question, content)
        except SandpointError as error:
            self._send(wire.Refusal(number=question.number, code=error.code, message=str(error)))
        else:
            if answer is not None:
                value, block = answer
                self._send(wire.Answer(number=question.number, value=value, bytes=len(block)), block)

    def _stop(self, number: int, inbox: queue.Queue[tuple[wire.FromEngine, bytes]]) -> wire.FromEngine | None:
        """Stop a call, and return its end; an engine that does not come to one is given up."""
        deadline = time.monotonic() + _STOP_S
        with suppress(SandboxUnavailableError):
            self._send(wire.Cancel(id=number))
        while not (self._broken.is_set() and inbox.empty()):
            with suppress(queue.Empty):
                message, _ = inbox.get(timeout=_POLL_S)
                if isinstance(message, wire.Result | wire.Failure):
                    return message
            self._look_after()
            if time.monotonic() > deadline:
                self._break(f"it did not stop in {_STOP_S:.0f} s")
        return None

    def _value(self, end: wire.Result | wire.Failure, name: str) -> Any:
        if isinstance(end, wire.Result):
            return end.value
        message = end.message[:_TEXT]
        kind = ERRORS.get(end.code or "")
        if kind is None:
            raise SandboxUnavailableError(f"{self._name} failed in {name}: {message}; try again", lost=True)
        if issubclass(kind, BackupRestoreError):
            raise kind(message, partly=end.partly)
        raise kind(message)

    def _send(self, message: wire.ToEngine, content: bytes = b"") -> None:
        if self._broken.is_set():
            raise self._gone()
        try:
            with self._sending:
                self._stream.write(wire.encoded(message))
                if content:
                    self._stream.write(content)
        except OSError as error:
            raise self.give_up(f"nothing can be said to it: {error}") from error

    def _read(self) -> None:
        incoming = wire.Incoming(self._stream.read)
        why = "it ended"
        try:
            while (arrived := incoming.next(wire.FROM_ENGINE)) is not None:
                self._heard = time.monotonic()
                self._hand_out(*arrived)
        except (wire.WireError, OSError, ValueError) as error:
            why = str(error)
        self._break(why)
        self._stream.close()

    def _hand_out(self, message: wire.FromEngine, content: bytes) -> None:
        if isinstance(message, wire.Hello | wire.Unfit):
            self._greeting.put(message)
        elif not isinstance(message, wire.Beat) and (inbox := self._calls.get(message.id)) is not None:
            while not self._broken.is_set() and message.id in self._calls:
                with suppress(queue.Full):
                    inbox.put((message, content), timeout=_POLL_S)
                    return
                self._heard = time.monotonic()  # it is not the engine who is slow

    def _break(self, why: str) -> None:
        if not self._broken.is_set():
            self._why = why
            self._broken.set()
            self._stream.end()

    def _gone(self) -> SandboxUnavailableError:
        words = self._stream.last_words().strip()
        said = f" ({words[-500:]})" if words else ""
        return SandboxUnavailableError(
            f"{self._name} is gone: {self._why}{said}; whether the container still runs says docker ps, then try again",
            lost=True,
        )
