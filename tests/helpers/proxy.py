"""A proxy on loopback, between a client and an HTTP server, that counts requests and breaks those that it is told to.

Heads are passed on as they are, Host too: what was signed for the proxy's address holds at the server.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import parse_qsl, unquote, urlsplit

_BLOCK = 1 << 16


class Fault(Enum):
    """What happens to a request."""

    DROP = auto()
    """The connection is closed before the server hears of it."""

    CUT_REQUEST = auto()
    """The connection is closed in the middle of the request's body; the server has seen half."""

    LOSE_ANSWER = auto()
    """The server does it; the connection is closed before the answer."""

    CUT_ANSWER = auto()
    """The connection is closed in the middle of the answer's body, or of its first line if it has none."""

    STALL = auto()
    """No more is read, and nothing answered, until the client gives up or the proxy stops."""

    STALL_ANSWER = auto()
    """The same in the middle of the answer."""

    ERROR_500 = auto()
    """Answered as S3 does; the server does not hear of it."""

    ERROR_503 = auto()
    """The same: `SlowDown`."""

    REFUSE = auto()
    """Answered with the error that is named; the server does not hear of it."""

    FLIP_REQUEST = auto()
    """One bit of the request's body is another."""

    FLIP_ANSWER = auto()
    """One bit of the answer's body is another: in its middle, or in the text that is named."""


@dataclass(frozen=True)
class Refusal:
    """An error as S3 tells it."""

    status: str
    code: str
    message: str = "It is refused."


_ERRORS = {
    Fault.ERROR_500: Refusal("500 Internal Server Error", "InternalError", "We encountered an internal error."),
    Fault.ERROR_503: Refusal("503 Slow Down", "SlowDown", "Please reduce your request rate."),
}
_HALF_ANSWERS = {Fault.CUT_ANSWER, Fault.STALL_ANSWER}
_NEED_BODY = {Fault.CUT_REQUEST: "request", Fault.FLIP_REQUEST: "request", Fault.FLIP_ANSWER: "answer"}


@dataclass(frozen=True)
class Request:
    """What a client asked for, without its secrets."""

    number: int
    """From 1, of all requests of the proxy."""

    method: str
    path: str
    names: frozenset[str]
    """Of the query's parameters."""

    range: str | None
    length: int | None
    """Of its body; None where it has none, or one in chunks."""


@dataclass
class Rule:
    """Which requests a fault meets."""

    fault: Fault
    when: Callable[[Request], bool]
    after: int
    times: int | None
    refusal: Refusal | None = None
    text: bytes = b""
    hits: int = 0
    """How many it has met."""

    def meets(self, request: Request) -> bool:
        """Whether it meets a request, which counts."""
        if self.hits == self.times or not self.when(request):
            return False
        if self.after:
            self.after -= 1
            return False
        self.hits += 1
        return True


@dataclass(frozen=True)
class _Head:
    lines: list[bytes]
    """As they came: the first, the fields', the empty one."""

    def field(self, name: str) -> str | None:
        for line in self.lines[1:-1]:
            found, _, text = line.partition(b":")
            if found.decode("latin-1").lower() == name:
                return text.strip().decode("latin-1")
        return None

    @property
    def length(self) -> int | None:
        text = self.field("content-length")
        return None if text is None else int(text)

    @property
    def is_chunked(self) -> bool:
        return (self.field("transfer-encoding") or "").lower() == "chunked"

    def raw(self) -> bytes:
        """Return it without `Expect`, which the proxy answers itself."""
        return b"".join(line for line in self.lines if not line.lower().startswith(b"expect:"))


