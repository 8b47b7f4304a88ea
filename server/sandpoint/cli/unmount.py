"""`sandpoint unmount`."""

from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.options import Common, Json, NoUndo, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import printable, say

if TYPE_CHECKING:
    from sandpoint.models import UnmountResult


def unmount(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where the overlay is mounted.")],
    no_undo: NoUndo = False,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Take down the overlay that a restore mounted.

    What the directory held before is there again; what was written to the overlay is backed up first.
    """
    common = Common(store, sandbox, as_json)
    return run(
        common,
        lambda service, report: service.unmount(directory, undo=not no_undo, report=report),
        lambda result: show_unmounted(result, common),
    )


def show_unmounted(result: "UnmountResult", common: Common) -> None:
    """Say what was taken down, and where what had been written to it is."""
    say(f"Took the overlay of backup {result.backup_id} down from {printable(result.dir)}.")
    if result.undo_id:
        say(f"The state before is backup {result.undo_id}.")
        say(f"Go back to it with: {common.command('restore', result.undo_id)}")
