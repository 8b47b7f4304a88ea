"""The tools: what a model reads about each (its docstring), and one call to the service."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import InputRequiredResult, ToolAnnotations
from pydantic import BeforeValidator, Field

from sandpoint.errors import BackupIntegrityError, InvalidBackupConfigError
from sandpoint.mcp_server.confirm import Confirm, Confirmer, restore_as_confirmed
from sandpoint.mcp_server.progress import CREATE, DIFF, FORK, RESTORE, VERIFY, ProgressReporter
from sandpoint.mcp_server.questions import (
    SHOWN_CHARACTERS,
    ForkPlan,
    delete_question,
    fork_question,
    restore_question,
)
from sandpoint.mcp_server.results import BackupList, BackupSummary, Deleted, Difference, Forked, Restored, Verified
from sandpoint.mcp_server.strict import strict_tool
from sandpoint.mcp_server.where import Where, describe_allowed, describe_sandboxes
from sandpoint.models import DEFAULT_TTL, MAX_NAME, MAX_TTL, Changes, Mode, RestoreResult
from sandpoint.printable import cut
from sandpoint.services import ServiceSource, fork_to

MAX_PAGE = 100
"""How many backups one call of list_backups returns at most: a page is read by a model."""

MAX_DIRS = 100
"""How many directories one call of fork_backup restores to at most: the result has an entry for each."""

MAX_COMPARED = 4 << 20
"""Bytes of the patches that diff_backup chooses from: room for any one file's, and for short ones after long ones."""

WAITING = "waiting for the user's answer"

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


