"""The proxy that breaks requests: each fault does what it says, to those requests only that it is meant for."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from helpers.proxy import Fault, Proxy
from helpers.site import wait_until

BODY = bytes(range(256)) * 2000
BAD = (OSError, http.client.HTTPException)


class Echo(BaseHTTPRequestHandler):
    """Answers with the body that it was sent, in chunks if the path says so; GET with one of its own."""

    protocol_version = "HTTP/1.1"
    heard: list[bytes]

    def do_PUT(self) -> None:
        self.answer(self.rfile.read(int(self.headers["content-length"])))

    def do_GET(self) -> None:
        self.answer(BODY)

    def do_HEAD(self) -> None:
        self.answer(BODY)

    def do_DELETE(self) -> None:
        self.heard.append(b"")
        self.send_response(204)
        self.end_headers()

    def answer(self, body: bytes) -> None:
        self.heard.append(body)
        self.send_response(200)
        self.send_header("host-was", self.headers["host"])
        if self.path == "/chunks":
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 50_000):
                part = body[start : start + 50_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Behind(NamedTuple):
    proxy: Proxy
    heard: list[bytes]
    """The bodies that the server has had."""

    opened: ExitStack

    def connect(self, timeout: float = 20, proxy: Proxy | None = None) -> http.client.HTTPConnection:
        url = (proxy or self.proxy).url
        return self.opened.enter_context(
            closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout))
        )


@pytest.fixture
def behind() -> Iterator[Behind]:
    heard: list[bytes] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Echo,), {"heard": heard}))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    host, port = str(server.server_address[0]), int(server.server_address[1])
    with Proxy((host, port)) as proxy, ExitStack() as opened:
        yield Behind(proxy, heard, opened)
    server.shutdown()
    thread.join()
    server.server_close()
    assert [each.name for each in threading.enumerate() if each.name.startswith("proxy")] == []


def ask(
    connection: http.client.HTTPConnection, method: str = "PUT", path: str = "/a", body: bytes | None = BODY
) -> tuple[int, bytes]:
    connection.request(method, path, body=body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def differing_bits(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("path", ["/a", "/chunks"])
def test_requests_on_one_connection_pass_unchanged_and_are_counted(behind: Behind, path: str) -> None:
    connection = behind.connect()
    for number in range(3):
        assert ask(connection, path=f"{path}?X-Amz-Signature=secret&partNumber={number}") == (200, BODY)
        assert ask(connection, "HEAD", path, None) == (200, b"")
        assert ask(connection, "DELETE", path, None) == (204, b"")
        assert ask(connection, "GET", path, None) == (200, BODY)
    seen = behind.proxy.requests
    assert [(each.number, each.method, each.path) for each in seen[:2]] == [(1, "PUT", path), (2, "HEAD", path)]
    assert (seen[0].names, seen[0].length) == (frozenset({"X-Amz-Signature", "partNumber"}), len(BODY))
    assert (len(seen), behind.proxy.connections) == (12, 1)
    assert "secret" not in repr(seen)


def test_the_host_that_the_client_names_reaches_the_server(behind: Behind) -> None:
    connection = behind.connect()
    connection.request("GET", "/", headers={"Range": "bytes=5-9"})
    answer = connection.getresponse()
    answer.read()
    assert answer.headers["host-was"] == behind.proxy.url.removeprefix("http://")
    assert behind.proxy.requests[0].range == "bytes=5-9"


@pytest.mark.parametrize(
    ("fault", "server_has"),
    [
        (Fault.DROP, []),
        (Fault.CUT_REQUEST, [BODY[: len(BODY) // 2]]),
        (Fault.LOSE_ANSWER, [BODY]),
        (Fault.CUT_ANSWER, [BODY]),
    ],
)
@pytest.mark.parametrize("path", ["/a", "/chunks"])
def test_a_connection_is_closed_where_it_is_said(
    behind: Behind, fault: Fault, server_has: list[bytes], path: str
) -> None:
    rule = behind.proxy.fail(fault)
    connection = behind.connect()
    with pytest.raises(BAD) as caught:
        ask(connection, path=path)
    if fault is Fault.CUT_ANSWER:
        assert isinstance(caught.value, http.client.IncompleteRead)
    assert rule.hits == 1
    assert ask(behind.connect(), path=path) == (200, BODY)
    wait_until(lambda: len(behind.heard) > len(server_has), lambda: len(behind.heard))
    assert sorted(behind.heard, key=len) == [*server_has, BODY]


def test_an_answer_without_a_body_is_cut_in_its_head(behind: Behind) -> None:
    behind.proxy.fail(Fault.CUT_ANSWER)
    connection = behind.connect()
    with pytest.raises(BAD):
        ask(connection, "DELETE", body=None)
    assert behind.heard == [b""]


@pytest.mark.parametrize(
    ("fault", "status", "code"), [(Fault.ERROR_500, 500, b"InternalError"), (Fault.ERROR_503, 503, b"SlowDown")]
)
def test_an_error_is_answered_and_the_connection_goes_on(
    behind: Behind, fault: Fault, status: int, code: bytes
) -> None:
    behind.proxy.fail(fault, times=2)
    connection = behind.connect()
    found, text = ask(connection)
    assert (found, b"<Code>" + code + b"</Code>" in text) == (status, True)
    assert ask(connection, "HEAD", body=None) == (status, b"")
    assert behind.heard == []
    assert ask(connection) == (200, BODY)


@pytest.mark.parametrize("path", ["/a", "/chunks"])
def test_one_bit_is_flipped(behind: Behind, path: str) -> None:
    connection = behind.connect()
    behind.proxy.fail(Fault.FLIP_REQUEST)
    _, found = ask(connection, path=path)
    assert differing_bits(found, BODY) == 1
    assert behind.heard == [found]
    behind.proxy.fail(Fault.FLIP_ANSWER)
    _, found = ask(connection, path=path)
    assert differing_bits(found, BODY) == 1
    assert behind.heard[1] == BODY


@pytest.mark.parametrize(("fault", "server_has"), [(Fault.STALL, []), (Fault.STALL_ANSWER, [BODY])])
def test_a_stalled_request_is_not_answered_and_others_are(
    behind: Behind, fault: Fault, server_has: list[bytes]
) -> None:
    behind.proxy.fail(fault, when=lambda request: request.path == "/slow")
    slow = behind.connect(timeout=0.3)
    with pytest.raises(TimeoutError):
        ask(slow, path="/slow")
    wait_until(lambda: behind.heard == server_has)
    assert ask(behind.connect()) == (200, BODY)
    assert behind.heard == [*server_has, BODY]


def test_the_proxy_stops_while_a_connection_is_idle(behind: Behind) -> None:
    connection = behind.connect()
    assert ask(connection) == (200, BODY)
    behind.proxy.stop()
    with pytest.raises(BAD):
        ask(connection)


def test_the_proxy_stops_while_clients_wait(behind: Behind) -> None:
    behind.proxy.fail(Fault.STALL, times=None)
    errors: list[BaseException] = []
    waiting = [behind.connect() for _ in range(3)]

    def wait(connection: http.client.HTTPConnection) -> None:
        try:
            ask(connection, "GET", body=None)
        except BAD as error:
            errors.append(error)

    threads = [threading.Thread(target=wait, args=(each,)) for each in waiting]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(behind.proxy.requests) == 3)
    behind.proxy.stop()
    for thread in threads:
        thread.join()
    assert len(errors) == 3


def test_a_fault_meets_those_requests_that_it_is_meant_for(behind: Behind) -> None:
    rule = behind.proxy.fail(Fault.ERROR_503, when=lambda request: request.method == "PUT", after=1, times=2)
    connection = behind.connect()
    asked = (("PUT", BODY), ("GET", None), ("PUT", BODY), ("GET", None), ("PUT", BODY), ("PUT", BODY))
    found = [ask(connection, method, body=body)[0] for method, body in asked]
    assert found == [200, 200, 503, 200, 503, 200]
    assert rule.hits == 2
    behind.proxy.fail(Fault.ERROR_500, times=None)
    assert [ask(connection)[0] for _ in range(3)] == [500, 500, 500]
    behind.proxy.heal()
    assert ask(connection) == (200, BODY)


def test_a_fault_that_finds_nothing_to_break_is_an_error_of_the_test(behind: Behind) -> None:
    proxy = Proxy(behind.proxy.server)
    with proxy:
        proxy.fail(Fault.FLIP_REQUEST)
        assert ask(behind.connect(proxy=proxy), "GET", body=None) == (200, BODY)
        with pytest.raises(AssertionError, match="FLIP_REQUEST met request 1, whose request has no body"):
            proxy.check()
