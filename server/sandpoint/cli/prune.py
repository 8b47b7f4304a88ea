"""`sandpoint prune`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import Column, count, local_time, printable, say, say_table, size, some, warn

if TYPE_CHECKING:
    from sandpoint.models import Decision, PruneResult


def prune(
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", metavar="N", help="Keep the newest N of each directory.")
    ] = None,
    keep_hourly: Annotated[
        int | None,
        typer.Option("--keep-hourly", metavar="N", help="Keep the newest of each of the last N hours that have any."),
    ] = None,
    keep_daily: Annotated[int | None, typer.Option("--keep-daily", metavar="N", help="The same for days.")] = None,
    keep_weekly: Annotated[int | None, typer.Option("--keep-weekly", metavar="N", help="The same for weeks.")] = None,
    keep_name: Annotated[
        list[str] | None,
        typer.Option("--keep-name", metavar="GLOB", help="Keep those of such a name: 'release-*'. Repeatable."),
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Delete only backups of this directory.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")] = False,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Delete expired backups, and those that no rule keeps.

    Without a --keep option only expired backups go; with one, all go that none of them keeps. An expired backup
    goes always. Hours, days and weeks are in UTC. What dead operations left, and overlays that are mounted no more,
    goes too, and with --sandbox docker:NAME what is kept for containers that were removed. There is no way back from
    this: try --dry-run first.
    """
    rules = (keep_last, keep_hourly, keep_daily, keep_weekly, keep_name)
    return run(
        Common(store, sandbox, as_json),
        lambda service, report: service.prune(
            keep_last=keep_last,
            keep_hourly=keep_hourly,
            keep_daily=keep_daily,
            keep_weekly=keep_weekly,
            keep_names=keep_name or (),
            dir=directory,
            dry_run=dry_run,
        ),
        lambda result: show_pruned(result, directory, with_kept=any(rules)),
    )


COLUMNS: tuple[tuple[Column, "Callable[[Decision], str]"], ...] = (
    (Column("DECISION"), lambda decision: "keep" if decision.keep else "remove"),
    (Column("ID"), lambda decision: decision.id),
    (Column("CREATED", narrow=False), lambda decision: local_time(decision.created_at, seconds=False)),
    (Column("NAME", narrow=False, folds=True), lambda decision: printable(decision.name or "")),
    (Column("DIRECTORY", narrow=False, folds=True), lambda decision: printable(decision.dir)),
    (Column("REASON", folds=True), lambda decision: printable(decision.reason)),
)
"""Each column with its cell."""


def show_pruned(result: "PruneResult", directory: str | None, *, with_kept: bool) -> None:
    """Say what goes and why, with rules also what stays, and how much space that gives."""
    shown = [decision for decision in result.decisions if with_kept or not decision.keep]
    if shown:
        say_table([column for column, _ in COLUMNS], [[cell(decision) for _, cell in COLUMNS] for decision in shown])
    if result.sandbox_problem:
        warn(f"only the store was pruned, not the sandbox: {printable(result.sandbox_problem)}")
    if not result.removed and not result.abandoned and not result.leftovers:
        of_what = f" of {printable(directory)}" if directory else ""
        say("Nothing to remove." if result.decisions else f"Nothing to remove: there are no backups{of_what}.")
        return
    _say_removed(result)


def _say_removed(result: "PruneResult") -> None:
    overlays = [found for found in result.abandoned if found.startswith("/")]
    parts = [found for found in result.abandoned if not found.startswith("/")]
    verb = "Would remove" if result.dry_run else "Removed"
    for backup_id in parts:
        say(f"{verb} what was left of {backup_id}, which is no backup.")
    for directory in overlays:
        say(f"{verb} what an overlay on {printable(directory)} left, mounted no more.")
    if result.leftovers:
        say(f"{verb} on the Docker engine: {some(result.leftovers)}.")
    total = [count(len(result.removed), "backup")] if result.removed else []
    total += [f"parts of {count(len(parts), 'other')}"] if parts else []
    total += [count(len(overlays), "overlay")] if overlays else []
    if not total:
        say("Nothing was changed." if result.dry_run else "No backup was removed.")
        return
    freed = f"{size(result.freed_bytes)} {'would be freed' if result.dry_run else 'freed'} in the store"
    if result.removed and not result.freed_bytes:
        freed += ", for backups that stay need the rest"
    say(f"{verb}: {', '.join(total)}; {freed}.{' Nothing was changed.' if result.dry_run else ''}")
