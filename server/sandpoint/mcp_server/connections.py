"""Connections that must say what they want in time."""

import asyncio
from typing import ClassVar, cast

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConnection(H11Protocol):
    """A connection that is closed if a request's head does not come within some seconds: uvicorn waits for ever."""

    seconds: ClassVar[float] = 30.0
    _deadline: asyncio.TimerHandle | None = None

    @classmethod
    def lasting(cls, seconds: float) -> type[asyncio.Protocol]:
        """Return the class with another time."""
        return cast(type[asyncio.Protocol], type(cls.__name__, (cls,), {"seconds": seconds}))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self.access_log = False  # its lines have whole URLs
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, if this is not all of it."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self.cycle is None or self.cycle.response_complete:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
