"""What stands before the server's paths: who asks for which host from where, and how much."""

from collections.abc import Iterable

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandpoint.mcp_server.hosts import AllowedHosts, parse_host


def refusal(status: int, error: str, description: str, **headers: str) -> JSONResponse:
    """Return an answer that says no, and why."""
    return JSONResponse(
        {"error": error, "error_description": description},
        status_code=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


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
        await self._app(scope, replaying(bytes(body), receive), send)


def replaying(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was received already, and then what else comes."""
    is_told = False

    async def replay() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
