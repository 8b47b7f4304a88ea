"""A line to a store: one connection at a time, watched from outside while its thread is blocked in it."""

import fcntl
import logging
import os
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager, make_headers
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from sandpoint.errors import InvalidBackupConfigError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
LEAST_BYTES_S = 1024
"""What a request moves a second, at the least, over each span of `READ_TIMEOUT_S`; a slower one counts as stalled."""


class PassingError(Exception):
    """What may go well when it is tried again; the message says why it did not."""


class LastingError(Exception):
    """What the same request need not be tried again for; the message says why, and whether the operation may be."""

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(f"{message}; {'try again' if again else 'to try again as it is will not help'}")


class StoppedError(Exception):
    """The transfer was stopped from outside."""


class _NoQueries(logging.Filter):
    """Cuts off what follows the path of URLs: it lets whoever has it in."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = None
        if isinstance(record.args, tuple):
            record.args = tuple(_without_query(value) for value in record.args)
        return True


def _without_query(value: object) -> object:
    text = str(value)
    return f"{text.partition('?')[0]}?..." if "?" in text else value


_FILTER = _NoQueries()


def _hush() -> None:
    for name in ("connectionpool", "connection", "poolmanager", "response", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_FILTER)


class Line:
    """One thread's connection to a store; the methods of the second group are for another thread."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        """Prepare it: nothing is connected before the first request.

        Raises:
            InvalidBackupConfigError: The environment names a proxy that cannot be used.
        """
        _hush()
        self.moved = 0
        """Bytes, both ways. Whoever reads an answer counts them."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._twin: socket.socket | None = None
        self._since: float | None = None
        self._mark = 0
        self._stalled = False
        self._manager = _manager(url, context)
        self._manager.pool_classes_by_scheme = _pools(self)

    @contextmanager
    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: Iterable[memoryview] | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """Send a request and yield its answer; what is not read of that when the block ends is never read.

        Raises:
            PassingError, LastingError: There is no answer.
            StoppedError: `stop` was called.
        """
        self._begin()
        try:
            answer = self._send(method, url, headers, body)
            try:
                yield answer
            finally:
                answer.close()
        finally:
            self._end()

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Iterable[memoryview] | None
    ) -> BaseHTTPResponse:
        try:
            answer = self._manager.urlopen(
                method,
                url,
                headers=headers,
                body=self._counted(body) if body is not None else None,
                redirect=False,
                retries=False,
                timeout=None,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            failure = self._failure(error)
        else:
            # A head that was cut off looks like a short one.
            if not self._stalled and not self._ended.is_set():
                return answer
            answer.close()
            failure = self._failure(HTTPError())
        # Outside of the block: the library's errors hold the URL.
        raise failure

    def _counted(self, body: Iterable[memoryview]) -> Iterator[memoryview]:
        for block in body:
            yield block
            self.moved += len(block)

    def read(self, answer: BaseHTTPResponse, most: int) -> bytes:
        """Return what has come of an answer, at least one byte; none at its end.

        Raises:
            PassingError, LastingError: It broke off.
            StoppedError: `stop` was called.
        """
        try:
            block = answer.read1(most, decode_content=False)
        except (HTTPError, OSError, ValueError) as error:
            failure = self._failure(error)
        else:
            self.moved += len(block)
            return block
        raise failure

    def _failure(self, error: Exception) -> Exception:
        if self._ended.is_set():
            return StoppedError()
        if self._stalled:
            return PassingError(f"nearly nothing was heard of it for {READ_TIMEOUT_S:g} s")
        return _explain(error)

    def rest(self, seconds: float) -> None:
        """Wait before the next try.

        Raises:
            StoppedError: `stop` was called.
        """
        if self._ended.wait(seconds):
            raise StoppedError

    def go_on(self) -> None:
        """Raise `StoppedError` if `stop` was called."""
        if self._ended.is_set():
            raise StoppedError

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do something else for the time of the block, in the middle of an answer: that time does not count."""
        with self._lock:
            since, self._since = self._since, None
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._since = None if since is None else since + time.monotonic() - started

    def _begin(self) -> None:
        with self._lock:
            self._stalled = False
            self._since, self._mark = time.monotonic(), self.moved
        self.go_on()

    def _end(self) -> None:
        with self._lock:
            self._since = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        for key in self._manager.pools.keys():  # noqa: SIM118 - it cannot be iterated
            # To forget a pool is not to close it, where an error still holds the answer that came by it.
            self._manager.pools[key].close()
        self._manager.clear()
        with self._lock:
            self._drop_twin()

    # -- from outside --

    def watch(self) -> None:
        """Cut the connection if it is stalled. To be called often."""
        with self._lock:
            now = time.monotonic()
            if self._since is None or now - self._since < READ_TIMEOUT_S:
                return
            arrived = self._arrived()
            if arrived - self._mark < LEAST_BYTES_S * READ_TIMEOUT_S:
                self._stalled = True
                self._cut()
            self._since, self._mark = now, arrived

    def stop(self) -> None:
        """End the request that is going on, and all later ones."""
        with self._lock:
            self._ended.set()
            self._cut()

    # -- its connection --

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connected socket, known to `stop` and `watch` from before it is connected.

        Raises:
            OSError: None of the host's addresses answers.
        """
        failure: OSError = OSError("the host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._adopt(sock)
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _adopt(self, sock: socket.socket) -> None:
        # A twin: TLS takes the descriptor of the first one away, and only what is open can be cut.
        with self._lock:
            self._drop_twin()
            if self._ended.is_set() or self._stalled:
                raise ConnectionAbortedError
            self._twin = sock.dup()

    def _drop_twin(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None

    def _cut(self) -> None:
        if self._twin is not None:
            with suppress(OSError):  # it is not connected any more
                self._twin.shutdown(socket.SHUT_RDWR)

    def _arrived(self) -> int:
        """Return the bytes moved, without those that the kernel still keeps to send."""
        if self._twin is None:
            return self.moved
        with suppress(OSError):
            return self.moved - int(struct.unpack("i", fcntl.ioctl(self._twin, termios.TIOCOUTQ, bytes(4)))[0])
        return self.moved


def _pools(line: Line) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3's pools with connections by way of a line."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return line.connect(self.host, self.port)

        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(None)

    class Tls(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return line.connect(self.host, self.port)

        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(None)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises:
        LastingError: It has no host.
    """
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts
    raise LastingError("the grant's URL is none of HTTP")


def tls_context(url: str) -> ssl.SSLContext | None:
    """Return whom to trust: as OpenSSL finds it (`SSL_CERT_FILE`), or as `AWS_CA_BUNDLE` says. None without TLS.

    Raises:
        InvalidBackupConfigError: `AWS_CA_BUNDLE` names no readable certificates.
    """
    if split_url(url).scheme != "https":
        return None
    bundle = os.environ.get("AWS_CA_BUNDLE") or None
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise InvalidBackupConfigError(
            f"AWS_CA_BUNDLE: no certificates can be read from {bundle}: {error.strerror}; correct it, or unset it"
        ) from None


def _manager(url: str, context: ssl.SSLContext | None) -> PoolManager:
    parts = split_url(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return PoolManager(num_pools=1, maxsize=1, ssl_context=context)
    place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if place.scheme not in {"http", "https"} or not place.hostname:
        raise InvalidBackupConfigError(
            f"the proxy that the environment names for {parts.scheme}: URLs is none of HTTP; "
            "name another one, or the store's host in NO_PROXY"
        )
    login = f"{unquote(place.username)}:{unquote(place.password or '')}" if place.username else None
    return ProxyManager(
        f"{place.scheme}://{place.netloc.rpartition('@')[2]}",
        num_pools=1,
        maxsize=1,
        ssl_context=context,
        proxy_headers=make_headers(proxy_basic_auth=login) if login else None,
    )


def _explain(error: BaseException) -> Exception:
    """Say what broke a request, in words that hold nothing of it."""
    causes = list(_causes(error))
    if isinstance(error, ValueError):
        return LastingError("the grant's URL or its headers cannot be sent")
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return LastingError(
                f"its certificate cannot be trusted: {cause.verify_message}; name a file of the certificates to trust "
                "in AWS_CA_BUNDLE or SSL_CERT_FILE"
            )
        if isinstance(cause, socket.gaierror):
            return PassingError(f"its host is not found: {cause.strerror}")
    for cause in causes:
        if isinstance(cause, TimeoutError):
            return PassingError(f"it did not answer for {CONNECT_TIMEOUT_S:g} s")
        if isinstance(cause, ssl.SSLError):
            return PassingError(f"no TLS connection: {cause.reason or 'it broke off'}")
        if isinstance(cause, OSError) and cause.strerror:
            return PassingError(f"the connection failed: {cause.strerror}")
    return PassingError("the connection broke")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        found = left.pop(0)
        if isinstance(found, BaseException) and not any(found is other for other in seen):
            seen.append(found)
            left += [*found.args, found.__cause__, found.__context__]
            yield found
