"""The page in a browser's window: a server for one person of this machine, until a signal ends it."""

import json
import secrets
from collections.abc import Callable
from typing import Any

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandpoint.mcp_server.assembly import content_policy, read_page
from sandpoint.mcp_server.limits import Gate
from sandpoint.mcp_server.running import HttpApp

HOST = "127.0.0.1"

GRACE = 10
"""Seconds that what runs has to finish after a signal; then it is cancelled, and cleans up or undoes."""

_MAX_TOKEN_BODY = 4096
_KEEPS_OUT = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Keys:
    """The links that open the page: each works once, and gives its window a key that works until the server ends.

    What a command line or a browser's history shows of a link is of no use to others once the page is open. The key
    is no cookie, which a browser would also send to every other port of this machine.
    """

    def __init__(self) -> None:
        self._token = ""
        self._keys: list[str] = []

    def mint(self) -> str:
        """Return a new token; the one before works no more."""
        self._token = secrets.token_urlsafe(32)
        return self._token

    def exchange(self, token: object) -> str | None:
        """Return a key for the token that was minted last, once."""
        if not (isinstance(token, str) and self._token and _same(token, self._token)):
            return None
        self._token = ""
        self._keys.append(secrets.token_urlsafe(32))
        return self._keys[-1]

    def fits(self, authorization: str | None) -> bool:
        """Whether a request shows a key."""
        scheme, _, shown = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and any(_same(shown, key) for key in self._keys)


def _same(one: str, other: str) -> bool:
    # JSON can hold halves of characters, which are no UTF-8.
    return secrets.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())


class Guard:
    """Lets in what this machine's browser sends from the page itself, and tells it how to keep others out."""

    def __init__(self, app: ASGIApp, *, port: int, keys: Keys) -> None:
        self._app = app
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._keys = keys
        self._headers = _KEEPS_OUT | {"Content-Security-Policy": content_policy()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        # A name that resolves to this machine is not enough: the site that has it may have asked (DNS rebinding).
        if headers.get("host") not in self._hosts:
            return PlainTextResponse("This server answers to its own address only.", 421)
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers['host']}":
            return PlainTextResponse("Another site's page may not ask here.", 403)
        if path == "/mcp" and not self._keys.fits(headers.get("authorization")):
            return PlainTextResponse(_NO_KEY, 401)
        return None


_NO_KEY = (
    "This window has no key: a link works once, and only while the server runs that printed it. "
    "Open the link that the terminal shows last, or run sandpoint ui again."
)


def build_window(
    server: MCPServer[Any], gate: Gate, *, dir: str | None, port: int, keys: Keys, link_used: Callable[[], None]
) -> HttpApp:
    """Return the application: the page, the exchange of a link's token for a key, and MCP for who has one.

    Args:
        server: Whose tools the page calls.
        gate: What its services are used through.
        dir: The directory whose backups the page shows; None for all.
        port: Where it will listen.
        keys: Who may ask.
        link_used: Called when a link was used up.
    """

    async def page(request: Request) -> Response:
        return HTMLResponse(read_page())

    async def session(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_TOKEN_BODY:
                return PlainTextResponse("Too long.", 413)
        key = keys.exchange(_token(body))
        if key is not None:
            link_used()
            return JSONResponse({"key": key, "dir": dir})
        if keys.fits(request.headers.get("authorization")):
            return JSONResponse({"dir": dir})
        return PlainTextResponse(_NO_KEY, 401)

    mcp: Starlette = server.streamable_http_app(
        stateless_http=True,
        # The guard is stricter, and comes first.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    mcp.router.routes += [Route("/", page), Route("/session", session, methods=["POST"])]
    return HttpApp(Guard(mcp, port=port, keys=keys), gate)


def _token(body: bytes) -> object:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return sent.get("token") if isinstance(sent, dict) else None
