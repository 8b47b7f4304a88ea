"""`sandpoint diff`."""

from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.changes import count_changes, show_changes, show_contents
from sandpoint.cli.options import BackupId, Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import printable, say

if TYPE_CHECKING:
    from sandpoint.models import Changes, ContentChanges


def diff(
    backup_id: BackupId,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="Another backup, instead of the present directory."),
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Another directory than the one backed up.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="P", help="Only this path, relative to the directory. Repeatable."),
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Show how the contents of text files differ, as git does.")
    ] = False,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Show what changed since a backup, or between two backups.

    + came since the backup, ~ changed, - went. With --content, 'git apply' takes what is printed; what no patch
    can say stands between in a line of its own.
    """
    if other is not None and directory is not None:
        raise typer.BadParameter("compare with another backup or with a directory, not both", param_hint="--dir")
    common = Common(store, sandbox, as_json)
    paths = path or ()
    if content:
        return run(
            common,
            lambda service, report: service.diff_contents(backup_id, other, dir=directory, paths=paths, report=report),
            lambda changes: show_content_diff(changes, backup_id, other, directory),
        )
    return run(
        common,
        lambda service, report: service.diff(backup_id, other, dir=directory, paths=paths, report=report),
        lambda changes: show_diff(changes, backup_id, other, directory),
    )


def show_diff(changes: "Changes", backup_id: str, other: str | None, directory: str | None) -> None:
    """Print the changes and how many they are."""
    show_changes(changes)
    _say_count(changes, backup_id, other, directory)


def show_content_diff(changes: "ContentChanges", backup_id: str, other: str | None, directory: str | None) -> None:
    """Print the patches and how many paths changed, which programs that apply patches pass over."""
    show_contents(changes)
    _say_count(changes, backup_id, other, directory)


def _say_count(changes: "Changes", backup_id: str, other: str | None, directory: str | None) -> None:
    until = f" to backup {other}" if other else f" to {printable(directory)}" if directory else ""
    found = count_changes(changes) if changes else "no difference"
    say(f"From backup {backup_id}{until}: {found}." if until else f"Since backup {backup_id}: {found}.")
