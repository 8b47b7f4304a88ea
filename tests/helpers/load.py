"""Many clients at once on one server: how long each call took, and what failed.

The clients write their requests by hand, so that it is the server that is measured, and not a client's library.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from helpers.messages import CLIENT, JSON, META, REVISION, call_headers

Revision = Literal["2025-11-25", "2026-07-28"]

_MAX_LINE = 1 << 16


@dataclass
class Load:
    """What came of it. Times are in seconds, by tool."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    created: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By directory, the ids of its backups."""

    def told(self) -> str:
        """Return a line for each tool."""
        return "\n".join(
            f"{tool}: {len(each)} calls, median {median(each) * 1000:.0f} ms, "
            f"99% {quantiles(each, n=100)[-1] * 1000:.0f} ms, slowest {max(each) * 1000:.0f} ms"
            for tool, each in self.seconds.items()
            if len(each) > 1
        )


class Wire:
    """One connection of one client, in one revision of the protocol."""

    def __init__(self, url: str, revision: Revision, *, token: str | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._revision = revision
        self._headers = {"Host": parts.netloc} | JSON | ({"Authorization": f"Bearer {token}"} if token else {})
        self._number = 0
        self._stream: SocketStream
        self._input: BufferedByteReceiveStream

    async def __aenter__(self) -> Self:
        """Connect; with the protocol of 2025 also open a session."""
        self._stream = await anyio.connect_tcp(self._host, self._port)
        self._input = BufferedByteReceiveStream(self._stream)
        if self._revision == "2025-11-25":
            params = {"protocolVersion": self._revision, "capabilities": {}, "clientInfo": CLIENT}
            headers, _ = await self.send("initialize", params)
            self._headers |= {"Mcp-Session-Id": headers["mcp-session-id"], "MCP-Protocol-Version": self._revision}
            await self.send("notifications/initialized", {}, is_request=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the session and the connection."""
        if error == (None, None, None) and "Mcp-Session-Id" in self._headers:
            await self.exchange("DELETE", b"", {})
        await self._stream.aclose()

    async def call(self, tool: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Call a tool, and return its result."""
        params: dict[str, object] = {"name": tool, "arguments": dict(arguments)}
        headers = {}
        if self._revision == REVISION:
            headers = call_headers(tool)
            params["_meta"] = META
        _, message = await self.send("tools/call", params, headers)
        if "result" not in message:
            return {"isError": True, "content": [{"text": json.dumps(message)}]}
        result: dict[str, Any] = message["result"]
        return result

    async def send(
        self,
        method: str,
        params: Mapping[str, object],
        headers: Mapping[str, str] | None = None,
        *,
        is_request: bool = True,
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Send a message, and return the answer's headers and the message in it."""
        message: dict[str, object] = {"jsonrpc": "2.0", "method": method, "params": params}
        if is_request:
            self._number += 1
            message["id"] = self._number
        status, answer_headers, body = await self.exchange("POST", json.dumps(message).encode(), headers or {})
        if answer_headers.get("content-type", "").startswith("text/event-stream"):
            body = [line for line in body.splitlines() if line.startswith(b"data: {")][-1].removeprefix(b"data: ")
        content: dict[str, Any] = json.loads(body) if body else {}
        return answer_headers, content | ({} if status < 400 else {"status": status})

    async def exchange(self, method: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Send a request, and return the status, the headers and the body of the answer."""
        head = {**self._headers, **headers, "Content-Length": str(len(body))}
        lines = [f"{method} {self._path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        await self._stream.send("\r\n".join(lines).encode() + body)
        first, *rest = (await self._input.receive_until(b"\r\n\r\n", _MAX_LINE)).decode().split("\r\n")
        answer = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        if answer.get("transfer-encoding") == "chunked":
            content = b""
            while size := int(await self._input.receive_until(b"\r\n", _MAX_LINE), 16):
                content += (await self._input.receive_exactly(size + 2))[:-2]
            await self._input.receive_exactly(2)
        else:
            content = await self._input.receive_exactly(int(answer.get("content-length", "0")))
        return int(first.split()[1]), answer, content


def make_trees(base: Path, number: int, *, files: int = 10) -> list[Path]:
    """Make small trees."""
    trees = [base / f"tree{each}" for each in range(number)]
    for tree in trees:
        (tree / "src").mkdir(parents=True)
        for each in range(files):
            (tree / "src" / f"file{each}.txt").write_text(f"{tree} {each}\n" * 20)
    return trees


async def run_load(
    url: str, trees: Sequence[Path], *, seconds: float, token: str | None = None, after: Load | None = None
) -> Load:
    """Let one client for each tree back it up, once in four calls, and else list, as fast as the server lets it.

    Half of the clients speak the protocol of 2025, half that of 2026. `after` is what a load of these trees before
    has made.
    """
    load = Load() if after is None else Load(created=after.created)
    end = time.monotonic() + seconds
    async with anyio.create_task_group() as tasks:
        for number, tree in enumerate(trees):
            wire = Wire(url, "2026-07-28" if number % 2 else "2025-11-25", token=token)
            tasks.start_soon(_work, load, wire, tree, number, end)
    return load


async def _work(load: Load, wire: Wire, tree: Path, number: int, end: float) -> None:
    async with wire:
        turn = number  # so that not all do the same at once
        while time.monotonic() < end:
            turn += 1
            if turn % 4 == 0:
                (tree / "src" / "changed.txt").write_text(f"turn {turn}\n")
                made = await _call(load, wire, "create_backup", {"dir": str(tree), "name": f"turn {turn}"})
                load.created[str(tree)] += [made["id"]] if made else []
            elif turn % 2:
                await _list(load, wire, str(tree))
            else:
                await _call(load, wire, "list_backups", {"limit": 5})


async def _list(load: Load, wire: Wire, tree: str) -> None:
    found = await _call(load, wire, "list_backups", {"limit": 5, "dir": tree})
    listed = [each["id"] for each in found.get("backups", ())]
    wanted = load.created[tree][:-6:-1]
    if found and listed != wanted:
        load.errors.append(f"{tree}: listed {listed}, not {wanted}")


async def _call(load: Load, wire: Wire, tool: str, arguments: Mapping[str, object]) -> dict[str, Any]:
    began = time.monotonic()
    result = await wire.call(tool, arguments)
    load.seconds[tool].append(time.monotonic() - began)
    if result.get("isError"):
        load.errors.append(result["content"][0]["text"])
        return {}
    content: dict[str, Any] = result["structuredContent"]
    return content


def main() -> None:
    """Run it against a server: URL, a directory for the trees, seconds, clients."""
    url, base, seconds, clients = sys.argv[1:]
    load = anyio.run(lambda: run_load(url, make_trees(Path(base), int(clients)), seconds=float(seconds)))
    print(load.told())
    print(f"{len(load.errors)} errors", *load.errors[:5], sep="\n")


if __name__ == "__main__":
    main()
