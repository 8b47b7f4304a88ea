"""The one service that a server was given, where several could be asked for."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.service import BackupService


class OneService:
    """The service of the one sandbox that is served, asked for at every call. Implements `ServiceSource`."""

    def __init__(self, open_service: Callable[[], BackupService]) -> None:
        """Take what returns it."""
        self._open_service = open_service

    def check(self, name: str | None) -> str:
        """Refuse: the tools have no argument for a name."""
        raise InvalidBackupConfigError(f"sandbox: {name!r} cannot be named here; SANDPOINT_SANDBOXES says which can be")

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[BackupService]:
        """Yield it; it stays open."""
        if name is not None:
            self.check(name)
        yield self._open_service()

    @asynccontextmanager
    async def use_store(self) -> AsyncIterator[BackupService]:
        """Yield it."""
        yield self._open_service()
