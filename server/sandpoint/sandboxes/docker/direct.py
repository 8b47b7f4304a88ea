"""The direct way: Sandpoint is root on the engine's host, and enters the container by its first process."""

import os
from contextlib import suppress

from sandpoint.engine.operations import LocalEngine
from sandpoint.engine.roots import ContainerRoot
from sandpoint.engine.state import State
from sandpoint.sandboxes.docker.host import DockerHost, Target
from sandpoint.sandboxes.docker.ways import WayClosedError, WayName, WaySettings


class DirectEngine(LocalEngine):
    """The engine in this process, at work in a container of this machine."""

    def __init__(self, state: State, root: ContainerRoot) -> None:
        """Take a state directory whose root is the container's."""
        super().__init__(state, "kernel")
        self._root = root

    @property
    def is_alive(self) -> bool:
        """Whether the container still runs."""
        return self._root.is_alive


class DirectWay:
    """Implements `Way` on the engine's own host."""

    name: WayName = "direct"

    def __init__(self, host: DockerHost, settings: WaySettings) -> None:
        """Take an engine; nothing is asked yet."""
        self._host = host
        self._settings = settings

    def check(self, target: Target) -> str:
        """See that this process is root where the container runs; see `Way`."""
        if os.geteuid() != 0:
            raise WayClosedError("Sandpoint does not run as root here")
        if not self._is_here(target):
            raise WayClosedError("the Docker engine runs elsewhere, or its processes cannot be seen from here")
        self._state_folder()
        return f"by process {target.pid} of this machine"

    @staticmethod
    def _is_here(target: Target) -> bool:
        """Whether the engine's number of the container's first process is that of a process here, and of that one."""
        with suppress(OSError), open(f"/proc/{target.pid}/cgroup") as groups:
            return target.id in groups.read()
        return False

    def open(self, target: Target) -> DirectEngine:
        """Enter a container; see `Way`."""
        self.check(target)
        folder = self._state_folder()
        try:
            root = ContainerRoot(target.pid, stamped=target.stamped, is_right=lambda: self._is_here(target))
        except OSError as error:
            raise WayClosedError(f"process {target.pid} cannot be entered: {error.strerror}") from error
        try:
            os.close(root.view_for_programs())
        except OSError as error:
            root.close()
            raise WayClosedError(f"its files cannot be shown ({error.strerror}): Linux 5.14 is needed") from error
        state = State(
            os.path.join(folder, "sandboxes", target.id),
            cache_bytes=self._settings.cache_bytes,
            relay=self._settings.relay,
            root=root,
            sandbox_id=target.sandbox_id,
            shared=folder,
        )
        return DirectEngine(state, root)

    def _state_folder(self) -> str:
        """Return where the state volume lies on this machine."""
        folder = self._host.state_volume()
        if not os.path.isdir(folder):
            raise WayClosedError(f"the engine's volumes are not at {folder} here")
        return folder
