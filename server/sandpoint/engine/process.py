"""The engine as a process, next to the tree.

`python -m sandpoint.engine.process` talks to its server over its input and output, as `sandpoint.engine.wire` says,
until its input ends.
`--wait N` is for a container of nothing else: it waits until no such process has run for N seconds.
"""

import fcntl
import itertools
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field, TypeAdapter

from sandpoint.engine import calls, wire
from sandpoint.engine.operations import LocalEngine
from sandpoint.engine.roots import ContainerRoot, FolderRoot, Root
from sandpoint.engine.state import State
from sandpoint.errors import ERRORS, BackupRestoreError, SandpointError, StoreUnavailableError
from sandpoint.models import FileRole, StoredFile, WriteGrant

BUILD_FILE = "ENGINE"
"""Next to the package, where it was put into an image: the name of the code."""

LOCK = "/run/sandpoint-engine.lock"

_GRANT: TypeAdapter[WriteGrant] = TypeAdapter(Annotated[WriteGrant, Field(discriminator="kind")])
_FILES = TypeAdapter(int)
_SECONDS = TypeAdapter(float)
_POLL_S = 0.05
_REPORT_EVERY_S = 0.05
_END_S = 120.0
_AHEAD = 3
"""Blocks of a file that are asked for before the first has come."""


class Stopped(BaseException):
    """The call was cancelled, or the server is gone."""


class _Running:
    """A call that runs: its `Monitor`, its `Ask`, its `Freezer`, and its questions."""

    def __init__(self, process: "Process", request_id: int) -> None:
        self.id = request_id
        self.stopped = threading.Event()
        self._process = process
        self._phase = ""
        self._last = 0.0

    def check(self) -> None:
        if self.stopped.is_set() or self._process.ended.is_set():
            raise Stopped

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self.check()
        now = time.monotonic()
        if phase != self._phase or now - self._last >= _REPORT_EVERY_S:
            self._phase, self._last = phase, now
            self._process.send(wire.Advance(id=self.id, phase=phase, done=done, total=total))

    def joined(self) -> None:
        self._process.send(wire.Joined(id=self.id))

    def ask(self, role: FileRole, file: StoredFile) -> WriteGrant:
        question = self._process.question()
        self._process.send(
            wire.AskGrant(id=self.id, number=question.number, role=role, size=file.size, sha256=file.sha256)
        )
        grant: WriteGrant = calls.checked(_GRANT, question.answer(self.check)[0], "a grant")
        return grant

    def pause(self) -> None:
        question = self._process.question()
        self._process.send(wire.AskFreezer(id=self.id, number=question.number, pause=True))
        question.answer(self.check)

    def unpause(self) -> float:
        question = self._process.question()
        self._process.send(wire.AskFreezer(id=self.id, number=question.number, pause=False))
        seconds: float = calls.checked(_SECONDS, question.answer(self.check)[0], "the end of a pause")
        return seconds


class _Question:
    """A question to the server."""

    def __init__(self, process: "Process", number: int) -> None:
        self.number = number
        self.answers: queue.SimpleQueue[tuple[wire.Answer | wire.Refusal, bytes]] = queue.SimpleQueue()
        self._process = process

    def answer(self, check: Callable[[], None]) -> tuple[Any, bytes]:
        """Wait for the answer.

        Raises:
            SandpointError: It is an error.
        """
        try:
            while True:
                check()
                with suppress(queue.Empty):
                    return self._unpack(*self.answers.get(timeout=_POLL_S))
        finally:
            self.drop()

    def is_answered(self) -> bool:
        return not self.answers.empty()

    def drop(self) -> None:
        self._process.questions.pop(self.number, None)

    @staticmethod
    def _unpack(answer: wire.Answer | wire.Refusal, content: bytes) -> tuple[Any, bytes]:
        if isinstance(answer, wire.Refusal):
            raise ERRORS.get(answer.code, StoreUnavailableError)(answer.message)
        return answer.value, content