class Proxy:
    """Takes requests while the block runs; when it ends no thread and no connection is left."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._problems: list[str] = []
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_stopping = False
        self.connections = 0
        """How many clients have opened."""
        self.sent = 0
        """Bytes of the bodies that the server was sent."""
        self.received = 0
        """Bytes of the bodies that it answered with."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stopped = os.eventfd(0)
        self._accepting = threading.Thread(target=self._accept, name="proxy")
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None:
            self.check()

    # -- for tests --

    def stop(self) -> None:
        """Close every connection, and wait until no thread is left."""
        with self._lock:
            if self._is_stopping:
                return
            self._is_stopping = True
            for each in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):  # closed by the other side already
                    each.shutdown(socket.SHUT_RDWR)
        os.eventfd_write(self._stopped, 1)
        self._accepting.join()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        os.close(self._stopped)

    def fail(
        self,
        fault: Fault,
        *,
        when: Callable[[Request], bool] = lambda _: True,
        after: int = 0,
        times: int | None = 1,
        refusal: Refusal | None = None,
        text: bytes = b"",
    ) -> Rule:
        """Break requests from now on.

        Args:
            fault: What happens to them.
            when: Which they are.
            after: So many of these pass first.
            times: How many it meets; None is all.
            refusal: What `REFUSE` answers.
            text: In which `FLIP_ANSWER` flips a bit; an answer without it passes whole.
        """
        rule = Rule(fault, when, after, times, refusal or _ERRORS.get(fault), text)
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Break no more requests; those that are stalled stay so."""
        with self._lock:
            self._rules.clear()

    def check(self) -> None:
        """Fail if a fault met a request that has nothing to break; the end of the block does it too."""
        with self._lock:
            problems, self._problems = self._problems, []
        assert not problems, problems

    @property
    def requests(self) -> list[Request]:
        """What was asked for up to now, in the order in which it came."""
        with self._lock:
            return list(self._requests)

    # -- connections --

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="proxy client")
            self.connections += 1
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), self._kept(client), client.makefile("rb") as asked:
            while self._exchange(client, asked):
                pass

    @contextlib.contextmanager
    def _kept(self, opened: socket.socket) -> Iterator[socket.socket]:
        """Close it in the end, and let whoever stops the proxy wake who waits for it."""
        with opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._is_stopping:
                    raise EOFError
                self._sockets.add(opened)
            try:
                yield opened
            finally:
                with self._lock:
                    self._sockets.discard(opened)

    # -- one request --

    def _exchange(self, client: socket.socket, asked: BinaryIO) -> bool:
        """Pass on a request and its answer; return whether the connection goes on."""
        head = _read_head(asked)
        request, rule = self._note(head)
        fault = rule.fault if rule else None
        if fault is Fault.DROP:
            return False
        if fault is Fault.STALL:
            return self._hold(client)
        if head.field("expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rule and rule.refusal:
            for _ in _body(asked, head, is_answer=False):
                pass
            client.sendall(_error(rule.refusal, with_body=request.method != "HEAD"))
            return True
        with self._kept(socket.create_connection(self.server)) as server, server.makefile("rb") as answered:
            self._pass_request(asked, head, server, fault)
            if fault is Fault.CUT_REQUEST:
                return False
            answer = _read_answer_head(answered)
            if fault is Fault.LOSE_ANSWER:
                return False
            is_open = self._pass_answer(answer, answered, client, request, rule)
            return is_open and head.field("connection") != "close"

    def _note(self, head: _Head) -> tuple[Request, Rule | None]:
        method, target, _ = head.lines[0].decode("latin-1").split(" ", 2)
        parts = urlsplit(target)
        names = frozenset(name for name, _ in parse_qsl(parts.query, keep_blank_values=True))
        with self._lock:
            request = Request(
                len(self._requests) + 1, method, unquote(parts.path), names, head.field("range"), head.length
            )
            self._requests.append(request)
            return request, next((rule for rule in self._rules if rule.meets(request)), None)

    def _pass_request(self, asked: BinaryIO, head: _Head, server: socket.socket, fault: Fault | None) -> None:
        blocks = _body(asked, head, is_answer=False)
        self._check(fault, "request", has_body=bool(head.length) or head.is_chunked)
        if fault is Fault.FLIP_REQUEST:
            blocks = _flipped(blocks)
        if fault is Fault.CUT_REQUEST:
            blocks = _halved(blocks, head.length)
        is_heard = _send(server, head.raw())
        for block, _ in blocks:  # to its end even if the server has heard enough: it has an answer then
            is_heard = is_heard and _send(server, block)
            with self._lock:
                self.sent += len(block)

    def _pass_answer(
        self, head: _Head, answered: BinaryIO, client: socket.socket, request: Request, rule: Rule | None
    ) -> bool:
        """Return whether the client may ask for more on its connection."""
        fault = rule.fault if rule else None
        status = int(head.lines[0].split()[1])
        is_empty = request.method == "HEAD" or status in {204, 304} or head.length == 0
        self._check(fault, "answer", has_body=not is_empty)
        if is_empty:
            client.sendall(head.lines[0][:8] if fault in _HALF_ANSWERS else head.raw())
            return self._end(client, fault) and head.field("connection") != "close"
        blocks = _body(answered, head, is_answer=True)
        if rule and fault is Fault.FLIP_ANSWER:
            blocks = _flipped(blocks, rule.text)
        if fault in _HALF_ANSWERS:
            blocks = _halved(blocks, head.length)
        client.sendall(head.raw())
        for block, _ in blocks:
            client.sendall(block)
            with self._lock:
                self.received += len(block)
        is_framed = head.is_chunked or head.length is not None
        return self._end(client, fault) and is_framed and head.field("connection") != "close"

    def _end(self, client: socket.socket, fault: Fault | None) -> bool:
        if fault is Fault.STALL_ANSWER:
            self._hold(client)
        return fault not in _HALF_ANSWERS

    def _check(self, fault: Fault | None, whose: str, *, has_body: bool) -> None:
        if fault is not None and _NEED_BODY.get(fault) == whose and not has_body:
            with self._lock:
                self._problems.append(f"{fault} met request {len(self._requests)}, whose {whose} has no body")

    def _hold(self, client: socket.socket) -> bool:
        """Wait until the client gives up or the proxy stops; return that the connection does not go on."""
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        poll.register(self._stopped, select.POLLIN)
        poll.poll()
        return False


def _send(to: socket.socket, block: bytes) -> bool:
    try:
        to.sendall(block)
    except OSError:
        return False
    return True


def _error(refusal: Refusal, *, with_body: bool) -> bytes:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>"
    )
    body = text.encode() if with_body else b""
    head = f"HTTP/1.1 {refusal.status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# -- messages --


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def _read_head(stream: BinaryIO) -> _Head:
    lines = [_line(stream)]
    while lines[-1] != b"\r\n":
        lines.append(_line(stream))
    return _Head(lines)


def _read_answer_head(stream: BinaryIO) -> _Head:
    while True:
        head = _read_head(stream)
        if not head.lines[0].split()[1].startswith(b"1"):
            return head


_Blocks = Iterator[tuple[bytes, bool]]
"""Bytes as they go over the wire, and whether they are the body's own."""


