"""The seven tools: what a model reads about each (its docstring), and one call to the service."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import BeforeValidator, Field

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.progress import ProgressReporter
from sandpoint.mcp_server.results import BackupList, BackupSummary, Deleted, Difference, Forked, Restored, Verified
from sandpoint.mcp_server.strict import strict_tool
from sandpoint.models import DEFAULT_TTL, MAX_NAME, MAX_TTL, Mode
from sandpoint.service import BackupService
from sandpoint.services import ServiceSource, fork_to
from sandpoint.settings import DOCKER_PREFIX, LOCAL

MAX_PAGE = 100
"""How many backups one call of list_backups returns at most: a page is read by a model."""

MAX_DIRS = 100
"""How many directories one call of fork_backup restores to at most: the result has an entry for each."""

MAX_COMPARED = 4 << 20
"""Bytes of the patches that diff_backup chooses from: room for any one file's, and for short ones after long ones."""

ToolContext = Context[Any, Any]


def _parsed(value: object) -> object:
    # Claude Desktop sends lists and objects as JSON text; nothing else is converted.
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


Texts = Annotated[list[str] | None, BeforeValidator(_parsed)]
TextsByKey = Annotated[dict[str, str] | None, BeforeValidator(_parsed)]
BackupId = Annotated[str, Field(description="The backup's id, a UUID from create_backup or list_backups.")]
SandboxName = Annotated[str | None, Field(description="Where the directory is: 'docker:NAME' for a container.")]

SANDBOX_ARGUMENTS = ("sandbox", "sandboxes")
"""Of the tools of a server that serves several sandboxes."""


@dataclass(frozen=True)
class Where:
    """Where the tools work, as far as a model is told."""

    allowed_dirs: Sequence[str] | None = None
    """None: any but the system's."""
    sandbox: str = LOCAL
    """The one that is meant where none is named."""
    sandboxes: Sequence[str] | None = None
    """Patterns of those that may be named; None: none may."""


class OneService:
    """The service of the one sandbox that is served, asked for at every call. Implements `ServiceSource`."""

    def __init__(self, open_service: Callable[[], BackupService]) -> None:
        """Take what returns it."""
        self._open_service = open_service

    def check(self, name: str | None) -> str:
        """Refuse: the tools have no argument for a name."""
        raise InvalidBackupConfigError(f"sandbox: {name!r} cannot be named here; SANDPOINT_SANDBOXES says which can be")

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[BackupService]:
        """Yield it; it stays open."""
        if name is not None:
            self.check(name)
        yield self._open_service()

    @asynccontextmanager
    async def use_store(self) -> AsyncIterator[BackupService]:
        """Yield it."""
        yield self._open_service()


