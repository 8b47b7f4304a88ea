"""The archive way: nothing but Docker's own API, for engines that refuse all else; `copy` restores only."""

from sandpoint.sandboxes.docker.host import DockerHost, Target
from sandpoint.sandboxes.docker.ways import OpenEngine, WayClosedError, WayName, WaySettings


class ArchiveWay:
    """Implements `Way`."""

    name: WayName = "archive"

    def __init__(self, host: DockerHost, settings: WaySettings) -> None:
        """Take an engine; nothing is asked yet."""
        self._host = host
        self._settings = settings

    def check(self, target: Target) -> str:
        """See `Way`."""
        raise WayClosedError("not built yet")

    def open(self, target: Target) -> OpenEngine:
        """See `Way`."""
        raise WayClosedError("not built yet")
