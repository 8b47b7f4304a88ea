"""`sandpoint delete`."""

from typing import TYPE_CHECKING

from sandpoint.cli.options import BackupIds, Common, Json, Sandbox, Store
from sandpoint.cli.run import run_each
from sandpoint.cli.terminal import say, size

if TYPE_CHECKING:
    from sandpoint.models import DeleteResult


def delete(
    backup_ids: BackupIds,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Delete backups. There is no way back from this.

    Other backups stay whole: what they need of a deleted one goes with the last of them.
    """
    return run_each(
        Common(store, sandbox, as_json),
        backup_ids,
        lambda service, backup_id, report: service.delete(backup_id),
        show_deleted,
    )


def show_deleted(result: "DeleteResult") -> None:
    """Say what was deleted and how much space that gave."""
    if result.freed_bytes:
        say(f"Deleted {result.id}, {size(result.freed_bytes)} freed.")
    else:
        say(f"Deleted {result.id}. No space was freed: other backups need what it stored.")
