"""How much runs at once on a server that many use, so that listing never waits behind long work."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio

from sandpoint.errors import ServerBusyError
from sandpoint.mcp_server.logs import current_call
from sandpoint.service import BackupService
from sandpoint.services import ServiceSource

QUICK_OPERATIONS = 16
"""Quick operations that run at once."""

_QUICK_TOOLS = {"list_backups"}
_QUICK_METHODS = {"completion/complete"}

_STOPPING = (
    "the server is about to stop and begins nothing new; nothing was done. Call again in a few seconds: another one "
    "may have taken its place"
)


class Gate:
    """Lets so many operations in at once, those that are quick apart from the others."""

    def __init__(self, operations: int, queue_s: float) -> None:
        """Let all in that fit.

        Args:
            operations: How many that are not quick may run at once.
            queue_s: How long another one waits.
        """
        self._operations = anyio.Semaphore(operations, max_value=operations)
        self._quick = anyio.Semaphore(QUICK_OPERATIONS, max_value=QUICK_OPERATIONS)
        self._queue_s = queue_s
        self._running = 0
        self._is_closed = False
        self._idle = anyio.Event()
        self._idle.set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is let in any more."""
        return self._is_closed

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for room, and keep it for a block.

        Raises:
            ServerBusyError: There was none in time, or the gate is closed.
        """
        call = current_call.get()
        is_quick = call.tool in _QUICK_TOOLS or call.method in _QUICK_METHODS
        room = self._quick if is_quick else self._operations
        await self._wait(room)
        self._running += 1
        if self._running == 1:
            self._idle = anyio.Event()
        try:
            yield
        finally:
            room.release()
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _wait(self, room: anyio.Semaphore) -> None:
        if self._is_closed:
            raise ServerBusyError(_STOPPING)
        try:
            room.acquire_nowait()
        except anyio.WouldBlock:
            await self._queue(room)
        if self.is_closed:  # meanwhile
            room.release()
            raise ServerBusyError(_STOPPING)

    async def _queue(self, room: anyio.Semaphore) -> None:
        try:
            with anyio.fail_after(self._queue_s):
                await room.acquire()
        except TimeoutError:
            raise ServerBusyError(
                f"{room.max_value} operations of other clients were running, and none ended within {self._queue_s:g} "
                "seconds; nothing was done. Call again in a minute"
            ) from None

    def close(self) -> None:
        """Let nothing in any more; what is in goes on."""
        self._is_closed = True

    async def wait_idle(self) -> None:
        """Wait until nothing runs."""
        while self._running:
            await self._idle.wait()


class GatedServices:
    """Services that are used through a gate. Implements `ServiceSource`."""

    def __init__(self, services: ServiceSource, gate: Gate) -> None:
        """Put a gate before services."""
        self._services = services
        self._gate = gate

    def check(self, name: str | None) -> str:
        """Return the name of a sandbox that may be used."""
        return self._services.check(name)

    def use(self, name: str | None = None) -> AbstractAsyncContextManager[BackupService]:
        """Return the service of a sandbox for a block, once there is room."""
        return self._through(lambda: self._services.use(name))

    def use_store(self) -> AbstractAsyncContextManager[BackupService]:
        """Return a service for what concerns the store alone, once there is room."""
        return self._through(self._services.use_store)

    @asynccontextmanager
    async def _through(
        self, use: Callable[[], AbstractAsyncContextManager[BackupService]]
    ) -> AsyncIterator[BackupService]:
        async with self._gate.enter(), use() as service:
            yield service
