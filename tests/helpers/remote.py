"""An engine in a process of its own on this machine, and lines to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandpoint.engine import wire
from sandpoint.engine.relay import Relay
from sandpoint.sandboxes.connection import Connection
from sandpoint.sandboxes.remote_engine import RemoteEngine


class ProgramStream:
    """The input and output of a program here. Implements `Stream`."""

    def __init__(self, argv: list[str]) -> None:
        """Start it."""
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout

    def read(self, count: int) -> bytes:
        """Read from its output."""
        return os.read(self._stdout.fileno(), count)

    def write(self, data: bytes) -> None:
        """Write to its input."""
        self._stdin.write(data)
        self._stdin.flush()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def end(self) -> None:
        """Close its input: an engine ends then."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def close(self) -> None:
        """Wait for its end."""
        self._stdout.close()
        self.process.wait()

    def last_words(self) -> str:
        """What it says elsewhere is seen in the test's own output."""
        return ""


ENGINE = [sys.executable, "-m", "sandpoint.engine.process"]


@contextmanager
def engine_process(
    place: Path, state: Path, *, relay: Relay | None = None, argv: list[str] | None = None
) -> Iterator[tuple[RemoteEngine, ProgramStream]]:
    """Start an engine for a folder that stands for a root; it ends with the block."""
    stream = ProgramStream(argv or ENGINE)
    connection = Connection(stream, "the engine of the test")
    try:
        connection.greet(configure(place, state))
        yield RemoteEngine(connection, relay, str(state / "server")), stream
    finally:
        connection.close()


def configure(place: Path, state: Path) -> wire.Configure:
    """The first line to an engine for a folder."""
    return wire.Configure(
        place=wire.FolderPlace(path=str(place)),
        state=str(state / "engine"),
        shared=None,
        sandbox_id="remote:test",
        cache_bytes=1 << 30,
    )
