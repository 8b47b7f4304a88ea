"""The services that a server works with, however little of its settings can be used."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

from anyio.abc import TaskGroup

from sandpoint.engine.directory import is_system
from sandpoint.errors import InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server.confirm import Confirm
from sandpoint.mcp_server.schedule import prune_regularly
from sandpoint.mcp_server.telemetry import TracedService
from sandpoint.mcp_server.where import Where
from sandpoint.sandboxes import AllowedSandboxes
from sandpoint.service import BackupService, open_service
from sandpoint.services import Services
from sandpoint.settings import LOCAL, Settings
from sandpoint.stores import Store

logger = logging.getLogger(__name__)

CLAUDE_ENTRYPOINT = "CLAUDE_CODE_ENTRYPOINT"
"""By which Claude Code tells the programs it starts how it was started itself."""

HEADLESS = frozenset({"sdk-cli", "sdk-py"})
"""Its values where no question can be shown: `claude -p`, and the Agent SDK for Python. Seen with 2.1.330."""


class Unusable:
    """Services of settings that could not be read: the error that said so is what every use gives."""

    def __init__(self, error: SandpointError) -> None:
        self._error = error

    def check(self, name: str | None) -> str:
        """Raise the error."""
        raise self._error.with_traceback(None)

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[BackupService]:
        """Raise the error."""
        self.check(name)
        yield  # type: ignore[misc]  # what is before it makes this a generator only

    def use_store(self) -> AbstractAsyncContextManager[BackupService]:
        """Raise the error."""
        return self.use()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """There is nothing to close."""


def open_services(settings: Settings | SandpointError) -> tuple[Services | Unusable, Where]:
    """Return the services of a server, and where they work; settings that could not be read are the error that said so.

    Where the settings name no allowed directories, the working directory is the one of this machine, and none is where
    that is the system's; in a container any but the system's. Nothing is opened yet.
    """
    if isinstance(settings, Settings):
        return Services(settings, opener=_open_confined), _where(settings)
    return Unusable(settings), Where()


def who_confirms(settings: Settings | SandpointError, environment: Mapping[str, str] | None = None) -> Confirm:
    """Return whether users are asked before their files change.

    Args:
        settings: What they say counts, if they can be read.
        environment: Of the one client, where it started the server. Headless Claude Code says that it can ask, and
            answers every question with "cancel" at once: there, nobody is asked.
    """
    if isinstance(settings, Settings) and settings.confirm == "never":
        return "never"
    return "never" if (environment or {}).get(CLAUDE_ENTRYPOINT) in HEADLESS else "auto"


def start_upkeep(tasks: TaskGroup, settings: Settings | SandpointError, services: Services | Unusable) -> None:
    """Prune the store meanwhile, where the settings say so."""
    if isinstance(settings, Settings) and settings.prune_every is not None:
        tasks.start_soon(partial(prune_regularly, services, settings.keep, every_s=settings.prune_every * 3600))


async def try_out(services: Services | Unusable) -> None:
    """Open the store and the sandbox once; log why that cannot be done."""
    try:
        async with services.use_store():
            pass
    except SandpointError as error:
        logger.warning("%s: %s", error.code, error)
    except Exception:
        logger.exception("the store and the sandbox could not be opened")


def _where(settings: Settings) -> Where:
    allowed_dirs = settings.allowed_dirs
    if settings.sandboxes is None:
        with suppress(SandpointError):  # told at every call
            allowed_dirs = _confined(settings).allowed_dirs
    return Where(allowed_dirs, settings.sandbox, settings.sandboxes)


def _open_confined(
    settings: Settings, *, allowed: AllowedSandboxes | None = None, store: Store | None = None
) -> BackupService:
    return open_service(_confined(settings), allowed=allowed, store=store, kind=TracedService)


def _confined(settings: Settings) -> Settings:
    """Return settings of a sandbox whose directories are limited: on this machine to some, if only by default."""
    if settings.allowed_dirs is not None or settings.sandbox != LOCAL:
        return settings
    try:
        here = str(Path.cwd().resolve())
    except OSError as error:
        raise InvalidBackupConfigError(
            f"the server's working directory cannot be found ({error.strerror}), and SANDPOINT_ALLOWED_DIRS "
            "is not set; set it to the directories that may be backed up, separated by ':'"
        ) from error
    if is_system(here):  # where graphical clients and service managers start programs; nobody has allowed it
        return settings.model_copy(update={"allowed_dirs": ()})
    return settings.model_copy(update={"allowed_dirs": (here,)})