class _WireRelay:
    """Files through the server. Implements `Relay`, for the one call that may need it."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self.call: _Running | None = None
        self._streams = itertools.count()

    def _running(self) -> _Running:
        assert self.call is not None, "only calls read and write files"
        return self.call

    def read(self, key: str) -> Iterator[bytes]:
        call, stream = self._running(), next(self._streams)
        asked: deque[_Question] = deque()
        try:
            while True:
                while len(asked) < _AHEAD:
                    asked.append(self._process.question())
                    message = wire.AskBlock(id=call.id, number=asked[-1].number, stream=stream, key=key)
                    self._process.send(message)
                _, block = asked.popleft().answer(call.check)
                if not block:
                    return
                yield block
        finally:
            for question in asked:
                question.drop()

    def write(self, key: str, path: str, check: Callable[[], None]) -> None:
        call, question = self._running(), self._process.question()
        try:
            with open(path, "rb") as file:
                following = file.read(wire.MAX_BLOCK)
                while not question.is_answered():
                    check()
                    block, following = following, file.read(wire.MAX_BLOCK)
                    message = wire.SendBlock(
                        id=call.id, number=question.number, key=key, last=not following, bytes=len(block)
                    )
                    self._process.send(message, block)
                    if not following:
                        break
            question.answer(check)
        finally:
            question.drop()


class Process:
    """The engine's side of the wire."""

    def __init__(self, source: int, sink: int) -> None:
        """Take the descriptors to read from and to write to."""
        self.ended = threading.Event()
        self.questions: dict[int, _Question] = {}
        self._sink = sink
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._files: dict[int, BinaryIO] = {}
        self._running: dict[int, _Running] = {}
        self._threads: set[threading.Thread] = set()
        self._is_in_turn = False
        self._incoming = wire.Incoming(lambda count: os.read(source, count))
        self._relay = _WireRelay(self)
        self._engine: LocalEngine | None = None

    def send(self, message: wire.FromEngine, content: bytes = b"") -> None:
        """Say something to the server.

        Raises:
            Stopped: It is gone.
        """
        data = wire.encoded(message)
        try:
            with self._sending:
                for part in (data, content):
                    view = memoryview(part)
                    while view:
                        view = view[os.write(self._sink, view) :]
        except OSError:
            self.ended.set()
            raise Stopped from None

    def question(self) -> _Question:
        """Return a new question, not yet asked."""
        question = _Question(self, next(self._numbers))
        self.questions[question.number] = question
        return question

    def run(self) -> None:
        """Work until the server is gone, then end what runs and clean up."""
        try:
            if self._begin():
                threading.Thread(target=self._beat, daemon=True).start()
                while (arrived := self._incoming.next(wire.TO_ENGINE)) is not None:
                    self._handle(*arrived)
        except (wire.WireError, OSError, Stopped) as error:
            print(f"the engine ends: {error}", file=sys.stderr)  # noqa: T201 - the server keeps it for its message
        finally:
            self.ended.set()
            self._end()

    def _begin(self) -> bool:
        arrived = self._incoming.next(wire.TO_ENGINE)
        if arrived is None:
            return False
        configure, _ = arrived
        if not isinstance(configure, wire.Configure):
            raise wire.WireError("the first line says where to work")
        try:
            self._engine = self._make(configure)
        except OSError as error:
            self.send(wire.Unfit(message=f"the container cannot be entered: {error.strerror or error}"))
            return False
        self.send(wire.Hello(protocol=wire.PROTOCOL, build=_build()))
        return True

    def _make(self, configure: wire.Configure) -> LocalEngine:
        place = configure.place
        is_container = isinstance(place, wire.ContainerPlace)
        root: Root = (
            ContainerRoot(place.pid, stamped=place.stamped)
            if isinstance(place, wire.ContainerPlace)
            else FolderRoot(place.path)
        )
        state = State(
            configure.state,
            cache_bytes=configure.cache_bytes,
            relay=self._relay,
            root=root,
            sandbox_id=configure.sandbox_id,
            shared=configure.shared,
        )
        return LocalEngine(state, "kernel" if is_container else None)

    def _beat(self) -> None:
        with suppress(Stopped):
            while not self.ended.wait(wire.BEAT_S):
                if self._running:
                    self.send(wire.Beat())

    def _handle(self, message: wire.ToEngine, content: bytes) -> None:
        if isinstance(message, wire.Request):
            self._start(message)
        elif isinstance(message, wire.Cancel):
            if message.id in self._running:
                self._running[message.id].stopped.set()
        elif isinstance(message, wire.Answer | wire.Refusal):
            if (question := self.questions.get(message.number)) is not None:
                question.answers.put((message, content))
        else:
            raise wire.WireError("the engine was told where to work already")

    def _start(self, request: wire.Request) -> None:
        running = self._running[request.id] = _Running(self, request.id)
        thread = threading.Thread(target=self._work, args=(request, running), daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, request: wire.Request, running: _Running) -> None:
        with suppress(Stopped):
            try:
                end, content = self._call(request, running)
            except Stopped:
                end, content = wire.Failure(id=request.id, code=None, message="it was stopped"), b""
            except SandpointError as error:
                partly = isinstance(error, BackupRestoreError) and error.partly
                end = wire.Failure(id=request.id, code=error.code, message=str(error), partly=partly)
                content = b""
            except Exception as error:  # noqa: BLE001 - the server is told, whatever it is
                traceback.print_exc()
                end, content = wire.Failure(id=request.id, code=None, message=f"{type(error).__name__}: {error}"), b""
            del self._running[request.id]
            self._threads.discard(threading.current_thread())
            self.send(end, content)

    def _call(self, request: wire.Request, running: _Running) -> tuple[wire.Result | wire.Failure, bytes]:
        if request.call in (calls.READ_FILE, calls.CLOSE_FILE):
            content = self._of_file(request)
            return wire.Result(id=request.id, bytes=len(content)), content
        call = calls.CALLS[request.call]
        given = call.unpack(request.args)
        given |= _helpers(call, running, freezes=getattr(given.get("request"), "freeze", "never") != "never")
        if "monitor" in call.helpers:
            self._relay.call = running
        value = getattr(self._engine, call.name)(**given)
        if call.name in ("enter", "leave"):
            self._is_in_turn = call.name == "enter"
        if call.returns_file:
            self._files[request.id] = value
            value = request.id
        return wire.Result(id=request.id, value=call.result.dump_python(value)), b""

    def _of_file(self, request: wire.Request) -> bytes:
        number = calls.checked(_FILES, request.args.get(calls.FILE), request.call)
        if request.call == calls.CLOSE_FILE:
            self._files.pop(number).close()
            return b""
        return self._files[number].read(wire.MAX_BLOCK)

    def _end(self) -> None:
        deadline = time.monotonic() + _END_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                os._exit(1)  # what it leaves, the next operation clears away
        for file in self._files.values():
            file.close()
        if self._engine is not None:
            if self._is_in_turn:
                self._engine.leave()
            self._engine.close()


def _helpers(call: calls.Call, running: _Running, *, freezes: bool) -> dict[str, object]:
    known: dict[str, object] = {
        "monitor": running,
        "check": running.check,
        "ask": running.ask,
        "joined": running.joined,
        "freezer": running if freezes else None,
    }
    return {name: known[name] for name in call.helpers}


def _build() -> str:
    noted = Path(__file__).parents[2] / BUILD_FILE
    return noted.read_text().strip() if noted.exists() else ""


def wait(idle_s: float) -> None:
    """Return once no engine has run beside this process for some time."""
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    last = time.monotonic()
    while time.monotonic() - last < idle_s:
        time.sleep(min(1.0, idle_s / 4))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            last = time.monotonic()
        else:
            fcntl.flock(lock, fcntl.LOCK_UN)


def main(argv: list[str]) -> None:
    """Run as argv says."""
    if argv[:1] == ["--wait"]:
        wait(float(argv[1]))
        return
    with suppress(FileNotFoundError, PermissionError):
        fcntl.flock(os.open(LOCK, os.O_RDWR | os.O_CLOEXEC), fcntl.LOCK_SH)
    source, sink = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # nothing but messages goes to the server
    Process(source, sink).run()


if __name__ == "__main__":
    main(sys.argv[1:])
