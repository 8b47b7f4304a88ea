"""Making a directory equal to another tree in place: everything is staged beside it first, then renamed into it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sandpoint.engine.apply import apply_plan, prepare_staged
from sandpoint.engine.attributes import adjust
from sandpoint.engine.capture import Place
from sandpoint.engine.manifest import Manifest, display
from sandpoint.engine.plan import Comparison, Plan
from sandpoint.engine.state import staging_folder
from sandpoint.engine.tools import Monitor
from sandpoint.errors import BackupRestoreError


@dataclass(frozen=True)
class Compared:
    """Two trees, as far as they are asked for, and the plan from one to the other."""

    plan: Plan
    present: Manifest
    target: Manifest
    comparison: Comparison
    untouchable: frozenset[bytes]
    mounts: tuple[bytes, ...]


def refuse_conflicts(compared: Compared) -> None:
    """Find before the first change where something excluded is in the way.

    Raises:
        BackupRestoreError: It is; the message names it.
    """
    protected = frozenset(compared.present.header.excluded) | frozenset(compared.mounts)
    if not protected:
        return
    for entry in compared.plan.replaced:
        before = compared.present.entries[entry.path]
        if before.is_dir and not entry.is_dir:
            inside = next((path for path in protected if path.startswith(entry.path + b"/")), None)
            if inside is not None:
                raise BackupRestoreError(
                    f"{display(entry.path)} is a directory now and holds {display(inside)}, which is excluded and may "
                    "not be touched, but the backup has something else there; move it away and restore again"
                )


def carry_out(
    compared: Compared, place: Place, fill: Callable[[str], None], work: str, monitor: Monitor
) -> list[bytes]:
    """Carry out a plan on an open directory, and return the extra directories that had to stay.

    Args:
        compared: The plan and its two trees.
        place: The directory.
        fill: Puts what the plan adds and replaces into a folder that does not exist yet, by its relative path.
        work: The operation's own folder.
        monitor: Told of progress; may stop it, which is then undone.

    Raises:
        BackupRestoreError: A step failed; the directory is as before, or the message says otherwise.
        BackupIntegrityError: Something is missing from what was staged; nothing was changed.
        OSError: There is no room to stage in; nothing was changed.
    """
    if compared.plan.is_empty:
        return []
    root = compared.present.entries[b""]
    try:
        with staging_folder(place.fd, place.path, work) as staging:
            kept = _stage_in(staging, compared, place, fill, monitor)
        root = compared.target.entries.get(b"", root)
        return kept
    finally:
        if b"" not in compared.untouchable:
            adjust(place.fd, b"", root, compared.comparison)  # a staging folder inside it has moved its mtime


def _stage_in(
    staging: str, compared: Compared, place: Place, fill: Callable[[str], None], monitor: Monitor
) -> list[bytes]:
    tree, trash = os.path.join(staging, "tree"), os.path.join(staging, "trash")
    os.mkdir(trash, 0o700)
    fill(tree)
    os.makedirs(tree, mode=0o700, exist_ok=True)
    with _directory(tree) as staged, _directory(trash) as trashed:
        prepare_staged(staged, compared.plan, compared.comparison, monitor.check)
        monitor.progress("applying", 0)
        return apply_plan(
            compared.plan,
            root=place.fd,
            staged=staged,
            trash=trashed,
            present=compared.present,
            target=compared.target,
            comparison=compared.comparison,
            untouchable=compared.untouchable,
            check=monitor.check,
        )


@contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)
