"""`sandpoint diff`."""

from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.changes import count_changes, show_changes
from sandpoint.cli.options import BackupId, Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import printable, say

if TYPE_CHECKING:
    from sandpoint.models import Changes


def diff(
    backup_id: BackupId,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="Another backup, instead of the present directory."),
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Another directory than the one backed up.")
    ] = None,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Show what changed since a backup, or between two backups.

    + came since the backup, ~ changed, - went.
    """
    if other is not None and directory is not None:
        raise typer.BadParameter("compare with another backup or with a directory, not both", param_hint="--dir")
    return run(
        Common(store, sandbox, as_json),
        lambda service, report: service.diff(backup_id, other, dir=directory, report=report),
        lambda changes: show_diff(changes, backup_id, other, directory),
    )


def show_diff(changes: "Changes", backup_id: str, other: str | None, directory: str | None) -> None:
    """Print the changes and how many they are."""
    show_changes(changes)
    until = f" to backup {other}" if other else f" to {printable(directory)}" if directory else ""
    found = count_changes(changes) if changes else "no difference"
    say(f"From backup {backup_id}{until}: {found}." if until else f"Since backup {backup_id}: {found}.")