class Tools:
    """The tools, over services that are opened when they are first needed."""

    def __init__(self, services: ServiceSource) -> None:
        self._services = services

    async def create_backup(
        self,
        ctx: ToolContext,
        dir: Annotated[str, Field(description="Absolute path of the directory.")],
        name: Annotated[
            str | None, Field(description=f"Short label to find it by, at most {MAX_NAME} characters.")
        ] = None,
        description: Annotated[str | None, Field(description="What you are about to do, for later readers.")] = None,
        ttl: Annotated[
            float, Field(gt=0, le=MAX_TTL, description="Seconds that it is kept. Default: 3 days.")
        ] = DEFAULT_TTL,
        use_gitignore: Annotated[
            bool, Field(description="Leave out what git ignores; a restore does not touch it either.")
        ] = False,
        excludes: Annotated[
            Texts, Field(description="Gitignore patterns to leave out, such as 'node_modules/' or '*.log'.")
        ] = None,
        metadata: Annotated[TextsByKey, Field(description="Your own keys and values.")] = None,
        full: Annotated[bool, Field(description="Store everything again, sharing nothing with a parent.")] = False,
        freeze: Annotated[
            bool, Field(description="Pause the container for a moment: a backup of one instant, for databases.")
        ] = False,
        sandbox: SandboxName = None,
    ) -> BackupSummary:
        """Take a point-in-time backup of a directory, so that any later change in it can be undone.

        Use it before a risky step: mass edits or deletes, migrations, generated rewrites, unfamiliar
        commands. Takes moments on source trees, seconds on tens of thousands of files; the directory is not
        changed. Keep the id: restore_backup brings this state back, diff_backup shows what changed since.
        """
        async with self._services.use(sandbox) as service:
            backup = await service.create(
                dir,
                name=name,
                description=description,
                ttl=ttl,
                use_gitignore=use_gitignore,
                excludes=excludes or (),
                metadata=metadata,
                full=full,
                freeze=freeze,
                report=ProgressReporter(ctx),
            )
        return BackupSummary.of(backup)

    async def restore_backup(
        self,
        ctx: ToolContext,
        backup_id: BackupId,
        dir: Annotated[
            str | None,
            Field(description="Absolute path to restore into. Default: where the backup was taken."),
        ] = None,
        mode: Annotated[
            Mode,
            Field(
                description="copy: rewrite what differs. overlay: mount it, instant, gone after a reboot. "
                "auto: the better of both here."
            ),
        ] = "auto",
        paths: Annotated[
            Texts, Field(description="Restore only these files or folders, relative to the directory.")
        ] = None,
        dry_run: Annotated[bool, Field(description="Only say what would change.")] = False,
        undo: Annotated[bool, Field(description="Back up the present state first and return its undo_id.")] = True,
        sandbox: SandboxName = None,
    ) -> Restored:
        """Make a directory exactly as it was in a backup: changed and deleted files return, new ones go.

        Use it when a change went wrong. See what it would do first with dry_run. The present state is backed
        up before: to undo the restore, restore its undo_id. With paths, only those files or folders are
        restored. Reads the directory once, writes only what differs.
        """
        async with self._services.use(sandbox) as service:
            result = await service.restore(
                backup_id,
                dir=dir,
                mode=mode,
                paths=paths or (),
                dry_run=dry_run,
                undo=undo,
                report=ProgressReporter(ctx),
            )
        return Restored.of(result)

    async def fork_backup(
        self,
        ctx: ToolContext,
        backup_id: BackupId,
        dirs: Annotated[
            list[str],
            BeforeValidator(_parsed),
            Field(
                min_length=1,
                max_length=MAX_DIRS,
                description="Absolute paths to restore into, none inside another; made if missing.",
            ),
        ],
        mode: Annotated[
            Mode,
            Field(description="overlay: mount it, instant, gone after a reboot. copy: write files. auto: as here."),
        ] = "auto",
        undo: Annotated[
            bool, Field(description="Back up what a directory holds now first and return its undo_id.")
        ] = True,
        sandboxes: Annotated[
            Texts,
            Field(max_length=MAX_DIRS, description="Restore to the directories in each of these: 'docker:NAME'."),
        ] = None,
    ) -> Forked:
        """Restore one backup to several directories, each an independent writable copy of it.

        Use it to try several ways from one state side by side; then compare each with
        diff_backup(backup_id, dir). What a directory holds is replaced. The backup is fetched once, and
        overlays share its layers. If one directory fails, the error names those that are done.
        """
        report = ProgressReporter(ctx)
        if sandboxes:
            targets = list(product(sandboxes, dirs))
            return Forked.of(await fork_to(self._services, backup_id, targets, mode=mode, undo=undo, report=report))
        async with self._services.use() as service:
            return Forked.of(await service.fork(backup_id, dirs, mode=mode, undo=undo, report=report))

    async def list_backups(
        self,
        dir: Annotated[str | None, Field(description="Only of this directory (absolute path).")] = None,
        name: Annotated[str | None, Field(description="Only with exactly this name.")] = None,
        sandbox_id: Annotated[
            str | None, Field(description="Only of this sandbox, as a list of several names it.")
        ] = None,
        limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="At most so many.")] = 20,
        cursor: Annotated[str | None, Field(description="next_cursor of the page before.")] = None,
        include_expired: Annotated[bool, Field(description="Also those that can no longer be restored.")] = False,
        sandbox: Annotated[str | None, Field(description="Only of this sandbox: 'docker:NAME'.")] = None,
    ) -> BackupList:
        """List backups, newest first, with id, name, directory, size and expiry.

        Use it to find the id for restore_backup, diff_backup, verify_backup or delete_backup. Fast; changes
        nothing.
        """
        if sandbox is not None and sandbox_id is None:
            async with self._services.use(sandbox) as service:
                sandbox_id = await service.sandbox_id()
        async with self._services.use_store() as service:
            page = await service.list(
                dir=dir,
                name=name,
                sandbox_id=sandbox_id,
                limit=limit,
                cursor=cursor,
                include_expired=include_expired,
            )
        return BackupList.of(page)

    async def delete_backup(self, backup_id: BackupId) -> Deleted:
        """Delete one backup for good; this cannot be undone.

        The directory itself is not touched, other backups stay whole. Rarely needed: backups expire by
        themselves.
        """
        async with self._services.use_store() as service:
            return Deleted.of(await service.delete(backup_id))

    async def diff_backup(
        self,
        ctx: ToolContext,
        backup_id: BackupId,
        other_id: Annotated[
            str | None,
            Field(description="Compare with this later backup, not with the directory as it is now."),
        ] = None,
        dir: Annotated[
            str | None,
            Field(description="Absolute path to compare with. Default: where the backup was taken."),
        ] = None,
        paths: Annotated[
            Texts, Field(description="Compare only these files or folders, relative to the directory.")
        ] = None,
        content: Annotated[bool, Field(description="Also show how text files differ, as a patch.")] = False,
        sandbox: SandboxName = None,
    ) -> Difference:
        """Show which paths were added, modified and removed since a backup, or between two backups.

        Use it to review a change before you keep it or restore; with content, also to see what a file said
        before. Reads the directory once; changes nothing. Counts are exact; at most 50 paths of each kind are
        named, and 16,000 characters of patches shown: narrow it down with paths.
        """
        report = ProgressReporter(ctx)
        async with self._services.use(sandbox) as service:
            if not content:
                return Difference.of(await service.diff(backup_id, other_id, dir=dir, paths=paths or (), report=report))
            return Difference.with_contents(
                await service.diff_contents(
                    backup_id, other_id, dir=dir, paths=paths or (), max_bytes=MAX_COMPARED, report=report
                )
            )

    async def verify_backup(self, ctx: ToolContext, backup_id: BackupId) -> Verified:
        """Read all of a backup's data and check that it is as it was written.

        Use it before you rely on an old or important backup. Cost grows with its size; changes nothing. If ok
        is false, problem says why: take a new backup, and restore from another.
        """
        async with self._services.use_store() as service:
            return Verified.of(await service.verify(backup_id, report=ProgressReporter(ctx)))


