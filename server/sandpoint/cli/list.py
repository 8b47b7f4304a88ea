"""`sandpoint list`."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import Column, local_time, printable, say, say_table, size, warn

if TYPE_CHECKING:
    from sandpoint.models import Backup, BackupPage, LostOverlay, Report
    from sandpoint.service import BackupService


def list_backups(
    directory: Annotated[str | None, typer.Option("--dir", metavar="DIR", help="Only of this directory.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only of this name.")] = None,
    sandbox_id: Annotated[
        str | None,
        typer.Option("--sandbox-id", metavar="ID", help="Only of this sandbox, as a list of several names it."),
    ] = None,
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
    filters = {"dir": directory, "name": name, "sandbox_id": sandbox_id, "cursor": cursor}
    filtered = any(value is not None for value in filters.values())
    options: dict[str, Any] = filters | {"include_expired": every}
    if limit is not None:  # where none is given, the service's own default holds
        options["limit"] = limit
    common = Common(store, sandbox, as_json)
    lost: list[LostOverlay] = []

    async def find(service: "BackupService", _report: "Report") -> "BackupPage":
        page = await service.list(**options)
        lost.extend(() if as_json else await service.lost_overlays())
        return page

    def show(page: "BackupPage") -> None:
        show_page(page, filtered=filtered, now=datetime.now(UTC))
        show_lost(lost, common)

    return run(common, find, show)


COLUMNS: tuple[tuple[Column, "Callable[[Backup], str]"], ...] = (
    (Column("ID"), lambda backup: backup.id),
    (Column("CREATED"), lambda backup: local_time(backup.created_at, seconds=False)),
    (Column("EXPIRES", narrow=False), lambda backup: local_time(backup.expires_at, seconds=False)),
    (Column("KIND", narrow=False), lambda backup: backup.kind),
    (Column("SIZE", narrow=False, right=True), lambda backup: size(backup.size_bytes)),
    (Column("FILES", narrow=False, right=True), lambda backup: f"{backup.file_count:,}"),
    (Column("NAME", folds=True), lambda backup: printable(backup.name or "")),
    (Column("DIRECTORY", folds=True), lambda backup: printable(backup.dir)),
)
"""Each column with its cell."""

SANDBOX: tuple[Column, "Callable[[Backup], str]"] = (
    Column("SANDBOX", folds=True),
    lambda backup: printable(backup.sandbox_id),
)
"""Where the backups listed are not all of one."""


def show_lost(lost: "Sequence[LostOverlay]", common: Common) -> None:
    """Say which overlays went with a restart, and what brings each back."""
    for overlay in lost:
        again = common.command("restore", overlay.backup_id, "--to", overlay.dir, "--mode", "overlay")
        warn(f"the overlay on {printable(overlay.dir)} went with a restart; to have its backup there again: {again}")


def show_page(page: "BackupPage", *, filtered: bool, now: datetime) -> None:
    """Print a table on a terminal, aligned columns elsewhere, or how to make a first backup."""
    if not page.backups:
        say("No backup matches." if filtered else "No backups yet. Make one with: sandpoint create DIR")
        return
    columns = COLUMNS if len({backup.sandbox_id for backup in page.backups}) == 1 else (*COLUMNS, SANDBOX)
    rows = [[cell(backup) for _, cell in columns] for backup in page.backups]
    for row, backup in zip(rows, page.backups, strict=True):
        if backup.expires_at <= now:
            row[2] += " (over)"
    say_table([column for column, _ in columns], rows)
    if page.next_cursor:
        say(f"There are more; go on with the same command and --cursor {printable(page.next_cursor)}")
