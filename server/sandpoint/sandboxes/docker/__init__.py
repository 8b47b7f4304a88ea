"""Directories in a running Docker container, which needs nothing for it: no tools, no capabilities, no credentials."""

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from sandpoint.engine.operations import Engine
from sandpoint.errors import SandboxUnavailableError
from sandpoint.models import Capabilities, Capability
from sandpoint.sandboxes.docker.archive import ArchiveWay
from sandpoint.sandboxes.docker.direct import DirectWay
from sandpoint.sandboxes.docker.helper import HelperWay
from sandpoint.sandboxes.docker.host import DockerHost, Target
from sandpoint.sandboxes.docker.ways import OpenEngine, Way, WayClosedError, WayName, WaySettings
from sandpoint.sandboxes.engine_sandbox import EngineSandbox

WAYS: tuple[Callable[[DockerHost, WaySettings], Way], ...] = (DirectWay, HelperWay, ArchiveWay)
"""In the order in which they are tried."""


class DockerSandbox(EngineSandbox):
    """A container. Implements `Sandbox`.

    It is entered at the first operation, and again whenever it was started anew in between.
    """

    def __init__(
        self,
        reference: str,
        settings: WaySettings,
        *,
        way: Literal["auto"] | WayName = "auto",
        allowed_dirs: Sequence[str] | None = None,
        host: DockerHost | None = None,
    ) -> None:
        """Describe the sandbox; nothing is asked of an engine yet.

        Args:
            reference: The container's name, its id, the beginning of that, or `label=KEY=VALUE`.
            settings: What the ways in need to know.
            way: The way in; `auto` is the first that is open.
            allowed_dirs: Directories in it that may be used, with all below them; None allows any but the system's.
            host: The Docker engine; by default that of the usual environment.
        """
        super().__init__(self._engine, allowed_dirs=allowed_dirs)
        self._reference = reference
        self._host = host or DockerHost()
        made = [make(self._host, settings) for make in WAYS]
        self._ways = [each for each in made if way in {"auto", each.name}]
        self._lock = threading.Lock()
        self._open: OpenEngine | None = None

    async def id(self) -> str:
        """Return `docker:` and the first 12 digits of the container's id; it need not run."""
        return await self._in_thread(lambda: f"docker:{str(self._host.container(self._reference).id)[:12]}")

    def _engine(self) -> Engine:
        with self._lock:
            if self._open is None or not self._open.is_alive:
                self._close_engine()
                self._open = self._first_open(self._host.find(self._reference))
            return self._open

    def _first_open(self, target: Target) -> OpenEngine:
        closed = []
        for way in self._ways:
            try:
                return way.open(target)
            except WayClosedError as error:
                closed.append(f"{way.name}: {error}")
        raise SandboxUnavailableError(
            f"container {target.name} cannot be reached; {'; '.join(closed)}. See: sandpoint doctor --sandbox "
            f"docker:{self._reference}"
        )

    def _close_engine(self) -> None:
        engine, self._open = self._open, None
        if engine is not None:
            engine.close()

    async def capabilities(self) -> Capabilities:
        """Return which ways into the container are open, and what can be done by the first of them."""
        return await self._in_thread(self._capabilities)

    def _capabilities(self) -> Capabilities:
        target = self._host.find(self._reference)
        items = [_describe(way, target) for way in self._ways]
        found = self._engine().capabilities()
        used = next((item.name for item in items if item.available), "")
        return found.model_copy(
            update={"sandbox": f"container {target.name} ({target.id[:12]}), {used}", "items": (*items, *found.items)}
        )

    async def close(self) -> None:
        """Leave the container, and end what was started for that."""
        await self._in_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._close_engine()
        self._host.close()


def _describe(way: Way, target: Target) -> Capability:
    try:
        detail, closed = way.check(target), ""
    except WayClosedError as error:
        detail, closed = "", str(error)
    return Capability(
        name=f"{way.name} way",
        available=not closed,
        needed_for="reaching the container",
        detail=detail or closed,
    )