def _hints(*, reads: bool = False, destroys: bool = False, idempotent: bool = True) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=reads, destructive_hint=destroys, idempotent_hint=idempotent, open_world_hint=False
    )


def build_tools(services: ServiceSource, *, where: Where) -> list[Tool]:
    """Return the tools. Where they work is told to the model; the services are what holds to it."""
    tools = Tools(services)
    notes = dict.fromkeys(("dir", "dirs"), describe_allowed(where.allowed_dirs)) if where.allowed_dirs else {}
    if where.sandboxes is not None:
        notes |= dict.fromkeys(SANDBOX_ARGUMENTS, describe_sandboxes(where))
    without = SANDBOX_ARGUMENTS if where.sandboxes is None else ()
    return [
        strict_tool(function, title=title, annotations=hints, notes=notes, without=without)
        for function, title, hints in (
            (tools.create_backup, "Back up a directory", _hints(idempotent=False)),
            (tools.restore_backup, "Restore a backup", _hints(destroys=True)),
            (tools.fork_backup, "Fork a backup", _hints(destroys=True)),
            (tools.list_backups, "List backups", _hints(reads=True)),
            (tools.delete_backup, "Delete a backup", _hints(destroys=True)),
            (tools.diff_backup, "Compare with a backup", _hints(reads=True)),
            (tools.verify_backup, "Verify a backup", _hints(reads=True)),
        )
    ]


def describe_allowed(allowed_dirs: Sequence[str]) -> str:
    """Return a sentence that says where the tools may work."""
    return f"Must be one of these or inside: {', '.join(allowed_dirs)}."


def describe_sandboxes(where: Where) -> str:
    """Return a sentence that says which sandboxes may be named."""
    return f"Must match: {', '.join(where.sandboxes or ())}. Default: {where.sandbox}."


def describe_place(where: Where) -> str:
    """Return sentences that say in which sandboxes and directories the tools work, each on a line of its own."""
    lines = []
    if where.sandboxes is not None:
        lines.append(
            "Several sandboxes are served: name one with the argument sandbox, or for fork_backup several with "
            f"sandboxes. {describe_sandboxes(where)}"
        )
    elif where.sandbox != LOCAL:
        container = where.sandbox.removeprefix(DOCKER_PREFIX)
        lines.append(f"All directories are those inside the Docker container {container}, not of this machine.")
    if where.allowed_dirs:
        lines.append(f"Directories: {describe_allowed(where.allowed_dirs)}")
    return "".join(f"\n{line}" for line in lines)
