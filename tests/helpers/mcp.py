"""What tests that speak MCP share."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import anyio
from mcp import StdioServerParameters
from mcp_types import CallToolResult, TextContent

from sandpoint.errors import PlanChangedError
from sandpoint.models import (
    Backup,
    BackupPage,
    Changes,
    ContentChanges,
    DeleteResult,
    ForkResult,
    Mode,
    Progress,
    PruneResult,
    Report,
    RestoreResult,
    VerifyResult,
)
from sandpoint.service import BackupService

ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"


def make_backup(**changes: Any) -> Backup:
    """Return a small backup; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "id": ID,
        "dir": "/work/app",
        "name": None,
        "kind": "full",
        "parent_id": None,
        "size_bytes": 10,
        "total_bytes": 20,
        "file_count": 3,
        "created_at": datetime(2026, 11, 21, 20, 46, 50, 123456, tzinfo=UTC),
        "expires_at": datetime(2026, 11, 24, 20, 46, 50, 123456, tzinfo=UTC),
    }
    return Backup(**(fields | changes))


@dataclass
class FakeService(BackupService):
    """Remembers what it was asked; raises its `error`; with `hang`, works until it is cancelled."""

    changes: Changes = field(default_factory=lambda: Changes(added=("new.txt",)))
    backup: Backup = field(default_factory=make_backup)
    get_error: Exception | None = None
    missing_dirs: Sequence[str] = ()
    restore_mode: Literal["overlay", "copy"] = "copy"
    unmounted: bool = False
    error: Exception | None = None
    hang: bool = False
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cancelled: anyio.Event = field(default_factory=anyio.Event)
    started: anyio.Event = field(default_factory=anyio.Event)

    async def close(self) -> None:
        """There is nothing to end."""

    async def _asked(self, operation: str, report: Report | None = None, **options: Any) -> None:
        self.calls.append((operation, options))
        if self.error is not None:
            raise self.error
        if report is not None:
            await report(Progress(phase="reading", done=1, total=4))
        if self.hang:
            self.started.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled.set()

    async def create(
        self,
        dir: str,
        *,
        name: str | None = None,
        description: str | None = None,
        ttl: float = 0,
        use_gitignore: bool = False,
        excludes: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        full: bool = False,
        freeze: bool = False,
        if_changed: bool = False,
        report: Report | None = None,
    ) -> Backup:
        await self._asked(
            "create",
            report,
            dir=dir,
            name=name,
            description=description,
            ttl=ttl,
            use_gitignore=use_gitignore,
            excludes=list(excludes),
            metadata=metadata,
            full=full,
            freeze=freeze,
            **({"if_changed": True} if if_changed else {}),
        )
        return make_backup(dir=dir, name=name)

    async def restore(
        self,
        backup_id: str,
        *,
        dir: str | None = None,
        mode: Mode = "auto",
        paths: Iterable[str] = (),
        dry_run: bool = False,
        undo: bool = True,
        expected: str | None = None,
        report: Report | None = None,
    ) -> RestoreResult:
        await self._asked(
            "restore",
            report,
            backup_id=backup_id,
            dir=dir,
            mode=mode,
            paths=list(paths),
            dry_run=dry_run,
            undo=undo,
        )
        if expected not in {None, self.changes.fingerprint()}:
            raise PlanChangedError("something else wrote to it")
        undo_id = None if dry_run else ID
        return RestoreResult(
            success=True,
            id=backup_id,
            dir=dir or "/work/app",
            mode=self.restore_mode,
            dry_run=dry_run,
            changes=self.changes,
            unmounted=self.unmounted,
            undo_id=undo_id,
        )

    async def fork(
        self,
        backup_id: str,
        dirs: Iterable[str],
        *,
        mode: Mode = "auto",
        paths: Iterable[str] = (),
        dry_run: bool = False,
        undo: bool = True,
        expected: Mapping[str, str] | None = None,
        report: Report | None = None,
    ) -> ForkResult:
        wanted = [*dirs]
        await self._asked("fork", report, backup_id=backup_id, dirs=wanted, mode=mode, undo=undo)
        restores = tuple(
            RestoreResult(success=True, id=backup_id, dir=dir, mode="copy", changes=self.changes, undo_id=None)
            for dir in wanted
        )
        return ForkResult(success=True, id=backup_id, restores=restores)

    async def get(self, backup_id: str) -> Backup:
        await self._asked("get", backup_id=backup_id)
        if self.get_error is not None:
            raise self.get_error
        return self.backup

    async def exists(self, dir: str) -> bool:
        return dir not in self.missing_dirs

    async def list(
        self,
        *,
        dir: str | None = None,
        name: str | None = None,
        sandbox_id: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
        include_expired: bool = False,
    ) -> BackupPage:
        await self._asked(
            "list",
            dir=dir,
            name=name,
            sandbox_id=sandbox_id,
            limit=limit,
            cursor=cursor,
            include_expired=include_expired,
        )
        return BackupPage(backups=())

    async def diff(
        self,
        backup_id: str,
        other_id: str | None = None,
        *,
        dir: str | None = None,
        paths: Iterable[str] = (),
        report: Report | None = None,
    ) -> Changes:
        await self._asked("diff", report, backup_id=backup_id, other_id=other_id, dir=dir, paths=list(paths))
        return self.changes

    async def diff_contents(
        self,
        backup_id: str,
        other_id: str | None = None,
        *,
        dir: str | None = None,
        paths: Iterable[str] = (),
        max_bytes: int = 0,
        report: Report | None = None,
    ) -> ContentChanges:
        await self._asked("diff_contents", report, backup_id=backup_id, other_id=other_id, dir=dir, paths=list(paths))
        return ContentChanges(**dict(self.changes))

    async def verify(self, backup_id: str, *, report: Report | None = None) -> VerifyResult:
        await self._asked("verify", report, backup_id=backup_id)
        return VerifyResult(id=backup_id, ok=False, checked_bytes=7, problem="the manifest was altered")

    async def delete(self, backup_id: str) -> DeleteResult:
        await self._asked("delete", backup_id=backup_id)
        return DeleteResult(id=backup_id, freed_bytes=5)

    async def prune(
        self,
        *,
        keep_last: int | None = None,
        keep_hourly: int | None = None,
        keep_daily: int | None = None,
        keep_weekly: int | None = None,
        keep_names: Iterable[str] = (),
        dir: str | None = None,
        dry_run: bool = False,
    ) -> PruneResult:
        await self._asked("prune", keep_last=keep_last, keep_daily=keep_daily, keep_names=tuple(keep_names))
        return PruneResult(removed=(), abandoned=(), freed_bytes=0)


def text(result: CallToolResult) -> str:
    """Return what a model reads of a result."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def code(result: CallToolResult) -> str | None:
    """Return the error's code as a program finds it."""
    return (result.meta or {}).get("sandpoint/code")


def sandpoint_server(cwd: Path, *, store: Path, state: Path, **environment: str) -> StdioServerParameters:
    """Return how to start a real server in a directory, of the code under test; `environment` wins."""
    under_test = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return StdioServerParameters(
        command=str(Path(sys.executable).with_name("sandpoint")),
        args=["serve"],
        cwd=cwd,
        env=under_test | {"SANDPOINT_STORE": store.as_uri(), "SANDPOINT_STATE_DIR": str(state)} | environment,
    )
