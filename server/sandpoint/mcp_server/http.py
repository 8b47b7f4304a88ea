"""Serving many clients over Streamable HTTP, until a signal."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import anyio
from mcp.server import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sandpoint.engine.linux import limit_heaps
from sandpoint.errors import SandpointError
from sandpoint.mcp_server.access import Access, ScopeGuard
from sandpoint.mcp_server.guards import BodyGuard, HostGuard
from sandpoint.mcp_server.hosts import AllowedHosts, HostPort, parse_host
from sandpoint.mcp_server.http_settings import MCP_PATH, HttpSettings
from sandpoint.mcp_server.limits import Gate, GatedServices
from sandpoint.mcp_server.listening import Listening, listening
from sandpoint.mcp_server.login import Challenge, LoginGuard, NoTokenInUrl, open_login
from sandpoint.mcp_server.logs import log_calls, set_up_logging
from sandpoint.mcp_server.opening import open_services, start_upkeep, try_out, who_confirms
from sandpoint.mcp_server.requests import REQUEST_ID
from sandpoint.mcp_server.running import HttpApp, run_app
from sandpoint.mcp_server.sealing import shared_key
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.telemetry import exporting
from sandpoint.mcp_server.tokens import SCOPES
from sandpoint.services import ServiceSource
from sandpoint.settings import Settings

logger = logging.getLogger(__name__)

HEALTH_PATH = "/healthz"
METADATA_PATH = "/.well-known/oauth-protected-resource"

HEALTH_S = 10.0
"""How long what the store said holds, so that nobody can keep it busy by asking."""

HEAPS = 2
"""With one for each thread, a server that many use held three times the memory."""


def build_app(
    server: MCPServer[Any],
    settings: HttpSettings,
    listening_on: Listening,
    gate: Gate,
    *,
    check: Callable[[], Awaitable[None]] | None = None,
) -> HttpApp:
    """Return a server as an ASGI application: at /mcp, /healthz and, with an issuer, RFC 9728's metadata.

    To be used once. Its lifespan is that of the sessions.

    Args:
        server: What is served.
        settings: Whom to let in, and how much of it.
        listening_on: Where; where `settings` have no URL, its own is what tokens are for.
        gate: What the server's services are used through.
        check: Raises what keeps the server from its work; `/healthz` asks it.

    Raises:
        InvalidBackupConfigError: Tokens cannot be used.
    """
    access = Access(server)
    server.middleware.extend((log_calls, access))
    # Hosts and origins are checked before all paths, by one rule for every address.
    server.streamable_http_app(
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=settings.max_body,
        max_sessions=settings.sessions,
        session_idle_timeout=settings.session_idle,
    )
    manager = server.session_manager
    resource = settings.url or listening_on.url
    endpoint = _guarded(StreamableHTTPASGIApp(manager), settings, access, resource)
    metadata = _metadata_routes(settings, resource)
    routes = [
        Route(MCP_PATH, endpoint=endpoint),
        Route(HEALTH_PATH, endpoint=_Health(check, gate).answer, methods=["GET"]),
        *metadata,
    ]
    app: ASGIApp = Starlette(routes=routes, lifespan=lambda _: manager.run())
    if settings.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["mcp-session-id", "www-authenticate", REQUEST_ID],
        )
    allowed = _allowed_hosts(settings, is_local=listening_on.is_local)
    app = HostGuard(NoTokenInUrl(app), allowed, open_paths=(HEALTH_PATH, *(route.path for route in metadata)))
    return HttpApp(app, gate)


def _guarded(endpoint: ASGIApp, settings: HttpSettings, access: Access, resource: str) -> ASGIApp:
    find = open_login(settings, resource)
    if find is None:
        return BodyGuard(endpoint, max_bytes=settings.max_body, seconds=settings.receive)
    challenge = Challenge(None if settings.issuer is None else _metadata_url(resource))
    scoped = ScopeGuard(endpoint, access.may_call, challenge)
    bounded = BodyGuard(scoped, max_bytes=settings.max_body, seconds=settings.receive)
    return LoginGuard(bounded, find, challenge)


def _allowed_hosts(settings: HttpSettings, *, is_local: bool) -> AllowedHosts:
    named = [parse_host(host) for host in settings.allowed_hosts]
    own = parse_host(settings.host)
    if own is not None:
        named.append(HostPort(own.name, None))
    if settings.public_host is not None:
        named.append(HostPort(settings.public_host.name, None))
    return AllowedHosts(
        hosts=frozenset(host for host in named if host is not None),
        is_local=is_local,
        origins=frozenset(settings.allowed_origins),
    )


def _metadata_url(resource: str) -> str:
    parts = urlsplit(resource)
    return urlunsplit((parts.scheme, parts.netloc, METADATA_PATH + parts.path, "", ""))


def _metadata_routes(settings: HttpSettings, resource: str) -> list[Route]:
    """Return where clients find out how to get a token (RFC 9728)."""
    if settings.issuer is None:
        return []
    metadata = {
        "resource": resource,
        "authorization_servers": [settings.issuer],
        "scopes_supported": [*SCOPES],
        "bearer_methods_supported": ["header"],
        "resource_name": "Sandpoint",
    }

    async def answer(_request: Request) -> Response:
        return JSONResponse(metadata, headers={"Cache-Control": "max-age=3600", "Access-Control-Allow-Origin": "*"})

    paths = dict.fromkeys((METADATA_PATH, METADATA_PATH + MCP_PATH, urlsplit(_metadata_url(resource)).path))
    return [Route(path, endpoint=answer, methods=["GET"]) for path in paths]


class _Health:
    """Answers whether the server can do its work, to anybody, and tells nothing else."""

    def __init__(self, check: Callable[[], Awaitable[None]] | None, gate: Gate) -> None:
        self._check = check
        self._gate = gate
        self._lock = anyio.Lock()
        self._checked = -HEALTH_S
        self._is_well = True

    async def answer(self, _request: Request) -> Response:
        if self._gate.is_closed:
            return _state("stopping", 503)
        async with self._lock:
            if anyio.current_time() - self._checked >= HEALTH_S:
                self._is_well = await self._look()
                self._checked = anyio.current_time()
        return _state("ok", 200) if self._is_well else _state("unavailable", 503)

    async def _look(self) -> bool:
        if self._check is None:
            return True
        try:
            with anyio.fail_after(HEALTH_S):
                await self._check()
        except TimeoutError:
            logger.warning("the store did not answer within %g seconds", HEALTH_S)
        except SandpointError as error:
            logger.warning("not healthy: %s: %s", error.code, error)
        else:
            return True
        return False


def _state(status: str, code: int) -> Response:
    return JSONResponse({"status": status}, status_code=code, headers={"Cache-Control": "no-store"})


def serve(settings: Settings | SandpointError, http: HttpSettings) -> None:
    """Serve MCP over HTTP until SIGTERM or SIGINT; blocking.

    Settings of the store and the sandbox that cannot be used are told by every call, as over stdio; `/healthz` says
    503 then.

    Raises:
        InvalidBackupConfigError: It cannot be listened on there, or not without tokens; or these cannot be used.
    """
    set_up_logging(settings, style="json", level="info")
    limit_heaps(HEAPS)
    with listening(http) as listening_on:
        gate = Gate(http.operations, http.queue)
        services, where = open_services(settings)
        gated = GatedServices(services, gate)
        server = build_lazy_server(gated, where=where, confirm=who_confirms(settings), key=_shared_key(settings))
        app = build_app(server, http, listening_on, gate, check=lambda: _check_store(services))

        async def run() -> None:
            async with exporting(), services, anyio.create_task_group() as tasks:
                await try_out(services)
                start_upkeep(tasks, settings, services)
                await run_app(app, listening_on, http)
                tasks.cancel_scope.cancel()

        anyio.run(run)


def _shared_key(settings: Settings | SandpointError) -> bytes | None:
    """Return the key that the servers of one state directory share: what one has asked, another may be told."""
    return shared_key(settings.state_dir) if isinstance(settings, Settings) else None


async def _check_store(services: ServiceSource) -> None:
    async with services.use_store() as service:
        await service.check_store()
