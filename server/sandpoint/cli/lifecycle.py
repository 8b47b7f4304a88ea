"""`sandpoint lifecycle`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import Column, count, printable, say, say_table

if TYPE_CHECKING:
    from sandpoint.models import Lifecycle, LifecycleRule

Action = Literal["show", "apply"]


def lifecycle(
    action: Annotated[
        Action,
        typer.Argument(metavar="show|apply", help="show: list the bucket's rules. apply: set those of Sandpoint."),
    ],
    days: Annotated[
        int | None,
        typer.Option("--days", metavar="N", help="With apply: files of backups go when they are so old."),
    ] = None,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Show or set a bucket's own rules for what goes when.

    The server itself then deletes what is old, also where nobody prunes. No backup that is there loses a file before
    it expires: where --days is too few for that, the error names the least. Uploads that never ended go after 2 days.
    Rules that others set stay as they are.
    """
    common = Common(store, sandbox, as_json)
    if action == "show":
        if days is not None:
            raise typer.BadParameter("--days is for 'apply' only")
        return run(common, lambda service, report: service.lifecycle(), lambda found: show_rules(found, common))
    if days is None:
        raise typer.BadParameter("'apply' needs --days N")
    return run(common, lambda service, report: service.apply_lifecycle(days), lambda found: show_applied(found, common))


def describe_action(rule: "LifecycleRule") -> str:
    """Return what a rule does, as far as it concerns us."""
    actions = []
    if rule.expire_days is not None:
        actions.append(f"files are deleted after {count(rule.expire_days, 'day')}")
    if rule.abort_uploads_days is not None:
        actions.append(f"unfinished uploads are aborted after {count(rule.abort_uploads_days, 'day')}")
    said = ", ".join(actions) or "something else"
    return said if rule.is_enabled else f"off: {said}"


COLUMNS: tuple[tuple[Column, "Callable[[LifecycleRule], str]"], ...] = (
    (Column("KEYS", folds=True), lambda rule: f"{printable(rule.prefix)}*"),
    (Column("WHAT", folds=True), describe_action),
    (Column("SET BY"), lambda rule: "Sandpoint" if rule.is_ours else "others"),
    (Column("RULE", narrow=False, folds=True), lambda rule: printable(rule.id)),
)
"""Each column with its cell."""


def show_rules(result: "Lifecycle", common: Common) -> None:
    """Print the bucket's rules, and how to set ours where they are not among them."""
    if result.rules:
        say_table([column for column, _ in COLUMNS], [[cell(rule) for _, cell in COLUMNS] for rule in result.rules])
    else:
        say(f"The bucket {printable(result.bucket)} has no rules.")
    if not any(rule.is_ours for rule in result.rules):
        say(f"Set those of Sandpoint with: {common.command('lifecycle', 'apply', '--days', 'N')}")


def show_applied(result: "Lifecycle", common: Common) -> None:
    """Print what holds now, and when to set it anew."""
    show_rules(result, common)
    say("Set them anew before you take backups that live longer than those that are there now.")
