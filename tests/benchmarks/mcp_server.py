"""The MCP server as its clients meet it: its start, and what a call costs above the service's own part."""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.rounds import MORE_ROUNDS, Contender, Samples, command, median, merge, settle, take_turns
from benchmarks.rows import CLIENTS
from benchmarks.subject import Subject
from benchmarks.tree import generate
from helpers.http_server import HttpServer
from helpers.load import Load, make_trees, run_load
from helpers.site import wait_until

SANDPOINT = os.path.join(os.path.dirname(sys.executable), "sandpoint")
CALLS = 200
"""Of which the median is one sample."""


class McpBench:
    """The MCP server's part of one run in one workspace."""

    def __init__(self, path: str, runner: asyncio.Runner, options: argparse.Namespace) -> None:
        self.path = path
        self.runner = runner
        self.files: int = options.files
        self.rounds: int = options.rounds
        self.rest: float = options.rest
        self.load_seconds: float = options.load_seconds

    def measure(self) -> Samples:
        """Measure with a store of a few backups of a small tree, and the hook on a large one."""
        os.mkdir(self.path)
        rounds = self.rounds + MORE_ROUNDS
        few = self._subject("few", 100)
        for _ in range(3):
            few.create()
        peaks: list[float] = []
        starts = take_turns(self._starts(few, peaks), rounds, rest=self.rest)
        return merge(starts, {"memory_mcp_start": peaks}, self._calls(few, rounds), self._hook(rounds), self._load())

    def _starts(self, subject: Subject, peaks: list[float]) -> Iterator[Contender]:
        servers: list[StdioServer] = []

        def start() -> None:
            servers.append(StdioServer(subject))
            servers[-1].request("tools/list")

        def end() -> None:
            peaks.append(float(servers[-1].peak_bytes()))
            servers.pop().close()

        yield Contender("mcp_start", run=start, after=end)

    def _calls(self, subject: Subject, rounds: int) -> Samples:
        """Time the same call by the service and by the tool, in turns: the median of many is one sample."""
        samples: Samples = {"mcp_service": [], "mcp_call": []}
        call = {"name": "list_backups", "arguments": {"dir": subject.dir}}
        with StdioServer(subject) as server:
            for number in range(rounds):
                settle(self.rest)
                samples["mcp_service"].append(subject.do(_time_service(subject)))
                samples["mcp_call"].append(median([_time(server, call) for _ in range(CALLS)]))
                print(f"round {number + 1}/{rounds}  mcp_call {samples['mcp_call'][-1] * 1000:.2f} ms")
        return samples

    def _hook(self, rounds: int) -> Samples:
        """Time the hook of Claude Code as a whole process, where the backup before is as the directory is."""
        large = self._subject("large", self.files)
        argv = [SANDPOINT, "hook", "claude-code"]
        event = {
            "session_id": "bench",
            "cwd": large.dir,
            "hook_event_name": "PreToolUse",
            "tool_name": "Bash",
            "tool_input": {"command": "ls"},
        }
        environment = {**large.environment(), "CLAUDE_PROJECT_DIR": large.dir}

        def hook() -> None:
            command(argv, environment, cwd=large.dir, input=json.dumps(event).encode())

        hook()
        before = large.count()
        samples = take_turns([Contender("hook_unchanged", run=hook)], rounds, rest=self.rest)
        if (before, large.count()) != (1, 1):
            raise RuntimeError("the hook took a backup though nothing had changed, or none at first")
        return samples

    def _load(self) -> Samples:
        """Let many clients call one server over HTTP; what fails or stays behind is no figure, but ends the bench.

        It warms up by a load of a third of the time: what it remembers then, it may keep.
        """
        folder = Path(self.path, "load")
        trees = make_trees(folder / "trees", CLIENTS)
        state = folder / "state"
        with HttpServer(folder / "trees", store=folder / "store", state=state) as server:
            warm = self._run_load(server, trees, self.load_seconds / 3)
            _, files, _ = server.usage()
            before, left = float(server.usage()[0]), _files_in(state)
            load = self._run_load(server, trees, self.load_seconds, after=warm)
            wait_until(lambda: server.usage()[1] <= files)
            after = float(server.usage()[0])
            status = server.end()
        if status or _files_in(state) != left:
            raise RuntimeError(f"the server ended with status {status} and left {_files_in(state) - left}")
        print(load.told())
        return {
            "http_slowest_list": [max(load.seconds["list_backups"])],
            "http_lists": [float(len(load.seconds["list_backups"]))],
            "http_creates": [float(len(load.seconds["create_backup"]))],
            "memory_http_before": [before],
            "memory_http": [after],
        }

    def _run_load(
        self, server: HttpServer, trees: Sequence[Path], seconds: float, *, after: Load | None = None
    ) -> Load:
        load = self.runner.run(run_load(server.url, trees, seconds=seconds, after=after))
        if load.errors:
            raise RuntimeError(f"{len(load.errors)} calls failed: {load.errors[0]}")
        return load

    def _subject(self, name: str, files: int) -> Subject:
        folder = os.path.join(self.path, name)
        os.mkdir(folder)
        tree = os.path.join(folder, "tree")
        generate(tree, files)
        return Subject(tree, folder, self.runner)


class StdioServer:
    """`sandpoint serve` on the store of a subject, spoken to line by line: a client that costs next to nothing."""

    def __init__(self, subject: Subject) -> None:
        """Start it, and shake hands as a client of 2025-11-25 does."""
        self._process = subprocess.Popen(
            [SANDPOINT, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **subject.environment(), "SANDPOINT_ALLOWED_DIRS": subject.dir},
        )
        self._requests = 0
        client = {"name": "bench", "version": "1"}
        self.request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client})
        self._send({"method": "notifications/initialized"})

    def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of a request."""
        self._requests += 1
        self._send({"id": self._requests, "method": method, "params": params or {}})
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if answer.get("id") != self._requests or answer.get("result", {"isError": True}).get("isError"):
            raise RuntimeError(f"{method} was answered with {answer}")
        result: dict[str, Any] = answer["result"]
        return result

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self._process.stdin.flush()

    def peak_bytes(self) -> int:
        """Return the most memory that it has held."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it as a client does."""
        self._process.communicate(timeout=30)


def _files_in(state: Path) -> set[str]:
    """Return what operations that have ended should not have left: staged files, places in the queue."""
    return {str(path.relative_to(state)) for kind in ("work", "turns") for path in (state / kind).rglob("*")}


async def _time_service(subject: Subject) -> float:
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        await subject.service.list(dir=subject.dir)
        taken.append(time.perf_counter() - start)
    return median(taken)


def _time(server: StdioServer, call: dict[str, Any]) -> float:
    start = time.perf_counter()
    server.request("tools/call", call)
    return time.perf_counter() - start
