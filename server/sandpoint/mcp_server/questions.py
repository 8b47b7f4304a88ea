"""The questions that a user is asked: what would happen, in a few lines that no name in a tree can forge."""

from collections.abc import Sequence
from dataclasses import dataclass

from sandpoint.models import Backup, Changes, RestoreResult
from sandpoint.printable import cut

SHOWN_PATHS = 5
"""How many paths of each kind a question shows."""

SHOWN_DIRS = 10
"""How many directories of a fork."""

SHOWN_CHARACTERS = 100
"""Of one name."""

_UNDOABLE = "What is there now is backed up first, so this can be undone."
_FOR_GOOD = "What is there now is NOT backed up: this cannot be undone."
_OVERLAY = "The backup is mounted over it; what is there now is hidden until the overlay is taken down."
_UNMOUNTED = "The overlay that is mounted there is taken down, with all that was written in it."
_KINDS = (("+", "added", "come back"), ("~", "modified", "are overwritten"), ("-", "removed", "are DELETED"))


@dataclass(frozen=True)
class ForkPlan:
    """What a fork does to a directory that is there."""

    place: str
    added: int
    modified: int
    removed: int

    @classmethod
    def of(cls, planned: RestoreResult, sandbox: str | None) -> "ForkPlan":
        """Cut a dry run to its counts."""
        changes = planned.changes or Changes()
        place = planned.dir if sandbox is None else f"{sandbox} {planned.dir}"
        return cls(place, len(changes.added), len(changes.modified), len(changes.removed))


def restore_question(
    backup: Backup, planned: RestoreResult, *, paths: Sequence[str], undo: bool, sandbox: str | None
) -> str:
    """Return the question before a restore: the counts first, in case that a client shows only the beginning."""
    changes = planned.changes or Changes()
    where = _quoted(planned.dir) + (f" in {_quoted(sandbox)}" if sandbox else "")
    counts = ", ".join(f"{len(getattr(changes, kind)):,} {verb}" for _, kind, verb in _KINDS)
    lines = [f"Restore {where}? Of its paths {counts}.", _UNDOABLE if undo else _FOR_GOOD, f"From {_described(backup)}"]
    if planned.taken_in:
        lines.append(f"It was taken in another sandbox, {_quoted(planned.taken_in)}.")
    lines.append(_OVERLAY if planned.mode == "overlay" else "Mode copy: only what differs is written.")
    if paths:
        lines.append(f"Only: {_some(paths)}")
    if planned.unmounted:
        lines.append(_UNMOUNTED)
    if left_out := _left_out(backup):
        fate = "Not touched" if planned.mode == "copy" and not planned.unmounted else "Out of sight then"
        lines.append(f"{fate}, as the backup leaves it out: {left_out}")
    for sign, kind, verb in _KINDS:
        lines += _listed(sign, getattr(changes, kind), verb)
    return "\n".join(lines)


def fork_question(backup: Backup, plans: Sequence[ForkPlan], *, total: int, undo: bool) -> str:
    """Return the question before a fork to directories of which some hold what it would replace."""
    many = f"{total:,} directories, {len(plans):,} of which hold" if total > 1 else "a directory that holds"
    lines = [f"Fork to {many} what would be replaced?", _UNDOABLE if undo else _FOR_GOOD, f"From {_described(backup)}"]
    for plan in plans[:SHOWN_DIRS]:
        counts = ", ".join(f"{getattr(plan, kind):,} {verb}" for _, kind, verb in _KINDS)
        lines.append(f"{_quoted(plan.place)}: of its paths {counts}")
    if len(plans) > SHOWN_DIRS:
        lines.append(f"and {len(plans) - SHOWN_DIRS:,} more")
    return "\n".join(lines)


def delete_question(backup_id: str, backup: Backup | None) -> str:
    """Return the question before a backup is deleted; None where its metadata is damaged."""
    described = f"backup {_quoted(backup_id)}; what it holds cannot be told" if backup is None else _described(backup)
    return f"Delete {described}\nThis cannot be undone. Its directory is not touched, and other backups stay whole."


def _described(backup: Backup) -> str:
    name = f" {_quoted(backup.name)}" if backup.name else ""
    return f"backup {backup.id}{name} of {_quoted(backup.dir)}, taken {backup.created_at:%Y-%m-%d %H:%M:%S} UTC"


def _left_out(backup: Backup) -> str:
    parts = [_some(backup.excludes)] if backup.excludes else []
    return ", ".join([*parts, "what git ignores"] if backup.use_gitignore else parts)


def _listed(sign: str, paths: Sequence[str], verb: str) -> list[str]:
    shown = [f"{sign} {cut(path, SHOWN_CHARACTERS)}" for path in paths[:SHOWN_PATHS]]
    return [*shown, f"and {len(paths) - SHOWN_PATHS:,} more {verb}"] if len(paths) > SHOWN_PATHS else shown


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(_quoted, names[:SHOWN_PATHS]))
    return f"{shown} and {len(names) - SHOWN_PATHS:,} more" if len(names) > SHOWN_PATHS else shown


def _quoted(text: str) -> str:
    """Return a name that ends where its quotes do: what follows it in a sentence is ours."""
    shown = cut(text, SHOWN_CHARACTERS).replace('"', "\\u0022")
    return f'"{shown}"'
