"""What a client whose token lets it only read may call."""

from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

from sandpoint.mcp_server.server import error_result
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
