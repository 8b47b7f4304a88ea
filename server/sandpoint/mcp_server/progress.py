"""Progress of a long operation as the protocol wants it: ever rising, no more often than anybody reads."""

import time
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context

from sandpoint.models import Progress

INTERVAL = 0.2
"""Seconds between two notifications of one phase."""


class ProgressReporter:
    """Pass the service's progress on to the client that asked for it.

    A phase counts for 1, so the value rises from phase to phase though each counts in its own unit; the
    message says what is happening and how far it has come. No total is sent: how many phases follow is
    not known.
    """

    def __init__(self, context: Context[Any, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._phase: str | None = None
        self._finished_phases = -1
        self._sent_value = -1.0
        self._sent_at = 0.0

    async def __call__(self, progress: Progress) -> None:
        """Tell the client, unless it was told a moment ago."""
        now = self._clock()
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._finished_phases += 1
        elif now - self._sent_at < INTERVAL:
            return
        value = self._finished_phases + _fraction(progress)
        if value <= self._sent_value:
            return
        self._sent_value, self._sent_at = value, now
        await self._context.report_progress(value, None, _describe(progress))


def _fraction(progress: Progress) -> float:
    # Below 1 always, so that the next phase is higher; without a total it rises for ever, but ever less.
    total = progress.total or progress.done + 10_000
    return round(0.999 * min(progress.done / total, 1.0), 4)


def _describe(progress: Progress) -> str:
    if progress.total:
        return f"{progress.phase}: {min(progress.done / progress.total, 1.0):.0%}"
    return f"{progress.phase}: {progress.done:,}" if progress.done else progress.phase
