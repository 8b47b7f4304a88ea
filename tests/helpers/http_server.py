"""A real server over HTTP, in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

Line = dict[str, Any]


class HttpServer:
    """`sandpoint serve --transport http`, of the code under test, on a port that is free; stopped at the block's end.

    `lines` are what it logged so far, each a JSON object; `noise` is what else it wrote to stderr.
    """

    def __init__(
        self, cwd: Path, *, store: Path, state: Path, arguments: Sequence[str] = ("--port", "0"), **environment: str
    ) -> None:
        under_test = {name: os.environ[name] for name in ("PYTHONPATH", "PATH", "HOME") if name in os.environ}
        self.lines: list[Line] = []
        self.noise: list[str] = []
        self._told = threading.Condition()
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("sandpoint")), "serve", "--transport", "http", *arguments],
            cwd=cwd,
            env=under_test | {"SANDPOINT_STORE": store.as_uri(), "SANDPOINT_STATE_DIR": str(state)} | environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for text in self.process.stderr:
            with self._told:
                if text.startswith("{"):
                    self.lines.append(json.loads(text))
                else:
                    self.noise.append(text)
                self._told.notify_all()
        with self._told:
            self.lines.append({"message": "ended"})
            self._told.notify_all()

    def wait_for(self, message: str, *, timeout: float = 60, **fields: object) -> Line:
        """Wait until a line was logged, and return it."""

        def found() -> Line | None:
            return next(
                (
                    line
                    for line in self.lines
                    if re.search(message, line["message"])
                    and all(line.get(name) == value for name, value in fields.items())
                ),
                None,
            )

        with self._told:
            self._told.wait_for(lambda: found() or self.lines[-1:] == [{"message": "ended"}], timeout)
            line = found()
        assert line is not None, (message, fields, self.lines, self.noise)
        return line

    def logged(self, predicate: Callable[[Line], bool]) -> list[Line]:
        """Return the lines of a kind."""
        with self._told:
            return [line for line in self.lines if predicate(line)]

    @property
    def url(self) -> str:
        """Where it answers, once it does."""
        return str(self.wait_for("^serving$", timeout=60)["url"])

    @property
    def origin(self) -> str:
        """The URL without its path."""
        return self.url.removesuffix("/mcp")

    @property
    def text(self) -> str:
        """All that it wrote."""
        return "\n".join([*map(json.dumps, self.lines), *self.noise])

    def usage(self) -> tuple[int, int, int]:
        """Return its resident bytes, open files and threads."""
        process = psutil.Process(self.process.pid)
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    def end(self, how: signal.Signals = signal.SIGTERM, *, timeout: float = 60) -> int:
        """Stop it, and return its exit status."""
        self.process.send_signal(how)
        return self.wait(timeout=timeout)

    def wait(self, *, timeout: float = 60) -> int:
        """Wait for its end, and return its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stderr
        self.process.stderr.close()
