"""`sandpoint restore`."""

import time
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sandpoint.cli.changes import count_changes, show_changes
from sandpoint.cli.options import BackupId, Common, Json, NoUndo, Store
from sandpoint.cli.run import run, run_in_several
from sandpoint.cli.terminal import count, duration, printable, say, some, warn

if TYPE_CHECKING:
    from sandpoint.models import ForkResult, Report, RestoreResult
    from sandpoint.services import Services


def restore(
    backup_id: BackupId,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Another directory than the one backed up. Given more than once: each of them, independent of the "
            "others.",
        ),
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
    sandbox: Annotated[
        list[str] | None,
        typer.Option(
            "--sandbox",
            metavar="S",
            help="Where the directory lives: local, or docker:NAME for a container. Given more than once: in each of "
            "them. [env: SANDPOINT_SANDBOX]",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Make a directory what it was when it was backed up.

    Files that came since are removed; what the backup excluded is left alone. The present state is backed up
    first, so that there is a way back from here too. With several --to the backup is fetched once, and in mode
    overlay its layers are mounted once for all. With several --sandbox, which need --to, this is done side by side.
    """
    sandboxes = sandbox or ()
    common = Common(store, sandboxes[0] if len(sandboxes) == 1 else None, as_json)
    began = time.monotonic()
    options: dict[str, Any] = {"mode": mode, "paths": path or (), "dry_run": dry_run, "undo": not no_undo}
    targets = to or ()
    if len(sandboxes) > 1:
        if not targets:
            raise typer.BadParameter("several --sandbox need --to DIR")
        return run_in_several(
            common,
            lambda services, report: _fork_to(services, backup_id, product(sandboxes, targets), options, report),
            lambda result: show_forked(result, common, time.monotonic() - began),
        )
    if len(targets) > 1:
        return run(
            common,
            lambda service, report: service.fork(backup_id, targets, **options, report=report),
            lambda result: show_forked(result, common, time.monotonic() - began),
        )
    return run(
        common,
        lambda service, report: service.restore(backup_id, dir=next(iter(targets), None), **options, report=report),
        lambda result: show_restored(result, common, time.monotonic() - began),
    )


async def _fork_to(
    services: "Services",
    backup_id: str,
    targets: Iterable[tuple[str, str]],
    options: dict[str, Any],
    report: "Report",
) -> "ForkResult":
    from sandpoint.services import fork_to

    return await fork_to(services, backup_id, targets, **options, report=report)


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
    if result.taken_in:
        say(f"The backup was taken in another sandbox, {printable(result.taken_in)}.")
    if result.undo_id:
        say(f"The state before is backup {result.undo_id}.")
        say(f"Go back to it with: {common.command('restore', result.undo_id)}")
    if result.mode == "overlay" and not result.dry_run:
        say(f"Take the overlay down with: {common.command('unmount', result.dir)}")
    _warn_of_rest(result)


def _warn_of_rest(result: "RestoreResult", where: str = "") -> None:
    if result.kept_paths:
        warn(f"{where}extra directories stay because they hold excluded paths: {some(result.kept_paths)}")
    if result.skipped_mounts:
        warn(f"{where}mounts inside the directory were left alone: {some(result.skipped_mounts)}")


def _show_plan(result: "RestoreResult", where: str) -> None:
    if result.changes is None:
        say(f"Backup {result.id} would be mounted on {where} by {result.mode}. Nothing was changed.")
        return
    show_changes(result.changes)
    counts = count_changes(result.changes) if result.changes else "no change"
    say(f"A restore of {where} from backup {result.id} by {result.mode} would give: {counts}.")
    say("Nothing was changed.")


def show_forked(result: "ForkResult", common: Common, seconds: float) -> None:
    """Say of each directory in a line what changed, then all ways back."""
    restores = result.restores
    directories = count(len(restores), "directory", "directories")
    if any(each.dry_run for each in restores):
        say(f"A restore of {directories} from backup {result.id} would give:")
    else:
        say(f"Restored {directories} from backup {result.id} in {duration(seconds)}:")
    for each in restores:
        say(f"  {_place(each)}{_in_short(each)}")
    if any(each.dry_run for each in restores):
        say("Nothing was changed.")
        return
    undos = [
        f"{common.command('restore', each.undo_id, sandbox=each.sandbox)}  # {_place(each)}"
        for each in restores
        if each.undo_id
    ]
    _say_commands("Go back to the state before", undos)
    overlays = [each for each in restores if each.mode == "overlay"]
    what = "the overlay" if len(overlays) == 1 else "the overlays"
    commands = [common.command("unmount", each.dir, sandbox=each.sandbox) for each in overlays]
    _say_commands(f"Take {what} down", commands)
    for each in restores:
        _warn_of_rest(each, f"{_place(each)}: ")


def _place(result: "RestoreResult") -> str:
    return printable(result.dir if result.sandbox is None else f"{result.sandbox} {result.dir}")


def _in_short(result: "RestoreResult") -> str:
    said = f" by {result.mode}"
    if result.changes is not None:
        said += f": {count_changes(result.changes) if result.changes else 'no change'}"
    return f"{said}; an overlay was taken down" if result.unmounted else said


def _say_commands(purpose: str, commands: Sequence[str]) -> None:
    if len(commands) == 1:
        say(f"{purpose} with: {commands[0]}")
    elif commands:
        say(f"{purpose} with:")
        for command in commands:
            say(f"  {command}")
