"""The server over HTTP: whom it lets in, how much, and how it ends; over a service that is not real."""

import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from helpers.http_app import Served, parse, served, wait_until
from helpers.issuer import Issuer
from helpers.mcp import FakeService
from helpers.messages import INITIALIZE, JSON, META, MODERN
from sandpoint.errors import StoreUnavailableError

pytestmark = pytest.mark.anyio

WRITER = "writer-0123456789abcdef"
OTHER = "another-0123456789abcdef"
READER = "reader-0123456789abcdef"
TOKENS = f"""
# who may come in
{WRITER} ann
{OTHER} bob write
{READER} eve read
"""


def write(path: str, content: str) -> None:
    Path(path).write_text(content)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def tokens_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
async def server(service: FakeService) -> AsyncIterator[Served]:
    async with served(service) as server:
        yield server


@pytest.fixture
async def guarded(service: FakeService, tokens_file: str) -> AsyncIterator[Served]:
    async with served(service, tokens_file=tokens_file) as server:
        yield server


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_both_revisions_are_served(server: Served, service: FakeService, mode: Any) -> None:
    async with Client(server.url, mode=mode) as client:
        assert (await client.call_tool("list_backups", {})).structured_content == {"count": 0, "backups": []}
    assert [name for name, _ in service.calls] == ["list"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_with_a_token_is_served(guarded: Served, mode: Any) -> None:
    import httpx2

    async with httpx2.AsyncClient(headers=bearer(WRITER)) as http:
        transport = streamable_http_client(guarded.url, http_client=http)
        async with Client(transport, mode=mode) as client:
            assert (await client.call_tool("delete_backup", {"backup_id": "i"})).structured_content is not None


# -- hosts and origins --


OTHER_HOSTS = (
    "evil.example.com",
    "evil.example.com:{port}",
    "localhost.evil.example.com",
    "evillocalhost",
    "127.0.0.1.evil.example.com",
    "127.0.0.2.nip.io",
    "localhost@evil.example.com",
    "evil.example.com#localhost",
    "[::1].evil.example.com",
    "[::1%25evil]",
    "[fe80::1]",
    "[evil]",
    "::1",
    "192.0.2.1",
    "0x7f.1",
    "localhost:99999",
    "localhost:",
    "*",
    "",
)


async def test_other_hosts_are_refused(server: Served, service: FakeService) -> None:
    for path in ("/mcp", "/", "/nothing"):
        for host in OTHER_HOSTS:
            headers = JSON | MODERN | {"Host": host.format(port=server.port)}
            answer = await server.request("POST", path, headers, INITIALIZE)
            assert answer.status in {400, 421}, (host, path, answer)
    assert service.calls == []


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.:80", "127.0.0.1", "[::1]:{port}", "[0:0::1]", "app.localhost"]
)
async def test_this_machine_has_many_names(server: Served, host: str) -> None:
    answer = await server.request("POST", "/mcp", JSON | {"Host": host.format(port=server.port)}, INITIALIZE)
    assert answer.status == 200, answer


async def test_two_hosts_are_refused(server: Served) -> None:
    headers = [*JSON.items(), ("Host", "localhost"), ("Host", "evil.example.com")]
    assert (await server.request("POST", "/mcp", headers, INITIALIZE)).status == 400


OTHER_ORIGINS = (
    "null",
    "",
    "http://evil.example.com",
    "http://localhost:1",
    "http://localhost.evil.example.com:{port}",
    "http://127.0.0.1:{port}.evil.example.com",
    "http://user@localhost:{port}",
    "http://localhost:{port}/path",
    "file://",
    "chrome-extension://abc",
    "http://[::1]",
)


async def test_pages_of_other_origins_are_refused(server: Served) -> None:
    for method in ("POST", "GET", "OPTIONS", "DELETE"):
        for origin in OTHER_ORIGINS:
            headers = JSON | {"Origin": origin.format(port=server.port), "Host": f"localhost:{server.port}"}
            answer = await server.request(method, "/mcp", headers, INITIALIZE)
            assert answer.status == 403, (method, origin, answer)
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["http://localhost:{port}", "http://127.0.0.1:{port}", "http://[::1]:{port}"])
async def test_pages_of_the_server_itself_may_call(server: Served, origin: str) -> None:
    headers = JSON | {"Origin": origin.format(port=server.port), "Host": f"localhost:{server.port}"}
    assert (await server.request("POST", "/mcp", headers, INITIALIZE)).status == 200


