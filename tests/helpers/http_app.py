"""A server over HTTP in this process, over a service of the test, and requests written by hand."""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from helpers.messages import INITIALIZE, JSON, call_headers, call_message
from sandpoint.mcp_server.http import build_app
from sandpoint.mcp_server.http_settings import HttpSettings
from sandpoint.mcp_server.limits import Gate, GatedServices
from sandpoint.mcp_server.listening import listening
from sandpoint.mcp_server.one_service import OneService
from sandpoint.mcp_server.running import HttpApp, run_app
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.where import Where
from sandpoint.service import BackupService


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What is in the body, or in the last event of a stream."""
        body = self.body
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            body = [line for line in body.splitlines() if line.startswith(b"data: {")][-1].removeprefix(b"data: ")
        return json.loads(body)


@dataclass
class Served:
    app: HttpApp
    url: str
    host: str
    port: int

    async def send(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes the connection."""
        received = b""
        async with await anyio.connect_tcp(self.host, self.port) as stream:
            await stream.send(data)
            with anyio.fail_after(20):
                try:
                    while True:
                        received += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return received

    async def request(
        self,
        method: str = "GET",
        path: str = "/mcp",
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        body: bytes | Mapping[str, Any] = b"",
    ) -> Answer:
        """Send a request, with no headers but those given, a Host and a length."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = [*headers.items()] if isinstance(headers, Mapping) else [*(headers or ())]
        names = {name.lower() for name, _ in given}
        if "host" not in names:
            given.append(("Host", f"{self.host}:{self.port}"))
        if not {"content-length", "transfer-encoding"} & names:
            given.append(("Content-Length", str(len(content))))
        given.append(("Connection", "close"))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given), "", ""]
        return parse(await self.send("\r\n".join(lines).encode("latin-1") + content))

    async def call(self, tool: str, headers: Mapping[str, str] | None = None, **arguments: object) -> Answer:
        """Call a tool by the protocol of 2026."""
        headers = call_headers(tool) | dict(headers or {})
        return await self.request("POST", headers=headers, body=call_message(tool, arguments))

    async def open_session(self, headers: Mapping[str, str] | None = None) -> str:
        """Open a session of the protocol of 2025, and return its id."""
        answer = await self.request("POST", headers=JSON | dict(headers or {}), body=INITIALIZE)
        assert answer.status == 200, answer
        return answer.headers["mcp-session-id"]


def parse(data: bytes) -> Answer:
    """Return the first answer in what a server sent."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        content = b""
        while body:
            size, _, rest = body.partition(b"\r\n")
            content += rest[: int(size, 16)]
            body = rest[int(size, 16) + 2 :]
        body = content
    return Answer(int(first.split()[1]), headers, body)


@asynccontextmanager
async def served(
    service: BackupService, *, check: Callable[[], Any] | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """Serve a service on a port that is free, for a block."""
    http = HttpSettings(**{"port": 0, "grace": 5} | settings)
    with listening(http) as listening_on:
        gate = Gate(http.operations, http.queue)
        server = build_lazy_server(GatedServices(OneService(service), gate), where=Where())
        app = build_app(server, http, listening_on, gate, check=check)
        host, port = listening_on.sockets[0].getsockname()[:2]
        ready = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: run_app(app, listening_on, http, is_ready=ready.set))
            await ready.wait()
            yield Served(app, listening_on.url, host, port)
            tasks.cancel_scope.cancel()


async def wait_until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await anyio.sleep(0.01)
