"""Clients that others wrote: Node programs below `tests/clients`, and the server that they speak to."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from helpers.site import wait_until

CLIENTS = Path(__file__).parents[1] / "clients"
MODULES = CLIENTS / "node_modules"

Revision = Literal["2025-11-25", "2026-07-28"]
YES: Mapping[str, Any] = {"action": "accept", "content": {}}

DRIVERS: dict[Revision, str] = {"2025-11-25": "sdk.mjs", "2026-07-28": "client.mjs"}


def node() -> str:
    """Return the Node that the clients run on."""
    path = MODULES / ".bin" / "node"
    assert path.exists(), f"{path} is missing: `make pytest` installs the clients of the tests"
    return str(path)


def run_node(
    program: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of `node_modules` to its end."""
    return subprocess.run(
        [node(), str(MODULES / program), *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass(frozen=True)
class Sandpoint:
    """How to start a server of the code under test."""

    cwd: Path
    store: Path
    state: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """Return the program's path."""
        return str(Path(sys.executable).with_name("sandpoint"))

    @property
    def environment(self) -> dict[str, str]:
        """Return what the server needs to be told, beside what every program has."""
        own = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        return {**own, "SANDPOINT_STORE": self.store.as_uri(), "SANDPOINT_STATE_DIR": str(self.state), **self.env}

    @property
    def stdio(self) -> dict[str, Any]:
        """Return what a client needs to start it, by the names that all of them use."""
        return {"command": self.command, "args": ["serve"], "cwd": str(self.cwd), "env": self.environment}

    @contextmanager
    def over_http(self) -> Iterator[str]:
        """Run it as an HTTP server for the time of a block; yield its URL."""
        log = self.state.with_name("http.log")
        with (
            log.open("wb") as stderr,
            subprocess.Popen(
                [self.command, "serve", "--transport", "http", "--port", "0"],
                cwd=self.cwd,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            ) as process,
        ):
            try:
                wait_until(lambda: _urls(log) or process.poll() is not None)
                assert process.poll() is None, log.read_text()
                yield _urls(log)[0]
                process.terminate()
                assert process.wait(60) == 0, log.read_text()
            finally:
                process.kill()


def _urls(log: Path) -> list[str]:
    return re.findall(r"http://127\.0\.0\.1:\d+/mcp", log.read_text())


@dataclass(frozen=True)
class Outcome:
    """What came of one request of a client, and what it heard meanwhile."""

    result: Any
    error: dict[str, Any] | None
    questions: list[dict[str, Any]]
    progress: list[dict[str, Any]]


class TypeScriptClient:
    """A client that one of the TypeScript SDKs makes, in a Node process; for the time of a block."""

    def __init__(
        self,
        revision: Revision,
        *,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        stdio: Mapping[str, Any] | None = None,
        capabilities: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect to `url`, with `headers`, or to a server that is started with `stdio`."""
        self.revision = revision
        self._target = json.dumps({"url": url, "headers": headers, "stdio": stdio, "capabilities": capabilities or {}})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [node(), str(CLIENTS / DRIVERS[self.revision]), self._target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        assert status == 0

    def ask(self, method: str, *args: Any, answer: Mapping[str, Any] = YES, cancel_when: Path | None = None) -> Outcome:
        """Call a method of the client.

        A question of the server is answered with `answer`. A tool's call is cancelled as soon as the file
        `cancel_when` exists.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        step = {"method": method, "args": args, "answer": answer, "cancelWhen": cancel_when and str(cancel_when)}
        print(json.dumps(step), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the client ended with status {self._process.wait(5)}"
        return Outcome(**{"result": None, "error": None} | json.loads(line))

    def get(self, method: str, *args: Any) -> Any:
        """Call a method of the client that must succeed, and return its result."""
        outcome = self.ask(method, *args)
        assert outcome.error is None, outcome.error
        return outcome.result

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed, and return its structured result."""
        result = self.get("callTool", {"name": tool, "arguments": arguments})
        assert not result.get("isError"), result
        structured = result["structuredContent"]
        assert isinstance(structured, dict)
        return structured
