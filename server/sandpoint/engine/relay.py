"""Files through the server, for engines that cannot reach the store themselves."""

from collections.abc import Iterator
from typing import Protocol

from sandpoint.engine.tools import Check


class Relay(Protocol):
    """The server's own client of a store, called from the engine's threads.

    Raises, everywhere: `StoreUnavailableError` where the store cannot be reached, read or written.
    """

    def read(self, key: str) -> Iterator[bytes]:
        """Yield a file in blocks of some size.

        Raises:
            BackupIntegrityError: There is no such file.
        """
        ...

    def write(self, key: str, path: str, check: Check) -> None:
        """Write a file to the store, whole or not at all."""
        ...
