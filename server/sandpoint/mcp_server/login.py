"""Who may come in, by what the settings say."""

from collections.abc import Awaitable, Callable

from mcp.server.auth.provider import AccessToken

from sandpoint.mcp_server.http_settings import HttpSettings
from sandpoint.mcp_server.tokens import StaticTokens


def open_login(settings: HttpSettings, resource: str) -> Callable[[str], Awaitable[AccessToken | None]] | None:
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
