"""Making a directory equal to another tree in place: everything is staged beside it first, then renamed into it."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec

from sandpoint.engine import linux
from sandpoint.engine.apply import apply_plan, prepare_staged
from sandpoint.engine.attributes import adjust
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.manifest import Manifest, display
from sandpoint.engine.place import Place
from sandpoint.engine.plan import Comparison, Plan
from sandpoint.engine.state import Staging, staging_folder
from sandpoint.engine.tools import Monitor
from sandpoint.engine.walk import entry_of
from sandpoint.errors import BackupRestoreError

_LIST = os.O_RDONLY | os.O_DIRECTORY


def is_closed(status: os.stat_result) -> bool:
    """Whether an ordinary user cannot read something of its own: a file, or a directory and what is in it."""
    needed = stat.S_IRUSR | stat.S_IXUSR if stat.S_ISDIR(status.st_mode) else stat.S_IRUSR
    return 0 != os.geteuid() == status.st_uid and status.st_mode & needed != needed


def open_up(root: int) -> None:
    """Let an ordinary user read what it owns in an open directory, whatever modes that was given.

    Another user's is left as it is, as are mounts: the next walk says what cannot be read.
    """
    pending = [b""]
    while pending:
        above = pending.pop()
        with suppress(OSError):
            fd = linux.openat2(above or b".", _LIST, dir_fd=root, resolve=INSIDE | linux.RESOLVE_NO_XDEV)
            try:
                prefix = above + b"/" if above else b""
                pending += [prefix + name for name in map(os.fsencode, os.listdir(fd)) if _open_up_one(fd, name)]
            finally:
                os.close(fd)


def _open_up_one(holder: int, name: bytes) -> bool:
    """Let the user read one entry, and return whether it is a directory."""
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=holder, follow_symlinks=False)
        is_dir = stat.S_ISDIR(status.st_mode)
        if is_closed(status) and (is_dir or stat.S_ISREG(status.st_mode)):
            entry = entry_of(b"", holder, name)
            opened = msgspec.structs.replace(entry, mode=entry.mode | stat.S_IRUSR | (stat.S_IXUSR if is_dir else 0))
            adjust(holder, name, opened, Comparison())
        return is_dir
    return False


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
        with staging_folder(place.root, place.fd, place.path, work) as staging:
            kept = _stage_in(staging, compared, place, fill, monitor)
        if b"" not in compared.untouchable:
            root = compared.target.entries.get(b"", root)
        return kept
    finally:
        adjust(place.fd, b"", root, compared.comparison)  # a staging folder inside it has moved its mtime


def _stage_in(
    staging: Staging, compared: Compared, place: Place, fill: Callable[[str], None], monitor: Monitor
) -> list[bytes]:
    tree, trash = os.path.join(staging.path, "tree"), os.path.join(staging.path, "trash")
    os.mkdir(trash, 0o700)
    fill(os.path.join(staging.filled_at, "tree"))
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
