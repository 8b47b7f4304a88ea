"""`sandpoint undo`."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.restore import show_restored
from sandpoint.cli.run import run
from sandpoint.cli.terminal import local_time, printable, say, working_directory

if TYPE_CHECKING:
    from sandpoint.models import Backup, Report, UndoResult
    from sandpoint.service import BackupService


def undo(
    directory: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]",
            help="An absolute path. [default: the working directory, or the nearest one above it with backups]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Go back one step, and with each call one further.

    That is to the last state that was backed up and is not the present one. What was done since goes first; the next
    call goes to the backup before that one, and so on. The present state is backed up before, so that there is a way
    back from each step.
    """
    common = Common(store, sandbox, as_json)
    began = time.monotonic()

    async def work(service: "BackupService", report: "Report") -> "UndoResult":
        where = directory if directory is not None else await _nearest(service, working_directory())
        return await service.undo(where, dry_run=dry_run, report=report)

    def show(result: "UndoResult") -> None:
        say(f"The step back is to {describe_backup(result.backup)}.")
        show_restored(result, common, time.monotonic() - began)

    return run(common, work, show)


async def _nearest(service: "BackupService", here: str) -> str:
    """Return a directory, or the nearest one above it of which there are backups."""
    from sandpoint.errors import BackupNotFoundError

    found = await service.nearest(here)
    if found is None:
        raise BackupNotFoundError(
            f"there are no backups of {here}, nor of a directory above it; name another one: sandpoint undo DIR"
        )
    return found


def describe_backup(backup: "Backup") -> str:
    """Return which backup it is, in a few words: when it was taken, its name and what for."""
    name = f" {printable(backup.name)!r}" if backup.name else ""
    purpose = f" ({printable(backup.description)})" if backup.description else ""
    return f"backup{name} of {local_time(backup.created_at)}{purpose}"
