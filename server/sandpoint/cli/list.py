"""`sandpoint list`."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import local_time, printable, say, say_columns, size

if TYPE_CHECKING:
    from sandpoint.models import Backup, BackupPage

WIDE = 120
"""Columns of a terminal from which the table has all its columns."""


def list_backups(
    directory: Annotated[str | None, typer.Option("--dir", metavar="DIR", help="Only of this directory.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only of this name.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="At most so many. [default: 20]")] = None,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Go on after an earlier list, which printed this.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those whose time is over.")] = False,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """List backups, newest first."""
    filtered = directory is not None or name is not None or cursor is not None
    # Where no limit is given, the service's own default holds.
    size_of_page = {} if limit is None else {"limit": limit}
    return run(
        Common(store, sandbox, as_json),
        lambda service, report: service.list(
            dir=directory, name=name, cursor=cursor, include_expired=every, **size_of_page
        ),
        lambda page: show_page(page, filtered=filtered, now=datetime.now(UTC)),
    )


COLUMNS: tuple[tuple[str, bool, "Callable[[Backup], str]"], ...] = (
    ("ID", True, lambda backup: backup.id),
    ("CREATED", True, lambda backup: local_time(backup.created_at, seconds=False)),
    ("EXPIRES", False, lambda backup: local_time(backup.expires_at, seconds=False)),
    ("SIZE", False, lambda backup: size(backup.size_bytes)),
    ("FILES", False, lambda backup: f"{backup.file_count:,}"),
    ("NAME", True, lambda backup: printable(backup.name or "")),
    ("DIRECTORY", True, lambda backup: printable(backup.dir)),
)
"""Heading, whether a narrow terminal has it too, and the cell."""


def show_page(page: "BackupPage", *, filtered: bool, now: datetime) -> None:
    """Print a table on a terminal, aligned columns elsewhere, or how to make a first backup."""
    if not page.backups:
        say("No backup matches." if filtered else "No backups yet. Make one with: sandpoint create DIR")
        return
    rows = [[cell(backup) for _, _, cell in COLUMNS] for backup in page.backups]
    for row, backup in zip(rows, page.backups, strict=True):
        if backup.expires_at <= now:
            row[2] += " (over)"
    if sys.stdout.isatty():
        _show_table(rows)
    else:
        say_columns([[heading for heading, _, _ in COLUMNS], *rows])
    if page.next_cursor:
        say(f"There are more; go on with the same command and --cursor {printable(page.next_cursor)}")


def _show_table(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    chosen = [index for index, (_, narrow, _) in enumerate(COLUMNS) if narrow or console.width >= WIDE]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index in chosen:
        heading = COLUMNS[index][0]
        folds = heading in {"NAME", "DIRECTORY"}
        table.add_column(
            Text(heading.capitalize()),
            no_wrap=not folds,
            overflow="fold",
            justify="right" if heading in {"SIZE", "FILES"} else "left",
        )
    for row in rows:
        table.add_row(*(Text(row[index]) for index in chosen))
    console.print(table)