async def test_a_named_origin_may_call_and_read_the_answer(service: FakeService) -> None:
    async with served(service, allowed_origins="https://tools.example.com") as server:
        asked = {
            "Origin": "https://tools.example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, mcp-session-id",
        }
        preflight = await server.request("OPTIONS", "/mcp", asked)
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, asked["Origin"])
        answer = await server.request("POST", "/mcp", JSON | {"Origin": asked["Origin"]}, INITIALIZE)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, asked["Origin"])
        assert (await server.request("POST", "/mcp", JSON | {"Origin": "https://x.org"}, INITIALIZE)).status == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_hosts_are_checked_on_every_address(service: FakeService, tokens_file: str, host: str) -> None:
    async with served(service, host=host, tokens_file=tokens_file, allowed_hosts="box.example.com:8484") as server:
        headers = JSON | bearer(WRITER)
        statuses = {
            name: (await server.request("POST", "/mcp", headers | {"Host": name}, INITIALIZE)).status
            for name in ("evil.example.com", "box.example.com", "box.example.com:8484", "192.0.2.7", "localhost")
        }
    assert statuses == {
        "evil.example.com": 421,
        "box.example.com": 421,
        "box.example.com:8484": 200,
        "192.0.2.7": 421,
        "localhost": 200,
    }


async def test_an_address_of_ours_that_a_request_came_in_on_is_a_host(service: FakeService, tokens_file: str) -> None:
    async with served(service, host="0.0.0.0", tokens_file=tokens_file) as server:
        # Linux answers on all of 127/8.
        answers = b""
        async with await anyio.connect_tcp("127.0.0.9", server.port) as stream:
            await stream.send(b"GET /mcp HTTP/1.1\r\nHost: 127.0.0.9\r\nConnection: close\r\n\r\n")
            answers += await stream.receive()
    assert parse(answers).status == 401


# -- tokens --


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": WRITER},
        {"Authorization": f"Basic {WRITER}"},
        {"Authorization": f"Bearer {WRITER[:-1]}"},
        {"Authorization": f"Bearer {WRITER}x"},
        {"Authorization": f"Bearer {WRITER} {WRITER}"},
        {"Authorization": f"Bearer {WRITER}, Bearer {OTHER}"},
        {"Authorization": "Bearer " + "x" * 20_000},
        {"Authorization": "Bearer #"},
        {"Cookie": f"access_token={WRITER}"},
    ],
)
async def test_without_a_good_token_nobody_comes_in(
    guarded: Served, service: FakeService, given: dict[str, str]
) -> None:
    for method in ("POST", "GET", "DELETE"):
        answer = await guarded.request(method, "/mcp", JSON | given, INITIALIZE)
        assert answer.status == 401, answer
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert "resource_metadata" not in answer.headers["www-authenticate"]
    assert service.calls == []


async def test_two_tokens_are_refused(guarded: Served) -> None:
    headers = [*JSON.items(), *bearer(WRITER).items(), *bearer(OTHER).items()]
    assert (await guarded.request("POST", "/mcp", headers, INITIALIZE)).status == 401


@pytest.mark.parametrize("query", [f"access_token={WRITER}", f"token={WRITER}", f"a=1&Access_Token={WRITER}", "token"])
async def test_a_token_in_the_url_is_refused(guarded: Served, caplog: pytest.LogCaptureFixture, query: str) -> None:
    caplog.set_level(logging.DEBUG)
    for headers in (JSON, JSON | bearer(WRITER)):
        answer = await guarded.request("POST", f"/mcp?{query}", headers, INITIALIZE)
        assert answer.status == 400, answer
    assert WRITER not in caplog.text


async def test_a_reader_may_list_and_nothing_else(guarded: Served, service: FakeService) -> None:
    assert (await guarded.call("list_backups", bearer(READER))).status == 200
    for tool, arguments in (
        ("create_backup", {"dir": "/work"}),
        ("delete_backup", {"backup_id": "i"}),
        ("restore_backup", {"backup_id": "i", "dry_run": True}),
        ("no such tool", {}),
    ):
        answer = await guarded.call(tool, bearer(READER), **arguments)
        assert answer.status == 403, answer
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
        assert 'scope="sandpoint:read sandpoint:write"' in answer.headers["www-authenticate"]
    assert [name for name, _ in service.calls] == ["list"]


