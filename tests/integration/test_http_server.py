"""The real server over HTTP, in processes of its own: on one store with others, under load, stopped, and watched."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from helpers.http_app import wait_until
from helpers.http_server import HttpServer
from helpers.issuer import Issuer
from helpers.load import Wire, make_trees, run_load
from helpers.mcp import code, sandpoint_server, text
from helpers.trees import list_tree

pytestmark = pytest.mark.anyio

TOKEN = "writer-0123456789abcdef"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., HttpServer]]:
    """Start servers of one store and state; keywords are their environment."""
    servers: list[HttpServer] = []

    def started(*arguments: str, **environment: str) -> HttpServer:
        server = HttpServer(
            tmp_path,
            store=tmp_path / "store",
            state=tmp_path / "state",
            arguments=arguments or ("--port", "0"),
            **environment,
        )
        servers.append(server)
        return server

    yield started
    for server in servers:
        server.__exit__()


def backups(tmp_path: Path) -> list[str]:
    """Return what is in the store: the names of backups, and marks of those that are being written."""
    store = tmp_path / "store"
    return sorted(path.name for part in ("backups", "incoming") for path in (store / part).glob("*"))


async def test_several_servers_work_on_one_store(start: Callable[..., HttpServer], tmp_path: Path) -> None:
    first, second = start(), start()
    trees = make_trees(tmp_path / "trees", 6)
    urls = [first.url, second.url]
    stdio = sandpoint_server(tmp_path, store=tmp_path / "store", state=tmp_path / "state")
    created: dict[Path, list[str]] = {tree: [] for tree in trees}

    async def work(client: Client, tree: Path) -> None:
        states = []
        for turn in range(4):
            (tree / "src" / f"file{turn}.txt").write_text(f"changed in turn {turn}\n" * (turn + 1))
            (tree / f"new{turn}").mkdir()
            states.append(list_tree(tree))
            made = await client.call_tool("create_backup", {"dir": str(tree), "name": f"turn {turn}"})
            assert made.structured_content is not None, text(made)
            created[tree].append(made.structured_content["id"])
        shutil.rmtree(tree / "src")
        for turn in (0, 3, 1):
            arguments = {"backup_id": created[tree][turn], "undo": False}
            restored = await client.call_tool("restore_backup", arguments)
            assert not restored.is_error, text(restored)
            assert list_tree(tree) == states[turn]

    async def connect(number: int, tree: Path) -> None:
        mode: Any = "auto" if number % 2 else "legacy"
        async with Client(stdio_client(stdio) if number % 3 == 2 else urls[number % 3], mode=mode) as client:
            await work(client, tree)

    async with anyio.create_task_group() as tasks:
        for number, tree in enumerate(trees):
            tasks.start_soon(connect, number, tree)

    for url in urls:
        async with Client(url) as client:
            for tree, ids in created.items():
                listed = await client.call_tool("list_backups", {"dir": str(tree)})
                assert listed.structured_content is not None
                assert [each["id"] for each in listed.structured_content["backups"]] == ids[::-1]
    assert backups(tmp_path) == sorted(backup_id for ids in created.values() for backup_id in ids)


async def test_many_clients_at_once_leave_nothing_behind(start: Callable[..., HttpServer], tmp_path: Path) -> None:
    server = start(SANDPOINT_HTTP_TOKEN=TOKEN)
    trees = make_trees(tmp_path / "trees", 20)
    warm = await run_load(server.url, make_trees(tmp_path / "warm", 2), seconds=0.5, token=TOKEN)
    assert warm.errors == []
    await wait_until(lambda: server.usage()[1] <= 10)
    _, files, _ = server.usage()
    load = await run_load(server.url, trees, seconds=5, token=TOKEN)
    assert load.errors == []
    assert min(map(len, load.seconds.values())) > 0
    await wait_until(lambda: server.usage()[1] <= files)
    assert server.end() == 0
    assert [line for line in server.lines if line.get("level") in {"warning", "error"}] == []
    assert list((tmp_path / "state" / "turns").glob("[0-9]*")) == []
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


SLOW = """#!/bin/sh
touch {started}
sleep {seconds}
exec {real} "$@"
"""


@pytest.fixture
def slow(tmp_path: Path) -> Callable[[float], dict[str, str]]:
    """Make the building of layers slow, and return the environment that says so."""

    def make(seconds: float) -> dict[str, str]:
        real = shutil.which("mksquashfs")
        assert real
        program = tmp_path / "bin" / "mksquashfs"
        program.parent.mkdir()
        program.write_text(SLOW.format(started=tmp_path / "started", seconds=seconds, real=real))
        program.chmod(0o755)
        return {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    return make


async def begin_backup(server: HttpServer, tree: Path, results: list[dict[str, Any]]) -> None:
    async with Wire(server.url, "2026-07-28") as wire:
        results.append(await wire.call("create_backup", {"dir": str(tree)}))


async def wait_for_file(path: Path) -> None:
    await wait_until(path.exists)


async def test_at_a_signal_what_runs_is_finished(
    start: Callable[..., HttpServer], tmp_path: Path, slow: Callable[[float], dict[str, str]]
) -> None:
    server = start(**slow(1))
    [tree] = make_trees(tmp_path / "trees", 1)
    results: list[dict[str, Any]] = []
    server.wait_for("^serving$", timeout=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin_backup, server, tree, results)
        await wait_for_file(tmp_path / "started")
        server.process.send_signal(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(server.wait) == 0
    assert backups(tmp_path) == [results[0]["structuredContent"]["id"]]


@pytest.mark.parametrize("how", ["no grace", "second signal"])
async def test_what_may_not_finish_is_undone(
    start: Callable[..., HttpServer], tmp_path: Path, slow: Callable[[float], dict[str, str]], how: str
) -> None:
    server = start(**slow(60), SANDPOINT_HTTP_GRACE="0" if how == "no grace" else "60")
    [tree] = make_trees(tmp_path / "trees", 1)
    results: list[dict[str, Any]] = []
    server.wait_for("^serving$", timeout=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin_backup, server, tree, results)
        await wait_for_file(tmp_path / "started")
        server.process.send_signal(signal.SIGINT)
        if how == "second signal":
            await anyio.to_thread.run_sync(lambda: server.wait_for("^stopping: what runs"))
            server.process.send_signal(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(server.wait) == 0
    assert results[0]["isError"] is True
    assert backups(tmp_path) == []
    assert list((tmp_path / "state" / "turns").glob("[0-9]*")) == []
    assert server.noise == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost.localdomain.invalid"])
def test_beyond_this_machine_it_does_not_listen_without_tokens(start: Callable[..., HttpServer], host: str) -> None:
    server = start("--host", host, "--port", "0")
    assert server.wait() == 3
    assert "[INVALID_BACKUP_CONFIG]" in server.text
    if "invalid" not in host:
        assert "SANDPOINT_HTTP_TOKENS_FILE" in server.text


def test_beyond_this_machine_it_listens_with_tokens(start: Callable[..., HttpServer]) -> None:
    server = start("--host", "0.0.0.0", "--port", "0", SANDPOINT_HTTP_TOKEN=TOKEN)
    assert httpx2.get(server.url).status_code == 401
    assert httpx2.get(server.origin + "/healthz").json() == {"status": "ok"}
    assert server.end() == 0
    assert TOKEN not in server.text


def test_a_port_that_is_taken_is_told(start: Callable[..., HttpServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start("--port", str(taken.getsockname()[1]))
        assert server.wait() == 3
    assert "another program does; end it, or choose another port with --port" in server.text


@pytest.mark.parametrize("host", ["::1", "localhost", "127.0.0.1"])
async def test_it_listens_on_addresses_of_both_kinds(start: Callable[..., HttpServer], host: str) -> None:
    async with Client(start("--host", host, "--port", "0").url) as client:
        assert (await client.call_tool("list_backups", {})).structured_content == {"count": 0, "backups": []}


async def test_it_listens_on_a_unix_socket_of_its_owner(start: Callable[..., HttpServer], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = start("--socket", str(path))
    assert server.url == "http://localhost/mcp"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        Client(streamable_http_client(server.url, http_client=http)) as client,
    ):
        assert (await client.call_tool("list_backups", {})).structured_content == {"count": 0, "backups": []}
    other = start("--socket", str(path))
    assert other.wait() == 3
    assert server.end() == 0
    assert "socket" not in os.listdir(tmp_path)


async def test_a_store_that_cannot_be_used_is_told_by_calls_and_by_health(
    start: Callable[..., HttpServer], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server = start(SANDPOINT_STORE=(tmp_path / "file" / "store").as_uri())
    async with Client(server.url) as client:
        assert code(await client.call_tool("list_backups", {})) == "STORE_UNAVAILABLE"
    health = httpx2.get(server.origin + "/healthz")
    assert (health.status_code, health.json()) == (503, {"status": "unavailable"})


async def test_settings_that_cannot_be_read_are_told_by_calls(start: Callable[..., HttpServer]) -> None:
    async with Client(start(SANDPOINT_CHAIN_LAYERS="many").url) as client:
        assert code(await client.call_tool("list_backups", {})) == "INVALID_BACKUP_CONFIG"


async def test_each_call_is_a_line_of_the_log(start: Callable[..., HttpServer], tmp_path: Path) -> None:
    server = start(SANDPOINT_HTTP_TOKENS_FILE=str(write_tokens(tmp_path)))
    for revision in ("2025-11-25", "2026-07-28"):
        async with Wire(server.url, revision, token=TOKEN) as wire:
            await wire.call("create_backup", {"dir": str(tmp_path / "none"), "description": "hunter2"})
    server.end()
    lines = [line for line in server.lines if line.get("tool") == "create_backup"]
    assert len(lines) == 2
    for line in lines:
        assert {"time", "level", "message", "request_id", "client", "method", "tool", "duration_ms", "code"} <= {*line}
        assert (line["client"], line["code"], line["level"]) == ("ann", "INVALID_BACKUP_CONFIG", "info"), line
    assert [len(line.get("session", "")) for line in lines] == [8, 0]
    assert "hunter2" not in server.text
    assert TOKEN not in server.text
    assert server.noise == []


def write_tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN} ann\n")
    path.chmod(0o600)
    return path


async def test_a_client_with_a_token_of_an_issuer_is_served(start: Callable[..., HttpServer]) -> None:
    with Issuer() as issuer:
        issuer.add_key(kind="EC")
        server = start(SANDPOINT_HTTP_ISSUER=issuer.url, SANDPOINT_LOG_LEVEL="info")
        token = issuer.token(server.url, algorithm="ES256", sub="someone")
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http:
            transport = streamable_http_client(server.url, http_client=http)
            async with Client(transport) as client:
                assert (await client.call_tool("list_backups", {})).structured_content == {"count": 0, "backups": []}
        server.end()
    assert token not in server.text
    assert token.split(".")[1] not in server.text


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def names(self) -> dict[str, tuple[str, str]]:
        """Return the spans' ids and those of their parents, by their names."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found: dict[str, tuple[str, str]] = {}
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                assert 'string_value: "sandpoint"' in str(resource.resource)
                for scope in resource.scope_spans:
                    found |= {span.name: (span.span_id.hex(), span.parent_span_id.hex()) for span in scope.spans}
        return found


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_spans_are_sent_to_the_collector_that_is_named(
    start: Callable[..., HttpServer], tmp_path: Path, transport: str
) -> None:
    collector = Collector()
    [tree] = make_trees(tmp_path / "trees", 1)
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    if transport == "http":
        server = start(**asked)
        async with Client(server.url) as client:
            assert not (await client.call_tool("create_backup", {"dir": str(tree)})).is_error
        assert server.end() == 0
    else:
        parameters = sandpoint_server(tmp_path, store=tmp_path / "store", state=tmp_path / "state", **asked)
        async with Client(stdio_client(parameters)) as client:
            assert not (await client.call_tool("create_backup", {"dir": str(tree)})).is_error
    collector.server.shutdown()
    collector.server.server_close()
    spans = collector.names()
    assert spans["create"][1] == spans["tools/call create_backup"][0]
    phases = [name for name, (_, parent) in spans.items() if parent == spans["create"][0]]
    assert phases, spans


def test_stdio_loads_nothing_that_only_http_needs() -> None:
    program = (
        "import sys, sandpoint.mcp_server.stdio\n"
        "wrong = {'jwt', 'sandpoint.mcp_server.http', 'sandpoint.mcp_server.oauth', 'sandpoint.mcp_server.guards',"
        " 'sandpoint.mcp_server.exporter', 'opentelemetry.sdk'}\n"
        "print(sorted(wrong & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_checks_an_issuers_tokens_is_loaded_only_where_there_is_one() -> None:
    program = (
        "import sys, sandpoint.mcp_server.http, sandpoint.mcp_server.window\n"
        "print(sorted({'jwt', 'urllib3', 'sandpoint.mcp_server.oauth'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_addresses_are_of_http_only(tmp_path: Path) -> None:
    sandpoint = str(Path(sys.executable).with_name("sandpoint"))
    done = subprocess.run([sandpoint, "serve", "--port", "1"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3
    assert "--transport http" in done.stderr
    assert done.stdout == ""
