"""The one service that a server was given, where several could be asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.service import BackupService


class OneService:
    """The service of the one sandbox that is served. Implements `ServiceSource`."""

    def __init__(self, service: BackupService) -> None:
        """Take it; who opened it closes it."""
        self._service = service

    def check(self, name: str | None) -> str:
        """Refuse: the tools have no argument for a name."""
        raise InvalidBackupConfigError(f"sandbox: {name!r} cannot be named here; SANDPOINT_SANDBOXES says which can be")

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[BackupService]:
        """Yield it; it stays open."""
        if name is not None:
            self.check(name)
        yield self._service

    @asynccontextmanager
    async def use_store(self) -> AsyncIterator[BackupService]:
        """Yield it."""
        yield self._service