class Tools:
    """The tools, over services that are opened when they are first needed."""

    def __init__(self, services: ServiceSource, confirmer: Confirmer) -> None:
        self._services = services
        self._confirmer = confirmer

    async def create_backup(
        self,
        ctx: ToolContext,
        dir: Annotated[str, Field(description="Absolute path of the directory, without symbolic links.")],
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
            Texts,
            Field(
                description="Gitignore patterns to leave out, such as 'node_modules/' or '*.log'; a restore does not "
                "touch them either."
            ),
        ] = None,
        metadata: Annotated[TextsByKey, Field(description="Your own keys and values, all text.")] = None,
        full: Annotated[
            bool, Field(description="Store everything again, sharing nothing with earlier backups. Rarely needed.")
        ] = False,
        freeze: Annotated[
            bool,
            Field(description="Pause the container for a moment: a backup of one instant, for databases that run."),
        ] = False,
        sandbox: SandboxName = None,
    ) -> BackupSummary:
        """Take a point-in-time backup of a directory, so that any later change in it can be undone.

        Use it before a risky step: mass edits or deletes, migrations, generated rewrites, unfamiliar commands. Takes
        moments on source trees, seconds on tens of thousands of files; later backups of the same directory store only
        what changed. The directory itself is not changed; the backup is kept for 3 days unless ttl says otherwise.
        Next: keep the id. diff_backup(backup_id) shows what changed since, restore_backup(backup_id) brings this state
        back.
        """
        report = ProgressReporter(ctx, CREATE)
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
                report=report,
            )
        await report.finish()
        return BackupSummary.of(backup)

    async def restore_backup(
        self,
        ctx: ToolContext,
        backup_id: BackupId,
        dir: Annotated[
            str | None,
            Field(description="Absolute path to restore into, made if missing. Default: where the backup was taken."),
        ] = None,
        mode: Annotated[
            Mode,
            Field(
                description="copy: rewrite what differs. overlay: mount it, instant, gone after a reboot. "
                "auto: what suits the sandbox."
            ),
        ] = "auto",
        paths: Annotated[
            Texts, Field(description="Restore only these files or folders, relative to the directory.")
        ] = None,
        dry_run: Annotated[bool, Field(description="Only say what would change; the user is not asked.")] = False,
        undo: Annotated[
            bool,
            Field(description="Back up the present state first and return its undo_id. False: no way back."),
        ] = True,
        sandbox: SandboxName = None,
    ) -> Restored | InputRequiredResult:
        """Make a directory exactly as it was in a backup: changed and deleted files return, new ones go.

        Use it when a change went wrong. Before: dry_run=true says what it would do; with paths only those files or
        folders are restored. The user may be asked to confirm; after NOT_CONFIRMED do not retry. Reads the directory,
        writes only what differs: moments to seconds. Next: the present state was backed up first, so to undo this
        restore call restore_backup with undo_id as backup_id.
        """
        report = ProgressReporter(ctx, RESTORE)
        wanted = tuple(paths or ())

        async def restore(mode: Mode, *, dry_run: bool, expected: str | None = None) -> RestoreResult:
            async with self._services.use(sandbox) as service:
                return await service.restore(
                    backup_id,
                    dir=dir,
                    mode=mode,
                    paths=wanted,
                    dry_run=dry_run,
                    undo=undo,
                    expected=expected,
                    report=report,
                )

        async def ask(planned: RestoreResult, changes: Changes) -> InputRequiredResult | None:
            async with self._services.use(sandbox) as service:
                backup = await service.get(backup_id)
            return await self._confirmer.ask(
                ctx,
                restore_question(backup, planned, paths=wanted, undo=undo, sandbox=sandbox),
                what=f"restore {cut(planned.dir, SHOWN_CHARACTERS)} from backup {backup.id}",
                plan=changes.fingerprint(),
                waiting=partial(report.note, WAITING),
            )

        if dry_run or not self._confirmer.can_ask(ctx):
            result = await restore(mode, dry_run=dry_run)
        else:
            confirmed = await restore_as_confirmed(mode, restore, ask)
            if isinstance(confirmed, InputRequiredResult):
                return confirmed
            result = confirmed
        await report.finish()
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
            Field(
                description="overlay: mount it, instant, gone after a reboot. copy: write files. "
                "auto: what suits the sandbox."
            ),
        ] = "auto",
        undo: Annotated[
            bool, Field(description="Back up what a directory holds now first and return its undo_id.")
        ] = True,
        sandboxes: Annotated[
            Texts,
            Field(
                max_length=MAX_DIRS,
                description=f"Restore to the directories in each of these: 'docker:NAME'. At most {MAX_DIRS} "
                "directories in all.",
            ),
        ] = None,
    ) -> Forked | InputRequiredResult:
        """Restore one backup to several directories, each an independent writable copy of it.

        Use it to try several ways from one state side by side. Name new or empty directories: what a directory holds
        is replaced, and then the user may be asked to confirm; after NOT_CONFIRMED do not retry. The backup is fetched
        once, and overlays share its layers: each copy costs what a restore does, an overlay nearly nothing. Next: work
        in each, and compare each with diff_backup(backup_id, dir). If one directory fails, the error names those that
        are done.
        """
        pairs = [*product(sandboxes or (), dirs)]
        targets: Sequence[tuple[str | None, str]] = pairs or [(None, each) for each in dirs]
        if len(targets) > MAX_DIRS:
            raise InvalidBackupConfigError(
                f"sandboxes: {len(targets)} directories in all, and at most {MAX_DIRS} in one call; fork to some first"
            )
        report = ProgressReporter(ctx, FORK, rounds=1 if sandboxes else len(dirs))
        expected: dict[tuple[str | None, str], str] = {}
        if self._confirmer.can_ask(ctx):
            plans, expected = await self._plan_fork(backup_id, targets, mode)
            if plans:
                async with self._services.use_store() as service:
                    backup = await service.get(backup_id)
                question = await self._confirmer.ask(
                    ctx,
                    fork_question(backup, plans, total=len(targets), undo=undo),
                    what=f"fork backup {backup.id} to directories that hold what would be replaced",
                    plan=repr(expected),
                    waiting=partial(report.note, WAITING),
                )
                if question is not None:
                    return question
        if sandboxes:
            named = {(name, each): plan for (name, each), plan in expected.items() if name is not None}
            result = await fork_to(
                self._services, backup_id, pairs, mode=mode, undo=undo, expected=named, report=report
            )
        else:
            async with self._services.use() as service:
                result = await service.fork(
                    backup_id,
                    dirs,
                    mode=mode,
                    undo=undo,
                    expected={each: plan for (_, each), plan in expected.items()},
                    report=report,
                )
        await report.finish()
        return Forked.of(result)

    async def _plan_fork(
        self, backup_id: str, targets: Sequence[tuple[str | None, str]], mode: Mode
    ) -> tuple[list[ForkPlan], dict[tuple[str | None, str], str]]:
        """Return what is lost in which directory, and the plans' fingerprints for all that are there."""
        plans: list[ForkPlan] = []
        fingerprints: dict[tuple[str | None, str], str] = {}
        for name, directory in targets:
            async with self._services.use(name) as service:
                if not await service.exists(directory):
                    continue
                planned = await service.restore(backup_id, dir=directory, mode=mode, dry_run=True)
            changes = planned.changes or Changes()
            fingerprints[name, directory] = changes.fingerprint()
            is_mounted_over = planned.mode == "overlay" and not changes
            if changes.modified or changes.removed or planned.unmounted or is_mounted_over:
                plans.append(ForkPlan.of(planned, name))
        return plans, fingerprints

    async def list_backups(
        self,
        dir: Annotated[str | None, Field(description="Only of this directory (absolute path).")] = None,
        name: Annotated[
            str | None,
            Field(description="Only with exactly this name; those that restores took of the state before: 'undo'."),
        ] = None,
        sandbox_id: Annotated[
            str | None, Field(description="Only of this sandbox, as a list of several names it.")
        ] = None,
        limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="At most so many a page.")] = 20,
        cursor: Annotated[
            str | None, Field(description="next_cursor of the page before, with the same arguments.")
        ] = None,
        include_expired: Annotated[bool, Field(description="Also those that can no longer be restored.")] = False,
        sandbox: Annotated[str | None, Field(description="Only of this sandbox: 'docker:NAME'.")] = None,
    ) -> BackupList:
        """List backups, newest first, with id, name, directory, size and expiry.

        Use it to find the id for restore_backup, diff_backup, verify_backup, fork_backup or delete_backup. Fast;
        changes nothing. Next: with next_cursor in the result there are more; count is of the page.
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

    async def delete_backup(self, ctx: ToolContext, backup_id: BackupId) -> Deleted | InputRequiredResult:
        """Delete one backup for good; this cannot be undone.

        Rarely needed: backups expire by themselves. The directory itself is not touched, other backups stay whole.
        The user may be asked to confirm; after NOT_CONFIRMED do not retry. Quick. Next: nothing; freed_bytes is 0
        where other backups still share its data.
        """
        if self._confirmer.can_ask(ctx):
            question = await self._ask_to_delete(ctx, backup_id)
            if question is not None:
                return question
        async with self._services.use_store() as service:
            return Deleted.of(await service.delete(backup_id))

    async def _ask_to_delete(self, ctx: ToolContext, backup_id: str) -> InputRequiredResult | None:
        async with self._services.use_store() as service:
            try:
                backup = await service.get(backup_id)
            except BackupIntegrityError:  # damaged metadata is no reason to keep it
                backup = None
        return await self._confirmer.ask(
            ctx,
            delete_question(backup_id, backup),
            what=f"delete backup {backup_id} for good",
            plan=backup_id,
            waiting=partial(ProgressReporter(ctx, {}).note, WAITING),
        )

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
        cursor: Annotated[
            str | None, Field(description="next_cursor of the page before, with the same arguments.")
        ] = None,
        sandbox: SandboxName = None,
    ) -> Difference:
        """Show which paths were added, modified and removed since a backup, or between two backups.

        Use it to review a change before you keep it or restore; with content=true, also to see what a file said
        before. Reads the directory once a call; changes nothing. Counts are exact; a page names at most 50 paths of
        each kind and shows 16,000 characters of patches. Next: cursor gives more, paths narrows it down; restore_backup
        with paths brings single files back.
        """
        report = ProgressReporter(ctx, DIFF)
        wanted = tuple(paths or ())
        async with self._services.use(sandbox) as service:
            changes = (
                await service.diff_contents(
                    backup_id, other_id, dir=dir, paths=wanted, max_bytes=MAX_COMPARED, report=report
                )
                if content
                else await service.diff(backup_id, other_id, dir=dir, paths=wanted, report=report)
            )
        question = (backup_id, other_id, dir, wanted, content, sandbox)
        result = Difference.of(changes, cursor=cursor, question=question)
        await report.finish()
        return result

    async def verify_backup(self, ctx: ToolContext, backup_id: BackupId) -> Verified:
        """Read all of a backup's data and check that it is as it was written.

        Use it before you rely on an old or important backup; a restore checks what it reads anyway. Cost grows with
        the backup's size; changes nothing. Next: if ok is false, problem says why: take a new backup, and restore from
        another.
        """
        report = ProgressReporter(ctx, VERIFY)
        async with self._services.use_store() as service:
            result = Verified.of(await service.verify(backup_id, report=report))
        await report.finish()
        return result


def hints(*, reads: bool = False, destroys: bool = False, idempotent: bool = True) -> ToolAnnotations:
    """Return what a client is told of a tool, all four hints: none of ours reaches beyond its directories and store."""
    return ToolAnnotations(
        read_only_hint=reads, destructive_hint=destroys, idempotent_hint=idempotent, open_world_hint=False
    )


def build_tools(services: ServiceSource, *, where: Where, confirm: Confirm = "auto") -> list[Tool]:
    """Return the tools. Where they work is told to the model; the services are what holds to it."""
    tools = Tools(services, Confirmer(confirm))
    notes = dict.fromkeys(("dir", "dirs"), describe_allowed(where.allowed_dirs)) if where.allowed_dirs else {}
    if where.sandboxes is not None:
        notes |= dict.fromkeys(SANDBOX_ARGUMENTS, describe_sandboxes(where))
    without = SANDBOX_ARGUMENTS if where.sandboxes is None else ()
    return [
        strict_tool(function, title=title, annotations=annotations, notes=notes, without=without)
        for function, title, annotations in (
            (tools.create_backup, "Back up a directory", hints(idempotent=False)),
            (tools.restore_backup, "Restore a backup", hints(destroys=True)),
            (tools.fork_backup, "Fork a backup", hints(destroys=True)),
            (tools.list_backups, "List backups", hints(reads=True)),
            (tools.delete_backup, "Delete a backup", hints(destroys=True)),
            (tools.diff_backup, "Compare with a backup", hints(reads=True)),
            (tools.verify_backup, "Verify a backup", hints(reads=True)),
        )
    ]
