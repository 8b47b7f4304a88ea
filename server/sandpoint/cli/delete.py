"""`sandpoint delete` and `sandpoint prune`."""

from typing import TYPE_CHECKING

from sandpoint.cli.options import BackupIds, Common, Json, Sandbox, Store
from sandpoint.cli.run import run, run_each
from sandpoint.cli.terminal import count, say, size

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
    """Remove expired backups, and those never finished."""
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
    for backup_id in result.abandoned:
        say(f"Removed {backup_id}, never finished.")
    total = count(len(result.removed) + len(result.abandoned), "backup")
    say(f"{total} removed, {size(result.freed_bytes)} freed.")