async def test_what_a_reader_hides_in_a_request_is_refused_where_it_is_called(
    guarded: Served, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deceived(*_: object) -> bool:
        return True

    monkeypatch.setattr("sandpoint.mcp_server.access.ScopeGuard._is_allowed", deceived)
    result = (await guarded.call("delete_backup", bearer(READER), backup_id="i")).json["result"]
    assert result["isError"] is True
    assert result["content"][0]["text"].startswith("ACCESS_DENIED: delete_backup ")
    assert result["_meta"]["sandpoint/code"] == "ACCESS_DENIED"
    assert service.calls == []


async def test_a_session_is_of_the_token_that_opened_it(guarded: Served, service: FakeService) -> None:
    session = await guarded.open_session(bearer(WRITER))
    headers = JSON | {"Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-11-25"}
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "list_backups", "arguments": {}}}
    for token, status in ((OTHER, 404), (READER, 404)):
        for method in ("POST", "GET", "DELETE"):
            answer = await guarded.request(method, "/mcp", headers | bearer(token), call)
            assert answer.status == status, answer
    assert (await guarded.request("POST", "/mcp", headers, call)).status == 401
    assert service.calls == []
    assert (await guarded.request("POST", "/mcp", headers | bearer(WRITER), call)).status == 200
    assert [name for name, _ in service.calls] == ["list"]


async def test_tokens_are_read_again_when_their_file_changes(guarded: Served, tokens_file: str) -> None:
    assert (await guarded.call("list_backups", bearer(OTHER))).status == 200
    write(tokens_file, f"{WRITER}\n")
    assert (await guarded.call("list_backups", bearer(OTHER))).status == 401
    assert (await guarded.call("list_backups", bearer(WRITER))).status == 200
    os.unlink(tokens_file)
    assert (await guarded.call("list_backups", bearer(WRITER))).status == 401
    write(tokens_file, f"{OTHER}\n")
    assert (await guarded.call("list_backups", bearer(OTHER))).status == 200


# -- OAuth --


async def test_with_an_issuer_clients_are_told_where_to_get_a_token(service: FakeService) -> None:
    url = "https://backups.example.com/mcp"
    with Issuer() as issuer:
        issuer.add_key()
        async with served(service, issuer=issuer.url, url=url) as server:
            refused = await server.request("POST", "/mcp", JSON, INITIALIZE)
            assert refused.status == 401
            metadata_url = "https://backups.example.com/.well-known/oauth-protected-resource/mcp"
            assert f'resource_metadata="{metadata_url}"' in refused.headers["www-authenticate"]
            assert "error=" not in refused.headers["www-authenticate"]
            for path in ("", "/mcp"):
                told = await server.request("GET", f"/.well-known/oauth-protected-resource{path}")
                assert told.json == {
                    "resource": url,
                    "authorization_servers": [issuer.url],
                    "scopes_supported": ["sandpoint:read", "sandpoint:write"],
                    "bearer_methods_supported": ["header"],
                    "resource_name": "Sandpoint",
                }
            good = await server.call("list_backups", bearer(issuer.token(url)) | {"Host": "backups.example.com"})
            assert good.status == 200
            none = await server.call("list_backups", bearer(issuer.token(url, scope="other")))
            assert (none.status, none.json["error"]) == (403, "insufficient_scope")
            wrong = await server.call("list_backups", bearer(issuer.token("https://other.example.com")))
            assert wrong.status == 401
            assert 'error="invalid_token"' in wrong.headers["www-authenticate"]


async def test_an_issuer_that_is_down_is_no_fault_of_the_client(service: FakeService) -> None:
    with Issuer() as issuer:
        issuer.add_key()
        issuer.is_down = True
        async with served(service, issuer=issuer.url) as server:
            answer = await server.call("list_backups", bearer(issuer.token(server.url)))
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")


async def test_without_an_issuer_there_are_no_metadata(guarded: Served) -> None:
    assert (await guarded.request("GET", "/.well-known/oauth-protected-resource")).status == 404


# -- limits --


@pytest.mark.parametrize("length", ["1048577", "99999999999999999999", "-1", "abc", "+5"])
async def test_a_body_that_is_announced_as_too_long_is_refused(server: Served, length: str) -> None:
    answer = await server.request("POST", "/mcp", JSON | {"Content-Length": length})
    assert answer.status in {400, 413}


