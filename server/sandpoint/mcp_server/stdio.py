"""Serving one client over stdin and stdout, until either side has had enough."""

import logging
import os
import signal
import threading
from collections.abc import Callable

import anyio

from sandpoint.errors import SandpointError
from sandpoint.mcp_server.logs import log_calls, set_up_logging
from sandpoint.mcp_server.opening import open_services, start_upkeep, try_out, who_confirms
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.telemetry import exporting
from sandpoint.settings import Settings

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
    set_up_logging(settings, style="plain", level="warning")
    services, where = open_services(settings)
    server = build_lazy_server(services, where=where, confirm=who_confirms(settings, os.environ))
    server.middleware.append(log_calls)

    async def run() -> None:
        end_input = _relay_stdin()
        async with exporting(), services, anyio.create_task_group() as tasks:
            await try_out(services)
            tasks.start_soon(_end_on_signal, end_input)
            start_upkeep(tasks, settings, services)
            await server.run_stdio_async()
            tasks.cancel_scope.cancel()

    try:
        anyio.run(run)
    except* BrokenPipeError:
        logger.warning("the client closed its end before the last answer")


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
