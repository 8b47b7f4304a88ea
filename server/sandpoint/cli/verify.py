"""`sandpoint verify`."""

from typing import TYPE_CHECKING

from sandpoint.cli.failures import Failure, show_failure
from sandpoint.cli.options import BackupIds, Common, Json, Sandbox, Store
from sandpoint.cli.run import run_each
from sandpoint.cli.terminal import say, size
from sandpoint.errors import BackupIntegrityError

if TYPE_CHECKING:
    from sandpoint.models import VerifyResult


def verify(
    backup_ids: BackupIds,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Check that backups are still what was written.

    All that they consist of is read. A backup that fails cannot be restored: take another one.
    """
    return run_each(
        Common(store, sandbox, as_json),
        backup_ids,
        lambda service, backup_id, report: service.verify(backup_id, report=report),
        show_verified,
        problem=find_problem,
    )


def find_problem(result: "VerifyResult") -> Failure | None:
    """Return what is wrong with a backup, None if it is whole."""
    if result.ok:
        return None
    what = result.problem or "what the store holds is not what was backed up"
    return Failure(BackupIntegrityError.code, f"{result.id}: {what}", BackupIntegrityError.exit_status)


def show_verified(result: "VerifyResult") -> None:
    """Say that a backup is whole, as far as can be told, or what is wrong with it."""
    problem = find_problem(result)
    if problem is not None:
        show_failure(problem, as_json=False)
    elif result.size_only:
        say(
            f"{result.id}: as large as it should be, {size(result.checked_bytes)}. No more than its size can be "
            "compared: another program wrote it, and noted no digest."
        )
    else:
        say(f"{result.id}: whole, {size(result.checked_bytes)} checked.")