async def test_a_body_without_a_length_is_refused_where_it_gets_too_long(service: FakeService) -> None:
    async with served(service, max_body=2000) as server:
        headers = JSON | {"Transfer-Encoding": "chunked"}
        small = json.dumps(INITIALIZE).encode()
        ended = b"%x\r\n%s\r\n0\r\n\r\n" % (len(small), small)
        assert (await server.request("POST", "/mcp", headers, ended)).status == 200
        endless = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        assert (await server.request("POST", "/mcp", headers, endless * 3)).status == 413


@pytest.mark.parametrize("sent", [b"", b"POST /mcp HTTP/1.1\r\nHost: local"])
async def test_who_does_not_say_what_it_wants_is_sent_away(service: FakeService, sent: bytes) -> None:
    async with served(service, receive=0.2) as server:
        assert await server.send(sent) == b""


async def test_a_body_that_does_not_come_is_not_waited_for(service: FakeService) -> None:
    async with served(service, receive=0.2) as server:
        answer = await server.request("POST", "/mcp", JSON | {"Content-Length": "100"}, b"{")
        assert answer.status == 408


async def test_a_second_head_that_does_not_come_is_not_waited_for(service: FakeService) -> None:
    async with served(service, receive=0.3) as server:
        first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        received = await server.send(first + b"GET /healthz HTTP/1.1\r\nHost: loc")
        assert received.count(b"HTTP/1.1 200") == 1


async def test_there_are_no_more_sessions_than_may_be(service: FakeService) -> None:
    async with served(service, sessions=3) as server:
        sessions = [await server.open_session() for _ in range(3)]
        assert (await server.request("POST", headers=JSON, body=INITIALIZE)).status == 503
        headers = {"Mcp-Session-Id": sessions[0], "MCP-Protocol-Version": "2025-11-25"}
        assert (await server.request("DELETE", headers=headers)).status == 200
        await server.open_session()


async def test_a_session_that_nobody_uses_is_closed(service: FakeService) -> None:
    async with served(service, sessions=1, session_idle=0.2) as server:
        await server.open_session()

        statuses = {503}
        with anyio.fail_after(30):
            while 200 not in statuses:
                statuses.add((await server.request("POST", headers=JSON, body=INITIALIZE)).status)


async def test_there_are_no_more_connections_than_may_be(service: FakeService) -> None:
    async with served(service, connections=2) as server, await anyio.connect_tcp(server.host, server.port) as first:
        await first.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await first.receive()
        assert (await server.request("GET", "/healthz")).status == 503


async def test_what_is_over_the_operations_that_may_run_waits_and_is_told_to_come_again() -> None:
    service = FakeService(hang=True)
    async with served(service, operations=1, queue=0.2) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.call("create_backup", dir="/work"))
        await service.started.wait()
        service.hang = False
        result = (await server.call("create_backup", dir="/work")).json["result"]
        assert result["_meta"]["sandpoint/code"] == "SERVER_BUSY"
        assert result["content"][0]["text"].startswith("SERVER_BUSY: 1 operations of other clients were running")
        listed = (await server.call("list_backups")).json["result"]
        assert listed["structuredContent"] == {"count": 0, "backups": []}, "listing does not wait for what is long"
        tasks.cancel_scope.cancel()
    assert [name for name, _ in service.calls] == ["create", "list"]


# -- paths and requests --


@pytest.mark.parametrize(
    "path",
    [
        "/../mcp",
        "/%2e%2e/etc/passwd",
        "/mcp/../healthz",
        "//mcp",
        "/mcp%00",
        "/healthz/../mcp",
        "/.well-known/../mcp",
        "/MCP",
        "http://evil.example.com/mcp",
    ],
)
async def test_there_are_no_other_paths(server: Served, service: FakeService, path: str) -> None:
    answer = await server.request("POST", path, JSON, INITIALIZE)
    assert answer.status in {404, 405, 400}, answer
    assert b"passwd" not in answer.body
    assert service.calls == []


async def test_a_request_keeps_the_id_it_came_with(server: Served) -> None:
    answer = await server.request("GET", "/healthz", {"X-Request-Id": "abc-123_4.5"})
    assert answer.headers["x-request-id"] == "abc-123_4.5"