def _body(stream: BinaryIO, head: _Head, *, is_answer: bool) -> _Blocks:
    if head.is_chunked:
        yield from _chunks(stream)
    elif head.length is not None:
        yield from _exactly(stream, head.length)
    elif is_answer:
        while block := stream.read(_BLOCK):
            yield block, True


def _exactly(stream: BinaryIO, length: int) -> _Blocks:
    left = length
    while left:
        block = stream.read(min(left, _BLOCK))
        if not block:
            raise EOFError
        left -= len(block)
        yield block, True


def _chunks(stream: BinaryIO) -> _Blocks:
    size = -1
    while size:
        line = _line(stream)
        size = int(line.split(b";")[0], 16)
        yield line, False
        if size:
            yield from _exactly(stream, size)
            yield _line(stream), False
    line = b""
    while line != b"\r\n":
        line = _line(stream)
        yield line, False


def _flipped(blocks: _Blocks, text: bytes = b"") -> _Blocks:
    """Flip a bit in the middle of a text, or of the first block."""
    is_done = False
    for block, is_own in blocks:
        at = block.find(text) + len(text) // 2 if text else len(block) // 2
        if is_own and not is_done and text in block:
            is_done = True
            yield block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :], is_own
        else:
            yield block, is_own


def _halved(blocks: _Blocks, length: int | None) -> _Blocks:
    """End after half of the body, or after half of its first block where its length is not said."""
    done = 0
    for block, is_own in blocks:
        half = len(block) // 2 if length is None else length // 2
        if is_own and done + len(block) > half:
            yield block[: half - done], is_own
            return
        yield block, is_own
        done += len(block) if is_own else 0
