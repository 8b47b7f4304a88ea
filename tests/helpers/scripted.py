"""A scripted HTTP server: it serves one object, and does to each request what the test has said."""

import base64
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

Fault = Callable[["Exchange"], bool]
"""Does something to an exchange; whether it is over by that."""

_POLL_S = 0.01


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    owner: "ScriptedServer"

    def do_GET(self) -> None:
        """Answer with the object or a range of it."""
        if not self.owner.begin(self):
            self.serve()

    def do_PUT(self) -> None:
        """Take a part."""
        if not self.owner.begin(self):
            self.take()

    @property
    def span(self) -> tuple[int, int]:
        """What is asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(match[1]), int(match[2]) + 1) if match else (0, len(self.owner.content))

    def head(self, status: int, length: int, **headers: str) -> None:
        """Send an answer's head."""
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def range_head(self, **headers: str) -> bytes:
        """Send the head of a right answer, and return the content that is to follow."""
        start, end = self.span
        content = self.owner.content[start:end]
        if "Range" in self.headers:
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(self.owner.content)}"
        self.head(206 if "Range" in self.headers else 200, len(content), **headers)
        return content

    def serve(self) -> None:
        """Answer rightly."""
        self.send(self.range_head())

    def send(self, content: bytes) -> None:
        """Send a piece of an answer, and count it."""
        with suppress(ConnectionError):
            self.wfile.write(content)
            self.owner.count(len(content))

    def body(self) -> bytes:
        """Read what is sent."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def take(self, alter: Callable[[bytes], bytes] = bytes) -> None:
        """Take a part, altered on the way, if its digest is right."""
        body = alter(self.body())
        digest = hashlib.md5(body, usedforsecurity=False)
        if base64.b64encode(digest.digest()).decode() != self.headers["Content-MD5"]:
            self.fail(400, "BadDigest")
            return
        self.owner.taken[self.path] = body
        self.head(200, 0, ETag=f'"{digest.hexdigest()}"')

    def fail(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        """Answer with an error as S3 has it."""
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
        self.head(status, len(text), **headers)
        self.wfile.write(text.encode())

    def drop(self) -> None:
        """Cut the connection."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Say nothing more until the client has gone, or the server ends."""
        self.close_connection = True
        self.connection.settimeout(_POLL_S)
        while not self.owner.ended.is_set():
            try:
                if not self.connection.recv(1 << 16):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def trickle(self, content: bytes) -> None:
        """Send a byte now and then, until the client has gone or the server ends."""
        self.close_connection = True
        with suppress(OSError):
            for number in range(len(content)):
                if self.owner.ended.is_set():
                    return
                self.connection.sendall(content[number : number + 1])
                time.sleep(_POLL_S)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no error."""


class ScriptedServer:
    """Serves while the block runs."""

    def __init__(self, content: bytes = b"", *faults: Fault) -> None:
        """Prepare it; each of the first requests meets the fault in its place, `always` makes one of all."""
        self.content = content
        self.faults = list(faults)
        self.always: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        """The range (or method) and the path of each."""
        self.taken: dict[str, bytes] = {}
        self.sent = 0
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        handler = type("OwnExchange", (Exchange,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def begin(self, exchange: Exchange) -> bool:
        """Note a request and do to it what is said; whether that was all."""
        with self._lock:
            self.requests.append((exchange.headers.get("Range", exchange.command), exchange.path))
            fault = self.faults.pop(0) if self.faults else self.always
        return fault is not None and fault(exchange)

    def count(self, length: int) -> None:
        """Note what was sent."""
        with self._lock:
            self.sent += length