@pytest.mark.parametrize("given", ["a b", "x" * 65, "é", '{"a":1}', "a\tb", "", "<script>"])
async def test_an_id_that_is_none_is_replaced(server: Served, given: str) -> None:
    answer = await server.request("GET", "/healthz", {"X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32
    assert given not in answer.headers["x-request-id"] or not given


async def test_a_call_is_logged_with_its_ids_and_without_its_arguments(
    guarded: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sandpoint")
    headers = bearer(WRITER) | {"X-Request-Id": "r1"}
    await guarded.call("create_backup", headers, dir="/work", description="the password is hunter2")
    (record,) = [record for record in caplog.records if record.getMessage() == "call"]
    details: dict[str, Any] = vars(record)["details"]
    assert details["code"] == "OK"
    assert "hunter2" not in caplog.text
    assert WRITER not in caplog.text


async def test_health_tells_nothing_but_itself_to_anybody(service: FakeService, tokens_file: str) -> None:
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1
        raise StoreUnavailableError("the store in /secret/place cannot be used")

    async with served(service, tokens_file=tokens_file, check=check) as server:
        for _ in range(3):
            answer = await server.request("GET", "/healthz", {"Host": "10.0.0.1:1", "Origin": "http://x.org"})
            assert (answer.status, answer.json) == (503, {"status": "unavailable"})
        assert asked == 1
    async with served(service, tokens_file=tokens_file) as server:
        well = await server.request("GET", "/healthz")
        assert (well.status, well.json) == (200, {"status": "ok"})


# -- the end --


async def test_what_runs_is_waited_for_and_nothing_new_begins() -> None:
    service = FakeService(hang=True)
    answers = []
    async with served(service) as server, anyio.create_task_group() as tasks:

        async def call() -> None:
            answers.append(await server.call("create_backup", dir="/work"))

        tasks.start_soon(call)
        await service.started.wait()
        async with anyio.create_task_group() as draining:
            draining.start_soon(server.app.drain)
            await anyio.sleep(0.05)
            refused = (await server.call("list_backups")).json["result"]
            assert refused["_meta"]["sandpoint/code"] == "SERVER_BUSY"
            assert "about to stop" in refused["content"][0]["text"]
            health = await server.request("GET", "/healthz")
            assert (health.status, health.json) == (503, {"status": "stopping"})
            assert not service.cancelled.is_set()
            assert draining.cancel_scope.cancel_called is False
            tasks.cancel_scope.cancel()  # the client goes away: its operation ends
        assert service.cancelled.is_set()


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_open_streams_do_not_hold_the_end_up(service: FakeService, revision: str) -> None:
    async with served(service) as server:
        stream = await anyio.connect_tcp(server.host, server.port)
        if revision == "2025-11-25":
            session = await server.open_session()
            head = f"GET /mcp HTTP/1.1\r\nMcp-Session-Id: {session}\r\nMCP-Protocol-Version: {revision}\r\n"
            body = b""
        else:
            params = {"_meta": META, "notifications": {"toolsListChanged": True}}
            message = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
            body = json.dumps(message).encode()
            head = (
                f"POST /mcp HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                f"MCP-Protocol-Version: {revision}\r\nMcp-Method: subscriptions/listen\r\n"
            )
        accept = "Host: localhost\r\nAccept: application/json, text/event-stream\r\n\r\n"
        await stream.send(f"{head}{accept}".encode() + body)
        assert b"200 OK" in await stream.receive()
        with anyio.fail_after(30):
            await server.app.drain()
        server.app.end()
        received = b""
        with anyio.fail_after(30):
            while not received.endswith(b"0\r\n\r\n"):
                received += await stream.receive()
        await stream.aclose()


async def test_a_request_that_is_ended_is_told_to_come_again() -> None:
    service = FakeService(hang=True)
    answers = []
    async with served(service) as server, anyio.create_task_group() as tasks:

        async def call() -> None:
            answers.append(await server.call("list_backups"))

        tasks.start_soon(call)
        await service.started.wait()
        server.app.end()
    assert (answers[0].status, answers[0].headers["retry-after"]) == (503, "5")
    assert service.cancelled.is_set()


async def test_a_signal_ends_the_server(service: FakeService) -> None:
    async with served(service) as server:
        signal.raise_signal(signal.SIGTERM)

        def is_gone() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((server.host, server.port)) != 0

        await wait_until(is_gone)
