"""Apply: carry out a plan on a directory, in place, and take every step back if one fails."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from sandpoint.engine import linux
from sandpoint.engine.attributes import adjust, change_mode
from sandpoint.engine.directory import INSIDE
from sandpoint.engine.manifest import Entry, Manifest, display, parent
from sandpoint.engine.plan import Comparison, Plan, ancestors
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError, BackupRestoreError

_HOLDER = os.O_RDONLY | os.O_DIRECTORY
_NO_SUCH_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""What filesystems such as NFS say to a rename with flags."""
_STAY_ON_MOUNT = INSIDE | linux.RESOLVE_NO_XDEV


class Holders:
    """Descriptors of the directories below a root, the last one kept open: steps come in the order of paths."""

    def __init__(self, root: int, *, resolve: int = _STAY_ON_MOUNT) -> None:
        """Take a descriptor of the root, which stays the caller's."""
        self._root = root
        self._resolve = resolve
        self._path: bytes | None = None
        self._fd = -1

    def of(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor of the directory that holds an entry, and the entry's name in it.

        The root is said to hold itself, under an empty name.

        Raises:
            OSError: A link, a mount or something else than a directory is in the way.
        """
        if not path:
            return self._root, b""
        above = parent(path)
        if above != self._path:
            self.close()
            self._fd = linux.openat2(above or b".", _HOLDER, dir_fd=self._root, resolve=self._resolve)
            self._path = above
        name = path[len(above) + 1 if above else 0 :]
        if name in {b".", b".."}:
            raise OSError(errno.EINVAL, "this is no name of a file", display(path))
        return self._fd, name

    def forget(self, path: bytes) -> None:
        """Close a directory that is no longer what its path names."""
        if path == self._path:
            self.close()

    def close(self) -> None:
        """Close the one that is open."""
        if self._path is not None:
            os.close(self._fd)
        self._path, self._fd = None, -1


def staging_list(plan: Plan, *, whole: bool) -> list[bytes]:
    """Return what to extract for a plan: paths that bring all that is added or replaced.

    Args:
        plan: The plan.
        whole: Whether an added directory is wanted with all that the layer has below it; else (a restore of some
            paths) every file is named by itself.
    """
    brought = [*plan.added, *plan.replaced]
    if not whole:
        return [entry.path for entry in brought if not entry.is_dir]
    return [entry.path for entry in units(plan)]


def units(plan: Plan) -> list[Entry]:
    """Return the topmost entries that a plan brings; each takes with it all that is brought below it."""
    directories = {entry.path for entry in (*plan.added, *plan.replaced) if entry.is_dir}
    return sorted(
        (entry for entry in (*plan.added, *plan.replaced) if parent(entry.path) not in directories or not entry.path),
        key=lambda entry: entry.path,
    )


def prepare_staged(staged: int, plan: Plan, comparison: Comparison, check: Check) -> None:
    """Check what was extracted against the plan, and give every file its attributes.

    Raises:
        BackupIntegrityError: An entry is missing or is not what the manifest says.
        OSError: An attribute cannot be set.
    """
    brought = sorted((*plan.added, *plan.replaced), key=lambda entry: entry.path)
    holders, firsts = Holders(staged), Holders(staged)
    try:
        _open_up_leading(holders, brought)
        for entry in brought:
            check()
            _prepare_one(holders, entry, comparison)
            if entry.hardlink:
                _relink(holders, firsts, entry)
    finally:
        holders.close()
        firsts.close()


def _open_up_leading(holders: Holders, brought: list[Entry]) -> None:
    """Let an ordinary user into staged directories that only lead to what is brought, whatever their modes."""
    for path in sorted({above for entry in brought for above in ancestors(entry.path) if above}):
        with suppress(FileNotFoundError):
            holder, name = holders.of(path)
            status = os.stat(name, dir_fd=holder, follow_symlinks=False)
            if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                change_mode(holder, name, 0o700)


def _prepare_one(holders: Holders, entry: Entry, comparison: Comparison) -> None:
    holder, name = holders.of(entry.path)
    if entry.is_dir:
        # Left out of the layer: a mount's directory, or one that leads to a single path.
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=holder)
        status = os.stat(name, dir_fd=holder, follow_symlinks=False)
        if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            change_mode(holder, name, 0o700)  # until all is in it; `adjust` has the last word
    else:
        try:
            status = os.stat(name, dir_fd=holder, follow_symlinks=False)
        except FileNotFoundError:
            raise _not_extracted(entry) from None
    if stat.S_IFMT(status.st_mode) != entry.kind or (entry.is_file and status.st_size != entry.size):
        raise BackupIntegrityError(
            f"{display(entry.path)} is not in the layer as the manifest says: the backup is damaged; nothing changed"
        )
    if not entry.is_dir:
        adjust(holder, name, entry, comparison, fresh=True)


def _relink(holders: Holders, firsts: Holders, entry: Entry) -> None:
    """Link an entry with the first of its group: odd names are extracted by runs of their own, without the link."""
    (holder, name), (first_holder, first) = holders.of(entry.path), firsts.of(entry.hardlink)
    inode, wanted = (
        os.stat(each, dir_fd=there, follow_symlinks=False).st_ino
        for each, there in ((name, holder), (first, first_holder))
    )
    if inode != wanted:
        os.unlink(name, dir_fd=holder)
        os.link(first, name, src_dir_fd=first_holder, dst_dir_fd=holder, follow_symlinks=False)


def _not_extracted(entry: Entry) -> BackupRestoreError | BackupIntegrityError:
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        return BackupRestoreError(
            f"{display(entry.path)} is a device node, which only root can make; run as root. Nothing was changed"
        )
    return BackupIntegrityError(
        f"{display(entry.path)} is in the manifest, but not in the layer; the backup is damaged, nothing was changed"
    )


def _rename_new(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    try:
        linux.rename_new(source_fd, source, target_fd, target)
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
        with suppress(FileNotFoundError):
            os.stat(target, dir_fd=target_fd, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(target)) from None
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


@dataclass
class _Apply:
    root: int
    staged: int
    trash: int
    plan: Plan
    present: Manifest
    target: Manifest
    comparison: Comparison
    check: Check
    untouchable: frozenset[bytes]
    undo: list[Callable[[], None]] = field(default_factory=list)
    changed_in: set[bytes] = field(default_factory=set)
    kept: list[bytes] = field(default_factory=list)
    trashed: int = 0
    at: bytes = b""

    def __post_init__(self) -> None:
        self.live = Holders(self.root)
        self.new = Holders(self.staged)

    def run(self) -> None:
        self._remove()
        self._place()
        self._touch()
        self._settle()

    def close(self) -> None:
        self.live.close()
        self.new.close()

    def _hold(self, path: bytes) -> tuple[int, bytes]:
        """Open an entry's directory for a change of the names in it."""
        above = parent(path)
        holder, name = self.live.of(path)
        if above not in self.changed_in:
            self.changed_in.add(above)
            self._open_up(holder, above)
        return holder, name

    def _open_up(self, holder: int, path: bytes) -> None:
        status = os.fstat(holder)
        if not self.comparison.owners and status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(holder, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        before = self.present.entries.get(path)
        if before is not None:
            self.undo.append(partial(self._adjust_live, before))

    def _adjust_live(self, entry: Entry) -> None:
        holder, name = self.live.of(entry.path)
        adjust(holder, name, entry, self.comparison)

    def _begin(self, entry: Entry) -> None:
        self.check()
        self.at = entry.path

    # -- the steps --

    def _remove(self) -> None:
        going = [*self.plan.removed]
        for entry in self.plan.replaced:
            before = self.present.entries[entry.path]
            if before.is_dir != entry.is_dir:
                going.append(before)
        for entry in sorted(going, key=lambda entry: entry.path, reverse=True):
            self._begin(entry)
            if entry.is_dir:
                self._remove_directory(entry)
            else:
                with suppress(FileNotFoundError):
                    self._to_trash(*self._hold(entry.path), entry.path)

    def _remove_directory(self, entry: Entry) -> None:
        try:
            holder, name = self._hold(entry.path)
            os.rmdir(name, dir_fd=holder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
                raise
            self.kept.append(entry.path)
            return
        finally:
            self.live.forget(entry.path)
        self.undo.append(partial(self._bring_directory_back, entry))

    def _bring_directory_back(self, entry: Entry) -> None:
        holder, name = self.live.of(entry.path)
        os.mkdir(name, 0o700, dir_fd=holder)
        # Its files come back after it: what is undone last is adjusted last, by its own note in `_open_up`.
        if entry.path not in self.changed_in:
            adjust(holder, name, entry, self.comparison)

    def _to_trash(self, holder: int, name: bytes, path: bytes) -> None:
        self.trashed += 1
        dropped = b"%d" % self.trashed
        os.rename(name, dropped, src_dir_fd=holder, dst_dir_fd=self.trash)

        def back() -> None:
            there, name = self.live.of(path)
            _rename_new(self.trash, dropped, there, name)

        self.undo.append(back)

    def _place(self) -> None:
        for entry in units(self.plan):
            self._begin(entry)
            if not entry.path:
                raise BackupRestoreError("the directory itself was replaced while it was restored; run it again")
            holder, name = self._hold(entry.path)
            source, source_name = self.new.of(entry.path)
            before = self.present.entries.get(entry.path)
            if before is not None and not before.is_dir and not entry.is_dir:
                self._swap(source, source_name, holder, name, entry)
            else:
                self._put(source, source_name, holder, name, entry)

    def _swap(self, source: int, source_name: bytes, holder: int, name: bytes, entry: Entry) -> None:
        try:
            linux.exchange(source, source_name, holder, name)
        except OSError as error:
            if error.errno not in {*_NO_SUCH_RENAME, errno.ENOENT}:
                raise
            with suppress(FileNotFoundError):
                self._to_trash(holder, name, entry.path)
            self._put(source, source_name, holder, name, entry)
            return

        def back() -> None:
            there, live_name = self.live.of(entry.path)
            here, new_name = self.new.of(entry.path)
            linux.exchange(here, new_name, there, live_name)

        self.undo.append(back)

    def _put(self, source: int, source_name: bytes, holder: int, name: bytes, entry: Entry) -> None:
        try:
            _rename_new(source, source_name, holder, name)
        except FileExistsError:
            self._clear_way(holder, name, entry.path)
            _rename_new(source, source_name, holder, name)

        def back() -> None:
            there, live_name = self.live.of(entry.path)
            here, new_name = self.new.of(entry.path)
            _rename_new(there, live_name, here, new_name)

        self.undo.append(back)

    def _clear_way(self, holder: int, name: bytes, path: bytes) -> None:
        status = os.stat(name, dir_fd=holder, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            raise BackupRestoreError(
                f"{display(path)}: a directory with excluded files, or one made during the restore, is where the "
                "backup has something else; move it away and restore again"
            )
        self._to_trash(holder, name, path)

    def _touch(self) -> None:
        self.changed_in.update(entry.path for entry in self.plan.restamped)
        for entry in self.plan.touched:
            self._begin(entry)
            if entry.is_dir:
                self.changed_in.add(entry.path)
                continue
            before = self.present.entries[entry.path]
            self.undo.append(partial(self._adjust_live, before))
            self._adjust_live(entry)

    def _settle(self) -> None:
        """Give directories their attributes last, the innermost first: every change in them moved their mtime."""
        brought = {entry.path for entry in (*self.plan.added, *self.plan.replaced) if entry.is_dir}
        for path in sorted(self.changed_in | brought, reverse=True):
            if path in self.untouchable:
                continue
            entry = self.target.entries.get(path) or self.present.entries.get(path)
            before = self.present.entries.get(path)
            if entry is None or (path not in self.target.entries and path not in self.kept):
                continue
            if before is not None and before.is_dir:
                self.undo.append(partial(self._adjust_live, before))
            self._adjust_live(entry)


def apply_plan(
    plan: Plan,
    *,
    root: int,
    staged: int,
    trash: int,
    present: Manifest,
    target: Manifest,
    comparison: Comparison,
    untouchable: frozenset[bytes],
    check: Check,
) -> list[bytes]:
    """Carry out a plan, and return the extra directories that had to stay because excluded paths lie in them.

    Files that go are renamed into the trash, and files that come are renamed from the staging folder, so that a
    failure half way is undone by renames alone, without new space.

    Args:
        plan: From the present tree to the target.
        root: The directory.
        staged: What was extracted for the plan, prepared by `prepare_staged`; on the directory's mount.
        trash: An empty folder on the directory's mount. What is in it afterwards is no longer needed.
        present: The tree as it is.
        target: The tree as it shall be.
        comparison: What can be set here.
        untouchable: Directories whose own attributes stay as they are.
        check: May raise to stop: all is undone.

    Raises:
        BackupRestoreError: A step failed. The directory is as before; if taking back failed too, the message says so.
    """
    work = _Apply(root, staged, trash, plan, present, target, comparison, check, untouchable)
    try:
        work.run()
    except BaseException as failure:
        problem = _take_back(work)
        if isinstance(failure, OSError):
            failure.filename = display(work.at) or "."
        if problem is not None:
            raise BackupRestoreError(
                f"the restore failed ({failure}), and taking it back failed too ({problem}); the directory is partly "
                "restored: restore again",
                partly=True,
            ) from failure
        raise
    finally:
        work.close()
    return sorted(work.kept)


def _take_back(work: _Apply) -> Exception | None:
    problem: Exception | None = None
    for step in reversed(work.undo):
        work.close()  # each step may put another directory behind a path
        try:
            step()
        except OSError as error:
            problem = problem or error
    return problem
