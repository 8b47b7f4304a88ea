"""`sandpoint create`."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.failures import Failure, describe, show_failure
from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import count, duration, local_time, printable, say, say_fields, size, some, warn
from sandpoint.errors import SandpointError

if TYPE_CHECKING:
    from sandpoint.models import Backup, Report
    from sandpoint.service import BackupService


def create(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An absolute path.")],
    name: Annotated[str | None, typer.Option("--name", help="A short name to find it by.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="What it is for.")] = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", metavar="SECONDS", help="How long it can be restored. [default: 259200, three days]"),
    ] = None,
    use_gitignore: Annotated[
        bool, typer.Option("--use-gitignore", help="Leave out what git ignores, if DIR is in a repository.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Leave out what a .gitignore line would. Repeatable."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Kept with the backup. Repeatable."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Store everything again, not only what changed since the last backup.")
    ] = False,
    freeze: Annotated[
        bool,
        typer.Option("--freeze", help="Pause the container for a moment, so that the backup is of one instant."),
    ] = False,
    if_changed: Annotated[
        bool,
        typer.Option("--if-changed", help="Make no other backup where nothing has changed since the last one."),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="N",
            min=1,
            help="Then delete all but the newest N backups of this directory that have the --name.",
        ),
    ] = None,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Back up a directory."""
    if keep is not None and name is None:
        raise typer.BadParameter("only backups of one name are deleted; give --name too", param_hint="--keep")
    common = Common(store, sandbox, as_json)
    values = parse_metadata(metadata or ())
    # Where no ttl is given, the service's own default holds.
    lifetime = {} if ttl is None else {"ttl": ttl}
    began = time.monotonic()
    problems: list[Failure] = []

    async def work(service: "BackupService", report: "Report") -> "Backup":
        backup = await service.create(
            directory,
            name=name,
            description=description,
            use_gitignore=use_gitignore,
            excludes=exclude or (),
            metadata=values,
            full=full,
            freeze=freeze,
            if_changed=if_changed,
            report=report,
            **lifetime,
        )
        if keep is not None and name is not None and not backup.unchanged:
            try:
                await service.trim(backup.dir, name=name, keep=keep)
            except SandpointError as error:  # the backup is made, and to be told of all the same
                problems.append(describe(error))
        return backup

    def show(backup: "Backup") -> None:
        show_created(backup, common, time.monotonic() - began)

    def problem(_: "Backup") -> Failure | None:
        if problems and not as_json:
            show_failure(problems[0], as_json=False)
        return problems[0] if problems else None

    return run(common, work, show, problem=problem)


def parse_metadata(pairs: list[str] | tuple[str, ...]) -> dict[str, str]:
    """Read `KEY=VALUE` options; a value may hold further equals signs.

    Raises:
        typer.BadParameter: There is no equals sign, or a key is given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--metadata")
        if key in values:
            raise typer.BadParameter(f"the key {key!r} is given twice", param_hint="--metadata")
        values[key] = value
    return values


def describe_kind(backup: "Backup") -> str:
    """Return what the backup stores: everything, what has changed, or nothing where nothing has."""
    if backup.kind == "full":
        return "full"
    change = "what changed" if backup.size_bytes else "nothing changed"
    return f"delta: {change} since backup {backup.parent_id}"


def _pause(backup: "Backup") -> list[tuple[str, str]]:
    if backup.frozen_seconds is None:
        return []
    told = f"paused for {backup.frozen_seconds * 1000:.0f} ms" if backup.frozen_seconds else "it was paused already"
    return [("container", told)]


def show_created(backup: "Backup", common: Common, seconds: float) -> None:
    """Say what was backed up, for how long it is kept, and the way back."""
    if backup.unchanged:
        say(f"Nothing has changed in {printable(backup.dir)} since its last backup: no other was made.")
    else:
        say(f"Backed up {printable(backup.dir)} in {duration(seconds)}.")
    name = [("name", printable(backup.name))] if backup.name else []
    say_fields(
        [
            ("id", backup.id),
            *name,
            ("kind", describe_kind(backup)),
            ("size", f"{size(backup.size_bytes)} in the store, {size(backup.total_bytes)} in the directory"),
            ("files", f"{backup.file_count:,}"),
            ("created", local_time(backup.created_at)),
            ("expires", local_time(backup.expires_at)),
            *_pause(backup),
        ]
    )
    say(f"Bring it back with: {common.command('restore', backup.id)}")
    if backup.unstable_paths:
        changing = count(len(backup.unstable_paths), "path")
        warn(f"{changing} changed while being read and may not be whole: {some(backup.unstable_paths)}")
    if backup.skipped_mounts:
        mounts = count(len(backup.skipped_mounts), "mount")
        warn(f"not in the backup is what {mounts} inside the directory holds: {some(backup.skipped_mounts)}")
