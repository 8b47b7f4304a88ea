"""`sandpoint restore`."""

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sandpoint.cli.changes import count_changes, show_changes
from sandpoint.cli.options import BackupId, Common, Json, NoUndo, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import duration, printable, say, some, warn

if TYPE_CHECKING:
    from sandpoint.models import RestoreResult


def restore(
    backup_id: BackupId,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Another directory than the one backed up.")
    ] = None,
    mode: Annotated[
        Literal["auto", "overlay", "copy"],
        typer.Option(
            "--mode",
            help="copy: make the files equal. overlay: mount the backup under a fresh layer for writes. "
            "auto: overlay in a sandbox that can, copy on a person's own machine.",
        ),
    ] = "auto",
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="P", help="Only this path, relative to the directory. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    no_undo: NoUndo = False,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Make a directory what it was when it was backed up.

    Files that came since are removed; what the backup excluded is left alone. The present state is backed up
    first, so that there is a way back from here too.
    """
    common = Common(store, sandbox, as_json)
    began = time.monotonic()
    return run(
        common,
        lambda service, report: service.restore(
            backup_id, dir=to, mode=mode, paths=path or (), dry_run=dry_run, undo=not no_undo, report=report
        ),
        lambda result: show_restored(result, common, time.monotonic() - began),
    )


def show_restored(result: "RestoreResult", common: Common, seconds: float) -> None:
    """Say what changed and the way back, or for a dry run what would change."""
    where = printable(result.dir)
    if result.dry_run:
        _show_plan(result, where)
    elif result.changes is not None and not result.changes:
        if result.unmounted:
            say(f"The overlay on {where} was taken down; below it, all was the same as in backup {result.id} already.")
        elif result.undo_id:
            say(
                f"{where} was the same as backup {result.id} already, but for times of directories: they are put right."
            )
        else:
            say(f"{where} was the same as backup {result.id} already. Nothing was changed.")
    else:
        changes = f": {count_changes(result.changes)}" if result.changes is not None else ""
        say(f"Restored {where} from backup {result.id} by {result.mode} in {duration(seconds)}{changes}.")
    if result.undo_id:
        say(f"The state before is backup {result.undo_id}.")
        say(f"Go back to it with: {common.command('restore', result.undo_id)}")
    if result.mode == "overlay" and not result.dry_run:
        say(f"Take the overlay down with: {common.command('unmount', result.dir)}")
    if result.kept_paths:
        warn(f"extra directories stay because they hold excluded paths: {some(result.kept_paths)}")
    if result.skipped_mounts:
        warn(f"mounts inside the directory were left alone: {some(result.skipped_mounts)}")


def _show_plan(result: "RestoreResult", where: str) -> None:
    if result.changes is None:
        say(f"Backup {result.id} would be mounted on {where} by {result.mode}. Nothing was changed.")
        return
    show_changes(result.changes)
    counts = count_changes(result.changes) if result.changes else "no change"
    say(f"A restore of {where} from backup {result.id} by {result.mode} would give: {counts}.")
    say("Nothing was changed.")
