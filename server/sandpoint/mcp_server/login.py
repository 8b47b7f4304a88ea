"""Who may come in: what finds out whose token one is, by what the settings say, and what lets nobody in without."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import parse_qsl

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sandpoint.mcp_server.guards import refusal
from sandpoint.mcp_server.http_settings import HttpSettings
from sandpoint.mcp_server.logs import current_call
from sandpoint.mcp_server.tokens import READ, WRITE, StaticTokens

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_MAX_TOKEN = 8192

FindToken = Callable[[str], Awaitable[AccessToken | None]]
"""Tells whose token one is."""


class IssuerUnavailableError(Exception):
    """The issuer's keys cannot be had, so that nobody can tell whether a token is good."""


def open_login(settings: HttpSettings, resource: str) -> FindToken | None:
    """Return what finds out whose token one is; None where none is needed.

    Args:
        settings: With tokens, an issuer, both or none.
        resource: The server's URL, which tokens of the issuer must be for, unless the settings say otherwise.

    Raises:
        InvalidBackupConfigError: The tokens cannot be used.
    """
    if not settings.needs_login:
        return None
    static = StaticTokens(settings.token, settings.tokens_file)
    issued = None
    if settings.issuer is not None:
        from sandpoint.mcp_server.oauth import IssuedTokens, IssuerKeys

        keys = IssuerKeys(settings.issuer, settings.jwks_url)
        issued = IssuedTokens(keys, issuer=settings.issuer, audience=settings.audience or resource)

    async def find(token: str) -> AccessToken | None:
        found = static.find(token)
        return await issued.find(token) if found is None and issued is not None else found

    return find


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

    def __init__(self, app: ASGIApp, find: FindToken, challenge: Challenge) -> None:
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
        token = current_call.set(replace(current_call.get(), client=found.client_id))
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
