"""Serving one client over stdin and stdout, until either side has had enough."""

import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

import anyio

from sandpoint.errors import InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server.schedule import prune_regularly
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.tools import Where
from sandpoint.sandboxes import AllowedSandboxes
from sandpoint.service import BackupService, open_service
from sandpoint.services import Services
from sandpoint.settings import LOCAL, Settings
from sandpoint.stores import Store

logger = logging.getLogger(__name__)


def serve(settings: Settings | SandpointError) -> None:
    """Serve MCP on stdin and stdout until stdin closes, or SIGTERM or SIGINT arrives; blocking.

    What runs then is cancelled and cleans up, and what was started for sandboxes is ended. Where the settings name no
    allowed directories, the working directory is the one of this machine; in a container any but the system's.

    A server that ends at its start is, to the user of a client, one that "failed to connect", without a
    reason. So settings that cannot be used do not end it: the reason is written to stderr once, the server
    starts, and every tool call answers with the coded error. It tries again at each call, so a store that
    comes back is used. Settings that could not even be read are passed as the error that said so.

    Where the settings say so (`prune_every`, `keep`), the store is pruned meanwhile.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    services: Services | _Unusable
    if isinstance(settings, Settings):
        services, where = Services(settings, opener=_open_confined), _where(settings)
    else:
        services, where = _Unusable(settings), Where()
    server = build_lazy_server(services, where=where)

    async def run() -> None:
        end_input = _relay_stdin()
        async with services, anyio.create_task_group() as tasks:
            await _try(services)
            tasks.start_soon(_end_on_signal, end_input)
            if isinstance(settings, Settings) and settings.prune_every is not None:
                tasks.start_soon(partial(prune_regularly, services, settings.keep, every_s=settings.prune_every * 3600))
            await server.run_stdio_async()
            tasks.cancel_scope.cancel()

    try:
        anyio.run(run)
    except* BrokenPipeError:
        logger.warning("the client closed its end before the last answer")


async def _try(services: "Services | _Unusable") -> None:
    try:
        async with services.use_store():
            pass
    except SandpointError as error:
        logger.warning("%s: %s", error.code, error)
    except Exception:
        logger.exception("the store and the sandbox could not be opened")


def _where(settings: Settings) -> Where:
    allowed_dirs = settings.allowed_dirs
    if settings.sandboxes is None:
        with suppress(SandpointError):  # told at every call
            allowed_dirs = _confined(settings).allowed_dirs
    return Where(allowed_dirs, settings.sandbox, settings.sandboxes)


def _open_confined(
    settings: Settings, *, allowed: AllowedSandboxes | None = None, store: Store | None = None
) -> BackupService:
    return open_service(_confined(settings), allowed=allowed, store=store)


def _confined(settings: Settings) -> Settings:
    """Return settings of a sandbox whose directories are limited: on this machine to some, if only by default."""
    if settings.allowed_dirs is not None or settings.sandbox != LOCAL:
        return settings
    try:
        return settings.model_copy(update={"allowed_dirs": (str(Path.cwd().resolve()),)})
    except OSError as error:
        raise InvalidBackupConfigError(
            f"the server's working directory cannot be found ({error.strerror}), and SANDPOINT_ALLOWED_DIRS "
            "is not set; set it to the directories that may be backed up, separated by ':'"
        ) from error


class _Unusable:
    """Services of settings that could not be read: the error that said so is what every use gives."""

    def __init__(self, error: SandpointError) -> None:
        self._error = error

    def check(self, name: str | None) -> str:
        raise self._error.with_traceback(None)

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[BackupService]:
        self.check(name)
        yield  # type: ignore[misc]  # what is before it makes this a generator only

    def use_store(self) -> AbstractAsyncContextManager[BackupService]:
        return self.use()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """There is nothing to close."""


async def _end_on_signal(end_input: Callable[[], None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            end_input()


def _relay_stdin() -> Callable[[], None]:
    """Put a pipe in front of stdin, and return what closes it as the client would.

    The SDK reads stdin in a thread that nothing can interrupt, so that a signal could cancel the server but
    never end it. With the pipe, a signal ends the input instead, and there is one way to shut down.
    """
    client, (reader, writer) = os.dup(0), os.pipe()
    os.dup2(reader, 0)
    os.close(reader)
    lock = threading.Lock()
    closed = False

    def end_input() -> None:
        nonlocal closed
        with lock:
            if not closed:
                closed = True
                os.close(writer)

    def relay() -> None:
        try:
            while data := os.read(client, 65536):
                while data:
                    data = data[os.write(writer, data) :]
        except OSError:
            logger.debug("stdin ended", exc_info=True)
        finally:
            end_input()

    threading.Thread(target=relay, name="sandpoint-stdin", daemon=True).start()
    return end_input
