"""`sandpoint delete` and `sandpoint prune`."""

from typing import TYPE_CHECKING

from sandpoint.cli.options import BackupIds, Common, Json, Sandbox, Store
from sandpoint.cli.run import run, run_each
from sandpoint.cli.terminal import count, printable, say, size

if TYPE_CHECKING:
    from sandpoint.models import DeleteResult, PruneResult


def delete(
    backup_ids: BackupIds,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Delete backups. There is no way back from this."""
    return run_each(
        Common(store, sandbox, as_json),
        backup_ids,
        lambda service, backup_id, report: service.delete(backup_id),
        show_deleted,
    )


def prune(
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Remove expired backups, and those never finished.

    What overlays that are mounted no more left behind goes too.
    """
    return run(Common(store, sandbox, as_json), lambda service, report: service.prune(), show_pruned)


def show_deleted(result: "DeleteResult") -> None:
    """Say what was deleted and how much space that gave."""
    say(f"Deleted {result.id}, {size(result.freed_bytes)} freed.")


def show_pruned(result: "PruneResult") -> None:
    """Say what was removed and how much space that gave."""
    if not result.removed and not result.abandoned:
        say("Nothing to remove.")
        return
    for backup_id in result.removed:
        say(f"Removed {backup_id}, expired.")
    overlays = [printable(found) for found in result.abandoned if found.startswith("/")]
    unfinished = [found for found in result.abandoned if not found.startswith("/")]
    for backup_id in unfinished:
        say(f"Removed {backup_id}, never finished.")
    for directory in overlays:
        say(f"Removed what an overlay on {directory} left, mounted no more.")
    total = [count(len(result.removed) + len(unfinished), "backup")]
    total += [count(len(overlays), "overlay")] if overlays else []
    say(f"{' and '.join(total)} removed, {size(result.freed_bytes)} freed in the store.")
