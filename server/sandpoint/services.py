"""Several sandboxes with one store: a service for each, opened when it is asked for."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import anyio

from sandpoint.errors import SandpointError
from sandpoint.models import (
    ForkResult,
    ForkTargets,
    Mode,
    Progress,
    Report,
    RestoreResult,
    check_options,
)
from sandpoint.sandboxes import AllowedSandboxes
from sandpoint.sandboxes.names import check_name
from sandpoint.service import BackupService, open_service, with_done
from sandpoint.settings import Settings
from sandpoint.stores import Store, open_store

MAX_OPEN = 64
"""Sandboxes that are open at once, of those that no operation uses; as many may be in use."""

MAX_SIDE_BY_SIDE = 8
"""Sandboxes that one fork works in at once."""


class OpenService(Protocol):
    """Opens a service by settings that name its sandbox, as `open_service` does."""

    def __call__(
        self, settings: Settings, *, allowed: AllowedSandboxes | None = None, store: Store | None = None
    ) -> BackupService:
        """Return the service."""
        ...


class ServiceSource(Protocol):
    """Where services of sandboxes are had from; see `Services`."""

    def check(self, name: str | None) -> str:
        """Return the name of a sandbox that may be used."""
        ...

    def use(self, name: str | None = None) -> AbstractAsyncContextManager[BackupService]:
        """Return the service of a sandbox for a block."""
        ...

    def use_store(self) -> AbstractAsyncContextManager[BackupService]:
        """Return a service for what concerns the store alone."""
        ...


@dataclass
class _Opened:
    service: BackupService
    users: int = 0


class Services:
    """The services of several sandboxes with one store, each for as long as it is used or among the last used.

    Operations on different sandboxes run side by side, those on one in order. To be closed, or used in `async with`.
    Implements `ServiceSource`.
    """

    def __init__(self, settings: Settings, *, opener: OpenService = open_service, max_open: int = MAX_OPEN) -> None:
        """Nothing is opened yet.

        Args:
            settings: Of them all. `sandboxes` says which may be named (None: any), `sandbox` which is meant where none
                is.
            opener: Opens a service by settings that name its sandbox.
            max_open: How many are kept open.
        """
        self._settings = settings
        self._allowed = None if settings.sandboxes is None else AllowedSandboxes(settings.sandboxes)
        self._opener = opener
        self._store: Store | None = None
        self._max_open = max_open
        self._in_use = anyio.Semaphore(max_open)
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    def check(self, name: str | None) -> str:
        """Return the name of a sandbox that may be used, by default that of the settings; nothing is opened.

        Raises:
            InvalidBackupConfigError: It may not be used.
        """
        name = self._settings.sandbox if name is None else name
        return check_name(name) if self._allowed is None else self._allowed.check(name)

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[BackupService]:
        """Yield the service of a sandbox; it stays open for the block, and mostly for longer.

        Not within another such block: where all are in use, one waits for another's end.

        Args:
            name: `local` or `docker:NAME`; by default the settings'.

        Raises:
            InvalidBackupConfigError: It may not be used.
        """
        async with self._using(self.check(name), self._allowed) as service:
            yield service

    @asynccontextmanager
    async def use_store(self) -> AsyncIterator[BackupService]:
        """Yield a service for what concerns the store alone: whether its sandbox may be used does not matter."""
        async with self._using(self._settings.sandbox, None) as service:
            yield service

    @asynccontextmanager
    async def _using(self, name: str, allowed: AllowedSandboxes | None) -> AsyncIterator[BackupService]:
        key = name if allowed is not None else f"{name} for the store"
        async with self._in_use:
            opened = self._opened.get(key)
            if opened is None:
                opened = self._opened[key] = _Opened(self._open(name, allowed))
            opened.users += 1
            self._opened.move_to_end(key)
            try:
                await self._close_idle()
                yield opened.service
            finally:
                opened.users -= 1

    def _open(self, name: str, allowed: AllowedSandboxes | None) -> BackupService:
        if self._store is None:
            self._store = open_store(self._settings.store, self._settings)
        settings = self._settings.model_copy(update={"sandbox": name})
        return self._opener(settings, allowed=allowed, store=self._store)

    async def _close_idle(self) -> None:
        """Close those that were not used for longest, of more than may stay open."""
        while len(self._opened) > self._max_open:
            name = next((name for name, opened in self._opened.items() if not opened.users), None)
            if name is None:
                return
            await self._opened.pop(name).service.close()

    async def close(self) -> None:
        """End what was started for the sandboxes, cancelled or not; to be used no more while it runs."""
        with anyio.CancelScope(shield=True):
            while self._opened:
                _, opened = self._opened.popitem()
                await opened.service.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def fork_to(
    services: ServiceSource,
    backup_id: str,
    targets: Iterable[tuple[str, str]],
    *,
    mode: Mode = "auto",
    paths: Iterable[str] = (),
    dry_run: bool = False,
    undo: bool = True,
    expected: Mapping[tuple[str, str], str] | None = None,
    report: Report | None = None,
) -> ForkResult:
    """Bring a backup back in several sandboxes, side by side: independent trees, of layers fetched only once.

    Args:
        services: Of the sandboxes.
        backup_id: Which.
        targets: Sandboxes and directories; a sandbox may come more than once, its directories not within another.
        mode: As for `BackupService.restore`.
        paths: Restore only these, relative to the directories (mode `copy`).
        dry_run: Change nothing, and return what would change.
        undo: Back up the present state of each first, if it differs.
        expected: Fingerprints by sandbox and directory, which each sandbox is checked for as by `BackupService.fork`.
        report: Told of progress.

    Raises:
        InvalidBackupConfigError: A sandbox may not be used; nothing was done.
        BackupNotFoundError, BackupExpiredError, BackupIntegrityError: As for `BackupService.fork`.
        BackupCreateError, BackupRestoreError, SandboxUnavailableError: It failed in one sandbox, and was not begun
            in others after that. The message names what is done; it stays so.
    """
    dirs_by_sandbox = _by_sandbox(services, targets)
    fingerprints: dict[str, dict[str, str]] = {}
    for (name, directory), fingerprint in (expected or {}).items():
        fingerprints.setdefault(services.check(name), {})[directory] = fingerprint
    wanted = tuple(paths)
    done: dict[str, Sequence[RestoreResult]] = {}
    failed: list[tuple[str, SandpointError]] = []
    limiter = anyio.CapacityLimiter(MAX_SIDE_BY_SIDE)

    async def tell() -> None:
        if report is not None:
            await report(Progress(phase="restoring in sandboxes", done=len(done), total=len(dirs_by_sandbox)))

    async def fork_in(name: str, dirs: Sequence[str]) -> None:
        async with limiter:
            if failed:
                return
            try:
                async with services.use(name) as service:
                    result = await service.fork(
                        backup_id,
                        dirs,
                        mode=mode,
                        paths=wanted,
                        dry_run=dry_run,
                        undo=undo,
                        expected=fingerprints.get(name),
                    )
                done[name] = [each.model_copy(update={"sandbox": name}) for each in result.restores]
                await tell()
            except SandpointError as error:
                failed.append((name, error))

    await tell()
    async with anyio.create_task_group() as tasks:
        for name, dirs in dirs_by_sandbox.items():
            tasks.start_soon(fork_in, name, dirs)
    restores = tuple(each for name in dirs_by_sandbox for each in done.get(name, ()))
    if failed:
        raise _failure(failed, restores)
    return ForkResult(success=True, id=restores[0].id, restores=restores)


def _by_sandbox(services: ServiceSource, targets: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    options = check_options(ForkTargets, {"targets": tuple(targets)})
    dirs: dict[str, list[str]] = {}
    for name, directory in options.targets:
        dirs.setdefault(services.check(name), []).append(directory)
    return dirs


def _failure(failed: Sequence[tuple[str, SandpointError]], done: Sequence[RestoreResult]) -> SandpointError:
    (name, first), *others = failed
    also = "".join(f"; {other}: {error}" for other, error in others)
    told = type(first)(f"{name}: {first}{also}")
    vars(told).update(vars(first))
    return with_done(told, done)
