"""What a client whose token lets it only read may call."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from starlette.types import ASGIApp, Receive, Scope, Send

from sandpoint.mcp_server.failures import error_result
from sandpoint.mcp_server.guards import replaying
from sandpoint.mcp_server.login import Challenge
from sandpoint.mcp_server.tokens import WRITE

DENIED_CODE = "ACCESS_DENIED"


class Access:
    """Tells which calls only read, by the tools' own annotations. A middleware of the server."""

    def __init__(self, server: MCPServer[Any]) -> None:
        self._server = server
        self._readers: frozenset[str] | None = None

    async def may_call(self, method: object, name: object) -> bool:
        """Whether a client that may only read may send this."""
        if method != "tools/call":
            return True
        if self._readers is None:
            tools = await self._server.list_tools()
            self._readers = frozenset(
                tool.name for tool in tools if tool.annotations is not None and tool.annotations.read_only_hint
            )
        return name in self._readers

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Answer a call, or refuse it."""
        user = ctx.request.scope.get("user") if ctx.request is not None else None
        if isinstance(user, AuthenticatedUser) and WRITE not in user.scopes:
            name = (ctx.params or {}).get("name")
            if not await self.may_call(ctx.method, name):
                return error_result(
                    DENIED_CODE,
                    f"{str(name)[:64]} changes something, and the token that this client was given may only read; "
                    "nothing was done. Tell the user, who can give it one with the scope "
                    f"{WRITE}",
                )
        return await call_next(ctx)


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
        await self._app(scope, replaying(message.get("body", b""), receive), send)

    async def _is_allowed(self, body: bytes) -> bool:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return True  # the server says what is wrong with it
        if not isinstance(content, dict):
            return True
        params = content.get("params")
        return await self._may_call(content.get("method"), params.get("name") if isinstance(params, dict) else None)
