"""The line of states that led to the present one of a directory, as its backups tell it. Pure: no store, no clock.

A backup continues the line from the state that the directory was in. A restore goes back to a state on it, or to
another one; the backup of the state before, which it takes, says to which. What is backed up after that continues from
there: states that were gone back from are not on the line any more, as with the undo of an editor.
"""

from collections.abc import Iterable, Iterator

from sandpoint.models import BackupMetadata

UNDO_NAME = "undo"
"""The name of backups that are taken of the state before a restore."""

_TARGET, _PATHS, _ELSEWHERE = "undo_of", "undo_paths", "undo_from"


def note_restore(target: BackupMetadata, directory: str, sandbox_id: str, paths: int) -> dict[str, str]:
    """Return what the backup of the state before a restore notes of it.

    Args:
        target: What is restored.
        directory: Where to.
        sandbox_id: Where that is.
        paths: How many paths only; 0 for all.
    """
    noted = {_TARGET: target.id}
    if paths:
        noted[_PATHS] = str(paths)
    if (target.dir, target.sandbox_id) != (directory, sandbox_id):
        noted[_ELSEWHERE] = target.dir[:1024]
    return noted


def restored_after(backup: BackupMetadata) -> str | None:
    """Return the id of the backup that the whole directory was restored to after this one was taken for that."""
    noted = backup.metadata
    return noted.get(_TARGET) if backup.name == UNDO_NAME and _PATHS not in noted else None


class History:
    """The states of one directory."""

    def __init__(self, newest_first: Iterable[BackupMetadata]) -> None:
        """Read the backups of one directory in one sandbox, all that there are."""
        self._before: dict[str, str | None] = {}
        state: str | None = None
        for backup in reversed(list(newest_first)):
            self._before.setdefault(backup.id, state)
            target = restored_after(backup)
            if target is not None and target not in self._before:
                came_from_elsewhere = _ELSEWHERE in backup.metadata
                self._before[target] = backup.id if came_from_elsewhere else self._last_older(target, state)
            state = target or backup.id
        self._present = state

    def _last_older(self, gone: str, state: str | None) -> str | None:
        # Ids are made by time. What is gone itself was on the line where others still are.
        while state is not None and state >= gone:
            state = self._before[state]
        return state

    def back(self) -> Iterator[str]:
        """Iterate over the backups of the line, from the state that the directory was last known to be in."""
        state = self._present
        while state is not None:
            yield state
            state = self._before[state]
