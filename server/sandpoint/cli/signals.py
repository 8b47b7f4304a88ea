"""Ctrl-C and SIGTERM, as cancellation."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from sandpoint.cli.failures import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


async def until_signal(work: Callable[[], Awaitable[T]]) -> T:
    """Wait for the work; SIGINT or SIGTERM cancels it, and it is waited for while it cleans up.

    Work that is done all the same when it is cancelled counts as done. The same signal a second time ends the
    process at once, cleaned up or not.

    Raises:
        StoppedError: A signal cancelled the work.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []
    with anyio.CancelScope() as scope:

        def stop(number: int) -> None:
            received.append(number)
            loop.remove_signal_handler(number)
            scope.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, stop, number)
        try:
            return await work()
        except Exception as error:
            # Ctrl-C also reaches the programs that the work runs: that they fail is no news then.
            if received:
                raise StoppedError(received[0], str(error)) from error
            raise
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
    raise StoppedError(received[0])
