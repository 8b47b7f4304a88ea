"""Progress of a long operation as the protocol wants it: in percent, ever rising, no more often than anybody reads."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from mcp.server.mcpserver import Context

from sandpoint.models import Progress

INTERVAL = 0.2
"""Seconds between two notifications of one phase."""

TOTAL = 100.0

CREATE = {"comparing": 50, "reading": 50, "archiving": 85, "storing": 98}
RESTORE = {
    "reading": 30,
    "archiving": 45,
    "storing": 50,
    "fetching": 55,
    "comparing": 60,
    "extracting": 75,
    "mounting": 95,
    "checking": 78,
    "removing": 82,
    "sending": 95,
    "applying": 95,
}
FORK = RESTORE | {"restoring in sandboxes": 100}
DIFF = {"fetching": 20, "reading": 90, "comparing": 90, "extracting": 95}
VERIFY = {"verifying": 100}
"""By phase, how many percent of the operation are mostly done when it ends."""

_UNKNOWN_SHARE = 0.3
"""Of what remains, for a phase that comes when that should be over; it takes this much of the bar at most."""

_STEP = 0.01
"""By how much at least a new phase moves the bar."""

_MOST = 99.9
"""Before the end."""


class ProgressReporter:
    """Pass the service's progress on to the client that asked for it, as a percentage of the whole operation.

    How long each phase takes is not known, only how it mostly is: a phase fills the bar from where it is up to the
    phase's place in the table, by its own count where it has a total, and else ever more slowly.
    """

    def __init__(
        self,
        context: Context[Any, Any],
        phases: Mapping[str, float],
        *,
        rounds: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Report nothing yet.

        Args:
            context: Of the call.
            phases: One of the tables.
            rounds: How many times they come, for instance once a directory.
            clock: Returns seconds.
        """
        self._context = context
        self._phases = phases
        self._rounds = rounds
        self._clock = clock
        self._phase: str | None = None
        self._round = 0
        self._start = 0.0
        self._end = 0.0
        self._sent_value = -1.0
        self._sent_at = 0.0

    async def __call__(self, progress: Progress) -> None:
        """Tell the client, unless it was told a moment ago."""
        now = self._clock()
        if progress.phase != self._phase:
            self._begin(progress.phase)
            value = max(self._value(progress), self._sent_value + _STEP)
        elif now - self._sent_at < INTERVAL:
            return
        else:
            value = self._value(progress)
        await self._send(min(value, _MOST), progress.phase, now)

    async def note(self, message: str) -> None:
        """Tell what is waited for."""
        await self._send(min(max(self._sent_value, 0.0) + _STEP, _MOST), message, self._clock())

    async def finish(self) -> None:
        """Tell that it is done."""
        await self._send(TOTAL, "done", self._clock())

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._start = max(self._sent_value, 0.0)
        share = self._phases.get(phase)
        self._end = 0.0 if share is None else self._whole(share)
        if share is not None and self._end <= self._start and self._round + 1 < self._rounds:
            self._round += 1
            self._end = self._whole(share)
        if self._end <= self._start:
            self._end = self._start + (TOTAL - self._start) * _UNKNOWN_SHARE

    def _whole(self, share: float) -> float:
        return (self._round * TOTAL + share) / self._rounds

    def _value(self, progress: Progress) -> float:
        total = progress.total or progress.done + 10_000
        return round(self._start + (self._end - self._start) * min(progress.done / total, 1.0), 2)

    async def _send(self, value: float, message: str, now: float) -> None:
        if value <= self._sent_value:
            return
        self._sent_value, self._sent_at = value, now
        await self._context.report_progress(value, TOTAL, f"{message}: {int(value)}%")
