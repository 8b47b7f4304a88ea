"""Directories in a running Docker container, which needs nothing for it: no tools, no capabilities, no credentials."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from shlex import quote
from typing import TYPE_CHECKING, Literal, TypeVar

from sandpoint.engine.freezing import Freezer
from sandpoint.engine.operations import Engine
from sandpoint.errors import InvalidBackupConfigError, SandboxUnavailableError, SandpointError
from sandpoint.models import Capabilities, LostOverlay
from sandpoint.sandboxes.docker import doctor, upkeep
from sandpoint.sandboxes.docker.archive import ArchiveWay
from sandpoint.sandboxes.docker.direct import DirectWay
from sandpoint.sandboxes.docker.freezer import ContainerFreezer, forget_gone, heal, is_noted
from sandpoint.sandboxes.docker.helper import HelperWay
from sandpoint.sandboxes.docker.host import DockerHost, Target, sandbox_id_of, usual_host
from sandpoint.sandboxes.docker.ways import OpenEngine, Way, WayClosedError, WayName, WaySettings
from sandpoint.sandboxes.engine_sandbox import EngineSandbox
from sandpoint.sandboxes.names import AllowedSandboxes

if TYPE_CHECKING:
    from docker.models.containers import Container

Result = TypeVar("Result")

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
        allowed: AllowedSandboxes | None = None,
    ) -> None:
        """Describe the sandbox; nothing is asked of an engine yet.

        Args:
            reference: The container's name, its id, the beginning of that, or `label=KEY=VALUE`.
            settings: What the ways in need to know.
            way: The way in; `auto` is the first that is open.
            allowed_dirs: Directories in it that may be used, with all below them; None allows any but the system's.
            host: The Docker engine; by default that of the usual environment.
            allowed: What the container must be called, whatever the reference is; by default anything.
        """
        super().__init__(self._engine, allowed_dirs=allowed_dirs)
        self._reference = reference
        self._allowed_names = allowed
        self._host = host or usual_host()
        self._state_dir = settings.state_dir
        self._way = way
        self._all_ways = [make(self._host, settings) for make in WAYS]
        self._ways = [each for each in self._all_ways if way in {"auto", each.name}]
        self._lock = threading.Lock()
        self._open: OpenEngine | None = None
        self._container_entered: Target | None = None

    @property
    def option(self) -> str:
        """What a command line needs to mean it."""
        return f" --sandbox {quote(f'docker:{self._reference}')}"

    async def id(self) -> str:
        """Return `docker:` and the first 12 digits of the container's id; it need not run."""
        return await self._in_thread(self._id)

    def _id(self) -> str:
        with self._lock:
            if self._open is not None and self._open.is_alive:
                return self._open.id()
        return sandbox_id_of(str(self._container().id))

    def _container(self) -> "Container":
        self._host.join(self)
        container = self._host.container(self._reference)
        self._check_name(str(container.name))
        return container

    def _target(self) -> Target:
        self._host.join(self)
        target = self._host.find(self._reference)
        self._check_name(target.name)
        return target

    def _check_name(self, name: str) -> None:
        if self._allowed_names is not None:
            self._allowed_names.check_container(self._reference, name)

    def _engine(self) -> Engine:
        with self._lock:
            if self._open is None or not self._open.is_alive:
                self._close_engine()
                self._container_entered = self._target()
                self._open = self._first_open(self._container_entered)
            return self._open

    def _found(self) -> Target:
        return self._container_entered or self._target()

    def _enter(self, arrival: object) -> Engine:
        engine = super()._enter(arrival)
        try:
            heal(self._host, self._found())
        except BaseException:
            engine.leave()
            raise
        return engine

    async def check_freeze(self) -> None:
        """Refuse nothing: whether a container can be paused, Docker says when it comes to that."""

    def _freezer(self) -> AbstractContextManager[Freezer]:
        return ContainerFreezer(self._host, self._found())

    def _first_open(self, target: Target) -> OpenEngine:
        closed = []
        for way in self._ways:
            try:
                return way.open(target)
            except WayClosedError as error:
                closed.append(f"{way.name}: {error}")
        raise SandboxUnavailableError(
            f"container {target.name} cannot be reached; {'; '.join(closed)}. See: sandpoint doctor{self.option}"
        )

    def _watch(self, engine: Engine, work: Callable[[], Result]) -> Result:
        """Ask something of an engine; what it says is not worth anything once the container has ended.

        Raises:
            SandboxUnavailableError: It has.
        """
        try:
            result = work()
        except (OSError, SandpointError) as error:
            self._check_alive(engine, error)
            raise
        self._check_alive(engine, None)
        return result

    def _check_alive(self, engine: Engine, error: Exception | None) -> None:
        opened = self._open
        if opened is engine and not opened.is_alive:
            why = f" ({error})" if error is not None else ""
            raise SandboxUnavailableError(
                f"container {self._reference} was stopped, restarted or removed in the middle{why}; see that it runs, "
                "and do it again",
                lost=True,
            ) from error

    def _close_engine(self) -> None:
        engine, self._open = self._open, None
        if engine is not None:
            engine.close()

    async def lost_overlays(self) -> list[LostOverlay]:
        """Return the overlays that a restart took away, unless a helper would have to be started to know."""
        return await self._in_thread(self._lost_overlays)

    def _lost_overlays(self) -> list[LostOverlay]:
        with self._lock:
            is_entered = self._open is not None and self._open.is_alive
        if not is_entered and not self._is_direct():
            return []
        return self._engine().lost_overlays()

    def _is_direct(self) -> bool:
        first = self._ways[0]
        try:
            return first.name == "direct" and bool(first.check(self._target()))
        except WayClosedError:
            return False

    async def capabilities(self) -> Capabilities:
        """Return what can be done, by which way; of a container that does not run, or is not there, why not."""
        if await self._in_thread(self._is_noted):
            async with self.turn():
                pass  # a backup that pauses it ends; one that died is cleared up after
        return await self._in_thread(self._capabilities)

    def _is_noted(self) -> bool:
        try:
            return is_noted(self._host, self._target().id)
        except (SandboxUnavailableError, InvalidBackupConfigError):
            return False  # what is the matter is told below

    def _capabilities(self) -> Capabilities:
        self._host.join(self)
        items = [doctor.describe_engine(self._host)]
        found = Capabilities(sandbox=f"container {self._reference}", overlay=None, items=())
        if items[0].available:
            try:
                target = self._target()
            except (SandboxUnavailableError, InvalidBackupConfigError) as error:
                items.append(doctor.describe_missing(error))
            else:
                items.append(doctor.describe_target(target))
                ways, used = doctor.describe_ways(self._all_ways, self._way, target)
                items += ways
                if used is not None:
                    found = self._engine().capabilities()
                found = found.model_copy(
                    update={"sandbox": f"container {target.name} ({target.id[:12]}), {used or 'no'} way"}
                )
            items += upkeep.describe(self._host)
        return found.model_copy(update={"items": (*items, *found.items)})

    async def clear_leftovers(self, *, dry_run: bool = False) -> list[str]:
        """Remove what is kept on the engine for containers that are no more; see `upkeep.clear`."""
        return await self._in_thread(lambda: self._clear_leftovers(dry_run=dry_run))

    def _clear_leftovers(self, *, dry_run: bool) -> list[str]:
        self._host.join(self)
        if not dry_run:
            forget_gone(self._host)
        return upkeep.clear(self._host, self._state_dir, dry_run=dry_run)

    async def close(self) -> None:
        """Leave the container, and end what was started for that."""
        await self._in_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._close_engine()
        self._host.leave(self)
