"""The archive way: nothing but Docker's own API, for engines that refuse all else; `copy` restores only.

What it works on is a copy of the directory in the server's state directory, fetched in each turn. Docker's archives
lose parts of seconds, extended attributes (but file capabilities) and sockets: backups taken this way lack them. A
restore sends all that a backup has, but sockets, to the files that it brings.
"""

import os

from sandpoint.engine.state import State
from sandpoint.sandboxes.docker.archive_api import ContainerArchive, RefusedError
from sandpoint.sandboxes.docker.archive_engine import ArchiveEngine
from sandpoint.sandboxes.docker.host import DockerHost, Target
from sandpoint.sandboxes.docker.mirror import MirrorRoot
from sandpoint.sandboxes.docker.upkeep import FOLDER, SANDBOXES
from sandpoint.sandboxes.docker.ways import OpenEngine, WayClosedError, WayName, WaySettings


class ArchiveWay:
    """Implements `Way`."""

    name: WayName = "archive"

    def __init__(self, host: DockerHost, settings: WaySettings) -> None:
        """Take an engine; nothing is asked yet."""
        self._host = host
        self._settings = settings

    def check(self, target: Target) -> str:
        """See that the engine shows the container's files; see `Way`."""
        if os.geteuid() != 0:
            raise WayClosedError(
                "Sandpoint does not run as root here, so that a copy of the directory cannot keep the owners of files"
            )
        api = ContainerArchive(self._host, target)
        try:
            kind = api.kind_of("/")
        except RefusedError as error:
            raise WayClosedError(f"the engine does not show the container's files: {error}") from None
        if kind != "dir":
            raise WayClosedError("the engine does not show the container's files")
        return "by Docker's API: copies there and back"

    def open(self, target: Target) -> OpenEngine:
        """Return an engine that works on copies; see `Way`."""
        self.check(target)
        shared = os.path.join(self._settings.state_dir, FOLDER)
        folder = os.path.join(shared, SANDBOXES, target.id)
        root = MirrorRoot(os.path.join(folder, "mirror", "root"))
        state = State(
            folder,
            cache_bytes=self._settings.cache_bytes,
            relay=self._settings.relay,
            root=root,
            sandbox_id=target.sandbox_id,
            shared=shared,
        )
        return ArchiveEngine(ContainerArchive(self._host, target), state, root)
