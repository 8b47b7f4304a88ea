"""Serving one client over stdin and stdout, until either side has had enough."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import anyio

from sandpoint.errors import InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server.schedule import prune_regularly
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.service import BackupService, open_service
from sandpoint.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings | SandpointError) -> None:
    """Serve MCP on stdin and stdout until stdin closes, or SIGTERM or SIGINT arrives; blocking.

    What runs then is cancelled and cleans up. Where the settings name no allowed directories, the working
    directory is the one.

    A server that ends at its start is, to the user of a client, one that "failed to connect", without a
    reason. So settings that cannot be used do not end it: the reason is written to stderr once, the server
    starts, and every tool call answers with the coded error. It tries again at each call, so a store that
    comes back is used. Settings that could not even be read are passed as the error that said so.

    Where the settings say so (`prune_every`, `keep`), the store is pruned meanwhile.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    settings = _with_allowed_dirs(settings)
    opener = _opener(settings)
    try:
        opener()
    except SandpointError as error:
        logger.warning("%s: %s", error.code, error)
    except Exception:
        logger.exception("the store and the sandbox could not be opened")
    allowed_dirs = settings.allowed_dirs if isinstance(settings, Settings) else None
    server = build_lazy_server(opener, allowed_dirs=allowed_dirs)

    async def run() -> None:
        end_input = _relay_stdin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_on_signal, end_input)
            if isinstance(settings, Settings) and settings.prune_every is not None:
                tasks.start_soon(partial(prune_regularly, opener, settings.keep, every_s=settings.prune_every * 3600))
            await server.run_stdio_async()
            tasks.cancel_scope.cancel()

    try:
        anyio.run(run)
    except* BrokenPipeError:
        logger.warning("the client closed its end before the last answer")


def _with_allowed_dirs(settings: Settings | SandpointError) -> Settings | SandpointError:
    if isinstance(settings, SandpointError) or settings.allowed_dirs is not None:
        return settings
    try:
        return settings.model_copy(update={"allowed_dirs": (str(Path.cwd().resolve()),)})
    except OSError as error:
        return InvalidBackupConfigError(
            f"the server's working directory cannot be found ({error.strerror}), and SANDPOINT_ALLOWED_DIRS "
            "is not set; set it to the directories that may be backed up, separated by ':'"
        )


def _opener(settings: Settings | SandpointError) -> Callable[[], BackupService]:
    @cache
    def opener() -> BackupService:
        if isinstance(settings, SandpointError):
            raise settings.with_traceback(None)
        return open_service(settings)

    return opener


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
