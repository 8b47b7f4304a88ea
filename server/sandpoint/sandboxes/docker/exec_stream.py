"""The input and output of a program that Docker runs in a container, over whatever Docker is reached by."""

import select
import socket
import ssl
import struct
import threading
from collections import deque
from contextlib import nullcontext, suppress
from typing import Any

from sandpoint.sandboxes.docker.host import DockerHost, explained

_HEADER = struct.Struct(">BxxxL")
_STDOUT = 1
_PIECE = 256 << 10
_WORDS = 4096
_SEND_S = 60.0


class ExecStream:
    """A program in a container. Implements `Stream`."""

    def __init__(self, host: DockerHost, container: str, argv: list[str]) -> None:
        """Start the program.

        Raises:
            InvalidBackupConfigError: The container is gone.
            SandboxUnavailableError: The engine refused, or does not answer.
        """
        client = host.client
        with explained(f"helper {container[:12]}"):
            made = client.api.exec_create(container, argv, stdin=True, stdout=True, stderr=True, tty=False)
            self._id = str(made["Id"])
            self._held = client.api.exec_start(self._id, socket=True)
        self._host = host
        self._line = _line(self._held)
        self._left = 0
        self._is_output = False
        self._raw = bytearray()
        self._words: deque[bytes] = deque(maxlen=16)

    def read(self, count: int) -> bytes:
        """See `Stream`."""
        while True:
            if not self._raw:
                self._raw += self._line.read(_PIECE)
                if not self._raw:
                    return b""
            if self._left == 0 and not self._next_frame():
                return b""
            piece = bytes(self._raw[: min(self._left, count)])
            del self._raw[: len(piece)]
            self._left -= len(piece)
            if piece and self._is_output:
                return piece
            if piece:
                self._words.append(piece[-_WORDS:])

    def _next_frame(self) -> bool:
        while len(self._raw) < _HEADER.size:
            more = self._line.read(_PIECE)
            if not more:
                return False
            self._raw += more
        kind, self._left = _HEADER.unpack(self._raw[: _HEADER.size])
        self._is_output = kind == _STDOUT
        del self._raw[: _HEADER.size]
        return True

    def write(self, data: bytes) -> None:
        """See `Stream`; a program that takes nothing for a minute is an error."""
        self._line.write(data)

    def is_alive(self) -> bool:
        """See `Stream`: a container that ends while a program starts in it leaves the line open."""
        from docker.errors import NotFound

        with explained("a program in a helper"):
            try:
                return self._host.client.api.exec_inspect(self._id)["ExitCode"] is None
            except NotFound:
                return False

    def end(self) -> None:
        """See `Stream`."""
        self._line.end()

    def close(self) -> None:
        """See `Stream`."""
        self._line.end()
        response = getattr(self._held, "_response", None)
        if response is not None:  # first: it flushes what it reads from
            response.close()
        self._held.close()

    def last_words(self) -> str:
        """See `Stream`."""
        return b"".join(self._words).decode("utf-8", "replace")


class _SocketLine:
    """A socket, with TLS or without."""

    def __init__(self, line: socket.socket) -> None:
        line.settimeout(_SEND_S)
        self._socket = line
        # One thread reads, others write: that is not for two at once with TLS.
        self._lock = threading.Lock() if isinstance(line, ssl.SSLSocket) else nullcontext()
        self._poller = select.poll()
        self._poller.register(line.fileno(), select.POLLIN)

    def read(self, count: int) -> bytes:
        if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            self._poller.poll()
        with self._lock:
            return self._socket.recv(count)

    def write(self, data: bytes) -> None:
        with self._lock:
            self._socket.sendall(data)

    def end(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _SshLine:
    """Docker's own ssh program."""

    def __init__(self, line: Any) -> None:
        self._program = line.proc

    def read(self, count: int) -> bytes:
        found: bytes = self._program.stdout.read1(count)
        return found

    def write(self, data: bytes) -> None:
        self._program.stdin.write(data)
        self._program.stdin.flush()

    def end(self) -> None:
        self._program.terminate()


def _line(held: Any) -> "_SocketLine | _SshLine":
    """Return what is behind the socket that the docker package gives out, which is of another kind for each scheme."""
    if hasattr(held, "proc"):
        return _SshLine(held)
    return _SocketLine(getattr(held, "_sock", held))
