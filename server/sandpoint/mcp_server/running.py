"""An ASGI application that serves until a signal, and how it is ended."""

import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from anyio.abc import TaskGroup
from starlette.types import ASGIApp, Receive, Scope, Send

from sandpoint.mcp_server.connections import TimedConnection
from sandpoint.mcp_server.http_settings import HttpSettings
from sandpoint.mcp_server.limits import Gate
from sandpoint.mcp_server.listening import Listening
from sandpoint.mcp_server.requests import Requests

logger = logging.getLogger(__name__)

CLEAR_UP_S = 5
"""How long connections have to close, once all that they were open for has ended."""


class HttpApp:
    """A server as an ASGI application, and how it is ended."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._requests = Requests(app)
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._requests(scope, receive, send)

    async def drain(self) -> None:
        """Begin nothing new, and wait until what runs has ended and is answered."""
        self._gate.close()
        await self._gate.wait_idle()
        await self._requests.wait_answered()

    def end(self) -> None:
        """End all that is open."""
        self._gate.close()
        self._requests.end()


class _Server(uvicorn.Server):
    """Leaves signals to us, and says when it answers."""

    def __init__(self, config: uvicorn.Config, is_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._is_ready = is_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._is_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_app(
    app: HttpApp, listening_on: Listening, settings: HttpSettings, *, is_ready: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until cancelled.

    At the first signal nothing new begins, and what runs has `grace` seconds to end; what then still runs, or at a
    second signal, is cancelled and cleans up. Streams that clients hold open are closed.

    Args:
        app: What is served.
        listening_on: Where.
        settings: How many connections there may be, and the times that clients and operations have.
        is_ready: Called once it answers.
    """
    config = uvicorn.Config(
        app,
        http=TimedConnection.lasting(settings.receive),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=CLEAR_UP_S,
    )

    def tell() -> None:
        logger.info("serving", extra={"details": {"url": listening_on.url}})
        if is_ready is not None:
            is_ready()

    server = _Server(config, tell)

    def end() -> None:
        app.end()
        server.should_exit = True

    async def stop_on_signals() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(signals)
            logger.info("stopping: what runs has %g seconds to end", settings.grace)
            async with anyio.create_task_group() as both:
                both.start_soon(_drain, app, settings.grace, both)
                both.start_soon(_wait_for_another, signals, both)
            end()
            async for _ in signals:
                logger.info("stopping already")

    async def end_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            end()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signals)
        tasks.start_soon(end_when_cancelled)
        with anyio.CancelScope(shield=True):  # it ends by itself, and sessions with it
            await server.serve(sockets=[*listening_on.sockets])
        tasks.cancel_scope.cancel()


async def _drain(app: HttpApp, grace: float, both: TaskGroup) -> None:
    with anyio.move_on_after(grace) as waiting:
        await app.drain()
    if waiting.cancelled_caught:
        logger.warning("stopping: what still runs is cancelled")
    both.cancel_scope.cancel()


async def _wait_for_another(signals: AsyncIterator[signal.Signals], both: TaskGroup) -> None:
    await anext(signals)
    logger.warning("stopping at once: what still runs is cancelled")
    both.cancel_scope.cancel()
