"""What stands before the server's paths: who asks for which host from where, how much, and by what name in the log."""

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import anyio
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandpoint.mcp_server.hosts import HostPort, canonical, is_loopback, parse_host
from sandpoint.mcp_server.logs import Call, current_call
from sandpoint.mcp_server.oauth import IssuerUnavailableError
from sandpoint.mcp_server.tokens import READ, WRITE

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"

FindToken = Callable[[str], Awaitable[AccessToken | None]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_MAX_TOKEN = 8192
_SESSION_SHOWN = 8
_DEFAULT_PORTS = {"http": 80, "https": 443}


def refusal(status: int, error: str, description: str, **headers: str) -> JSONResponse:
    """Return an answer that says no, and why."""
    return JSONResponse(
        {"error": error, "error_description": description},
        status_code=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


class Requests:
    """Names each request, logs how it ended, and can end those that are open."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: dict[anyio.CancelScope, bool] = {}
        self._answered = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        session = headers.get("mcp-session-id", "")[:_SESSION_SHOWN]
        token = current_call.set(Call(request_id=request_id, session=session or None))
        began = time.monotonic()
        status = 0
        is_done = False

        async def sending(message: Message) -> None:
            nonlocal status, is_done
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            elif message["type"] == "http.response.body":
                is_done = not message.get("more_body", False)
            await send(message)

        try:
            with anyio.CancelScope() as open_request:
                self._open[open_request] = _is_stream(scope["method"], headers)
                await self._app(scope, receive, sending)
            if open_request.cancelled_caught and not is_done:
                await _finish(status, scope, receive, sending)
        finally:
            del self._open[open_request]
            self._answered.set()
            self._answered = anyio.Event()
            details = {
                "http_method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
            }
            # Calls are logged by themselves.
            logger.log(logging.INFO if status >= 400 else logging.DEBUG, "request", extra={"details": details})
            current_call.reset(token)

    async def wait_answered(self) -> None:
        """Wait until nothing is open but streams that only a client or a server ends."""
        while not all(self._open.values()):
            await self._answered.wait()

    def end(self) -> None:
        """End what is open: streams are closed, requests answered with 503."""
        for each in [*self._open]:
            each.cancel()


def _is_stream(method: str, headers: Headers) -> bool:
    return method == "GET" or headers.get("mcp-method") == "subscriptions/listen"


async def _finish(status: int, scope: Scope, receive: Receive, send: Send) -> None:
    if status:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await refusal(503, "stopping", "the server stops; try again", retry_after="5")(scope, receive, send)


@dataclass(frozen=True)
class AllowedHosts:
    """Which hosts are this server: a page of another one, whose name was made to lead here, says its own."""

    hosts: frozenset[HostPort]
    """A port of None stands for any."""
    is_local: bool
    """Whether names of this machine are meant."""
    origins: frozenset[str] = frozenset()
    """Of pages of other servers that may call this one."""

    def has(self, host: HostPort, address: str | None) -> bool:
        """Whether a request for a host, that came in on an address of this machine, is for this server."""
        if self.is_local and is_loopback(host.name):
            return True
        if HostPort(host.name, None) in self.hosts or host in self.hosts:
            return True
        return address is not None and host.name == canonical(address)

    def has_origin(self, origin: str, host: HostPort) -> bool:
        """Whether a page of an origin may call: those of this very host, and those that are named."""
        if origin.lower() in self.origins:
            return True
        parts = urlsplit(origin)
        own = parse_host(parts.netloc) if parts.scheme in _DEFAULT_PORTS and not parts.path else None
        if own is None:
            return False
        same_name = own.name == host.name or (is_loopback(own.name) and is_loopback(host.name))
        # Behind a proxy that does TLS the scheme is not known here.
        default = _DEFAULT_PORTS[parts.scheme]
        return same_name and (own.port or default) == (host.port or default)


class HostGuard:
    """Refuses requests for other hosts (421) and of pages of other origins (403), on every path but those named."""

    def __init__(self, app: ASGIApp, allowed: AllowedHosts, *, open_paths: Iterable[str] = ()) -> None:
        self._app = app
        self._allowed = allowed
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            refused = self._refuse(scope)
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = parse_host(headers.get("host", ""))
        server = scope.get("server")
        if host is None or len(headers.getlist("host")) > 1 or not self._allowed.has(host, server and server[0]):
            return refusal(
                421,
                "invalid_host",
                "this server does not go by that name; if it should, whoever runs it sets SANDPOINT_HTTP_ALLOWED_HOSTS",
            )
        origins = headers.getlist("origin")
        if len(origins) > 1 or (origins and not self._allowed.has_origin(origins[0], host)):
            return refusal(
                403,
                "invalid_origin",
                "pages of that origin may not call this server; if they should, whoever runs it sets "
                "SANDPOINT_HTTP_ALLOWED_ORIGINS",
            )
        return None


class Challenge:
    """Tells a client how to get a token, or a better one."""

    def __init__(self, metadata_url: str | None) -> None:
        self._metadata_url = metadata_url

    def __call__(self, error: str | None = None, description: str | None = None) -> str:
        """Return the header."""
        parts = [] if error is None else [f'error="{error}"', f'error_description="{description}"']
        parts.append(f'scope="{READ} {WRITE}"')
        if self._metadata_url is not None:
            parts.append(f'resource_metadata="{self._metadata_url}"')
        return f"Bearer {', '.join(parts)}"

    def refuse(self, status: int, error: str, description: str) -> JSONResponse:
        """Return an answer that says no to a token."""
        return refusal(status, error, description, www_authenticate=self(error, description))


class LoginGuard:
    """Lets in who shows a good token, in the header and nowhere else (RFC 6750)."""

    def __init__(self, app: ASGIApp, find: FindToken, challenge: "Challenge") -> None:
        self._app = AuthContextMiddleware(app)
        self._find = find
        self._challenge = challenge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        found = await self._look(Headers(scope=scope))
        if isinstance(found, JSONResponse):
            await found(scope, receive, send)
            return
        scope["user"] = AuthenticatedUser(found)
        call = current_call.get()
        token = current_call.set(Call(request_id=call.request_id, session=call.session, client=found.client_id))
        try:
            await self._app(scope, receive, send)
        finally:
            current_call.reset(token)

    async def _look(self, headers: Headers) -> AccessToken | JSONResponse:
        given = headers.getlist("authorization")
        if not given:
            return refusal(401, "unauthorized", "this server needs a token", www_authenticate=self._challenge())
        token = _BEARER.fullmatch(given[0].strip())
        if len(given) > 1 or token is None or len(given[0]) > _MAX_TOKEN:
            return self._challenge.refuse(401, "invalid_token", "write one header: Authorization: Bearer TOKEN")
        try:
            found = await self._find(token[1])
        except IssuerUnavailableError:
            return refusal(503, "temporarily_unavailable", "the issuer's keys cannot be had", retry_after="10")
        if found is None:
            return self._challenge.refuse(
                401, "invalid_token", "the token is not known here, not for this server, or over"
            )
        if READ not in found.scopes:
            return self._challenge.refuse(403, "insufficient_scope", f"the token has neither scope {READ} nor {WRITE}")
        return found


class NoTokenInUrl:
    """Refuses URLs with a token: they end up in logs and histories."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        given = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        names = {name.lower() for name, _ in given}
        if names & {"access_token", "token", "authorization"}:
            refused = refusal(400, "invalid_request", "a token belongs into the header Authorization, not into the URL")
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyGuard:
    """Takes a request's body in before anything is done with it: not too much of it (413), nor too slowly (408)."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        length = Headers(scope=scope).get("content-length", "0")
        too_large = refusal(413, "too_large", f"a request has at most {self._max_bytes} bytes", connection="close")
        if not length.isascii() or not length.isdigit() or int(length) > self._max_bytes:
            await too_large(scope, receive, send)
            return
        body = bytearray()
        with anyio.move_on_after(self._seconds) as waiting:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                body += message.get("body", b"")
                if len(body) > self._max_bytes:
                    await too_large(scope, receive, send)
                    return
                if not message.get("more_body", False):
                    break
        if waiting.cancelled_caught:
            await refusal(408, "too_slow", "the request did not arrive in time", connection="close")(
                scope, receive, send
            )
            return
        await self._app(scope, _replaying(bytes(body), receive), send)


def _replaying(body: bytes, receive: Receive) -> Receive:
    is_told = False

    async def replay() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class ScopeGuard:
    """Answers 403 to calls that need more than the token allows, so that a client can ask for another token.

    What holds the calls back for certain is `Access`, a middleware of the server, which sees what is really called.
    """

    def __init__(self, app: ASGIApp, may_call: Callable[[Any, Any], Awaitable[bool]], challenge: Challenge) -> None:
        self._app = app
        self._may_call = may_call
        self._challenge = challenge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        user = scope.get("user")
        if scope["method"] != "POST" or not isinstance(user, AuthenticatedUser) or WRITE in user.scopes:
            await self._app(scope, receive, send)
            return
        message = await receive()  # all of it: the body guard stands before
        if not await self._is_allowed(message.get("body", b"")):
            refused = self._challenge.refuse(403, "insufficient_scope", f"this needs the scope {WRITE}")
            await refused(scope, receive, send)
            return
        await self._app(scope, _replaying(message.get("body", b""), receive), send)

    async def _is_allowed(self, body: bytes) -> bool:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return True  # the server says what is wrong with it
        if not isinstance(content, dict):
            return True
        params = content.get("params")
        return await self._may_call(content.get("method"), params.get("name") if isinstance(params, dict) else None)
