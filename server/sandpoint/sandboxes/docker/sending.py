"""Sending back to a container what a restore of the copy has changed, and seeing that it arrived."""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

import msgspec

from sandpoint.engine.manifest import Entry, Manifest, display, parent
from sandpoint.engine.plan import Plan
from sandpoint.engine.tools import Check, Monitor
from sandpoint.errors import SandpointError
from sandpoint.sandboxes.docker.archive_api import ContainerArchive, Mounted, RefusedError
from sandpoint.sandboxes.docker.mirror import Tree, as_shown, steps
from sandpoint.sandboxes.docker.pack import can_be_sent, cannot_say, pack

_ARGUMENTS_BYTES = 100_000
_DEFAULT_ACL = b"system.posix_acl_default"
_NAMED = 5
_SUPERUSER = "0:0"
_OWN = stat.S_IWUSR | stat.S_IXUSR

Present = Callable[[str, frozenset[bytes], Check], AbstractContextManager[Tree]]
"""Fetches a directory as it is now: its path, where other filesystems are mounted in it, and what may stop that."""


class UnsentError(Exception):
    """The directory was not made what it should be; the message says why, and what it is now."""

    def __init__(self, message: str, *, partly: bool = False) -> None:
        super().__init__(message)
        self.partly = partly


@dataclass
class _Work:
    """What is to be done in a container, and what it concerns."""

    felled: list[Entry] = field(default_factory=list)
    """Directories to go: an empty file takes the place of each, with which the engine removes all that is in it."""
    opened: list[Entry] = field(default_factory=list)
    """Directories that their owners must be let into, to remove names from them."""
    removed: list[Entry] = field(default_factory=list)
    """Names to remove; files by then."""
    sent: list[Entry] = field(default_factory=list)
    paths: frozenset[bytes] = frozenset()


class Sending:
    """What is sent to one directory of a container."""

    def __init__(self, api: ContainerArchive, dir: str, mounted: Mounted, present: Present) -> None:
        """Take a directory; nothing is asked yet."""
        self._api = api
        self._dir = dir
        self._mounted = mounted
        self._present = present
        self._where, self._prefix = _above(dir)
        self._top_is_fixed = False
        self._is_new = False
        self._leading: list[Entry] = []
        self._remove: Sequence[str] | None = None

    def carry_out(self, before: Tree | None, after: Tree, monitor: Monitor) -> None:
        """Make the directory what a copy is.

        Args:
            before: What it was; None where it was not there.
            after: What it shall be.
            monitor: Told of progress; may stop it, which is then undone.

        Raises:
            UnsentError: It failed.
        """
        source = before or Tree(after.fd, Manifest(after.manifest.header, {}), after.boundaries)
        plan = steps(source, after, monitor.check)
        if plan.is_empty:
            return
        self._find_place(is_new=before is None)
        work = self._work(plan, source, after)
        self._check_possible(work, source, after)
        try:
            self._do(work, source, after, monitor)
            monitor.progress("checking", 0)
            wrong, others = self._differing(work, after, monitor.check)
            _refuse(wrong, "did not become what was sent")
        except BaseException as error:
            self._put_back(before, after, error)
            raise
        if others:
            raise UnsentError(
                f"{self._dir} was written to during the restore: {_listed(others)} differ from the backup, all else is "
                "as in it; stop what writes there, and restore again",
                partly=True,
            )

    # -- what can be known before --

    def _find_place(self, *, is_new: bool) -> None:
        """Find the directory that archives are unpacked in."""
        holder = self._mounted.holder_of(self._dir)
        if self._api.root_is_read_only():
            if holder is None:
                raise UnsentError(
                    f"the filesystem of container {self._api.name} is read-only; only its volumes can be restored. "
                    "Nothing was changed"
                )
            if holder == self._dir:
                self._where, self._prefix, self._top_is_fixed = self._dir, b"", True
        self._is_new = is_new
        if not is_new:
            return
        now = time.time_ns()
        missing: list[bytes] = []
        while self._where != "/" and self._api.kind_of(self._where) != "dir":
            self._where, name = _above(self._where)
            missing.append(name)
        path = b""
        for name in reversed(missing):
            path = path + b"/" + name if path else name
            self._leading.append(Entry(path, stat.S_IFDIR | 0o755, 0, 0, 0, now, 0, 0))
        self._prefix = b"/".join([*reversed(missing), self._prefix])

    def _check_possible(self, work: _Work, source: Tree, after: Tree) -> None:
        for entry in work.sent:
            if (name := cannot_say(entry)) is not None:
                raise UnsentError(
                    f"{display(entry.path)} has an attribute named {display(name)} in the backup, which cannot be sent "
                    "by Docker's API; use the direct or the helper way. Nothing was changed"
                )
        if self._top_is_fixed:
            now, then = (tree.manifest.entries[b""] for tree in (source, after))
            if (now.mode, now.uid, now.gid) != (then.mode, then.uid, then.gid):
                raise UnsentError(
                    f"{self._dir} is a volume itself in container {self._api.name}, whose own filesystem is read-only: "
                    "its mode and owner cannot be set by Docker's API; use the direct or the helper way. Nothing was "
                    "changed"
                )
        if work.removed:
            self._check_removable(work)

    def _check_removable(self, work: _Work) -> None:
        if self._api.is_paused():
            raise UnsentError(
                f"container {self._api.name} is paused, and files of it would have to be removed, which only a command "
                f"in it can do; unpause it first: docker unpause {self._api.name}. Nothing was changed"
            )
        self._remove = self._api.remover()
        if self._remove is None:
            raise UnsentError(
                f"{_listed([entry.path for entry in work.removed])} would have to be removed, which only a command in "
                f"the container can do, and {self._api.name} has neither rm nor busybox; copy a "
                "static busybox to its /bin, or use the direct or the helper way. Nothing was changed"
            )
        if any(not _is_text(entry.path) for entry in work.removed):
            try:
                self._api.run(self._from_stdin(), given=b"")
            except RefusedError as error:
                raise UnsentError(
                    "names that are not UTF-8 would have to be removed, for which the container needs xargs beside rm "
                    f"({error}); copy a static busybox to its /bin, or use another way. Nothing was changed"
                ) from None

    # -- what is to be done --

    def _work(self, plan: Plan, source: Tree, after: Tree) -> _Work:
        gone = {entry.path for entry in plan.removed}
        top = [entry for entry in plan.removed if self._stays(parent(entry.path), after) and entry.path]
        brought = [entry for entry in (*plan.added, *plan.replaced, *plan.touched) if can_be_sent(entry)]
        paths = frozenset(gone | {entry.path for entry in brought})
        stirred = {parent(path) for path in paths if path} | {entry.path for entry in brought if entry.is_dir}
        stirred |= {entry.path for entry in plan.restamped}
        fixed = {*after.boundaries, *([b""] if self._top_is_fixed else [])}
        entries = after.manifest.entries
        ends = [entries[path] for path in sorted(stirred - fixed) if path in entries and entries[path].is_dir]
        sent = sorted((entry for entry in brought if entry.path not in fixed), key=lambda entry: entry.path)
        return _Work(
            felled=[entry for entry in top if entry.is_dir],
            opened=self._to_open(top, source),
            removed=top,
            sent=[*map(_passing_on_nothing, sent), *ends],
            paths=paths,
        )

    @staticmethod
    def _stays(path: bytes, after: Tree) -> bool:
        entry = after.manifest.entries.get(path)
        return entry is not None and entry.is_dir

    @staticmethod
    def _to_open(top: Iterable[Entry], source: Tree) -> list[Entry]:
        holders = {parent(entry.path) for entry in top}
        entries = (source.manifest.entries[path] for path in sorted(holders))
        return [
            msgspec.structs.replace(entry, mode=entry.mode | _OWN) for entry in entries if entry.mode & _OWN != _OWN
        ]

    # -- doing it --

    def _do(self, work: _Work, source: Tree, after: Tree, monitor: Monitor) -> None:
        if work.felled or work.opened:
            felled = [
                Entry(entry.path, stat.S_IFREG | 0o600, entry.uid, entry.gid, 0, 0, 0, 0) for entry in work.felled
            ]
            self._unpack([*work.opened, *felled], source, monitor.check)
        if work.removed:
            monitor.progress("removing", 0, len(work.removed))
            self._remove_names(work.removed, source, monitor.check)
        if work.sent:
            monitor.progress("sending", 0, len(work.sent))
            self._unpack(work.sent, after, monitor.check, leading=self._leading)

    def _unpack(self, entries: Sequence[Entry], tree: Tree, check: Check, *, leading: Sequence[Entry] = ()) -> None:
        def chunks() -> Iterator[bytes]:
            if leading:
                yield from _without_end(pack(leading, tree.fd, b"", check))
            yield from pack(entries, tree.fd, self._prefix, check)

        self._check_path()
        self._api.unpack_in(self._where, chunks())

    def _check_path(self) -> None:
        path = ""
        for name in [part for part in (self._where if self._leading else self._dir).split("/") if part]:
            path = f"{path}/{name}"
            if self._api.kind_of(path) not in self._expected(path):
                raise RefusedError(f"{path} is no directory any more")

    def _expected(self, path: str) -> tuple[str | None, ...]:
        return ("dir", None) if self._is_new and path == self._dir else ("dir",)

    def _remove_names(self, entries: Sequence[Entry], source: Tree, check: Check) -> None:
        # By the owner of the directory: what a link swapped in on the way led to, only that user could lose.
        groups: dict[str, list[bytes]] = {}
        for entry in entries:
            above = source.manifest.entries[parent(entry.path)]
            groups.setdefault(f"{above.uid}:{above.gid}", []).append(os.fsencode(self._dir) + b"/" + entry.path)
        for user, paths in groups.items():
            assert self._remove is not None, "found before"
            for chunk in _chunks(path for path in paths if _is_text(path)):
                check()
                self._run([*self._remove, *(path.decode() for path in chunk)], user)
            for chunk in _chunks(path for path in paths if not _is_text(path)):
                check()
                self._run(self._from_stdin(), user, given=b"".join(path + b"\0" for path in chunk))

    def _run(self, argv: Sequence[str], user: str, *, given: bytes | None = None) -> None:
        status, said = self._api.run(argv, user=user, given=given)
        if status != 0 and user != _SUPERUSER and self._api.overrides_modes():
            status, said = self._api.run(argv, user=_SUPERUSER, given=given)  # the owner may not get to its directory
        if status != 0:
            text = display(said.strip()[-300:])
            raise RefusedError(f"{argv[0]} in the container, as user {user}, ended with {status}: {text}")

    def _from_stdin(self) -> list[str]:
        assert self._remove is not None, "found before"
        first = self._remove[0]
        return [*([first] if first.endswith("busybox") else []), "xargs", "-0", *self._remove]

    # -- seeing to it --

    def _differing(self, work: _Work, wanted: Tree, check: Check) -> tuple[list[bytes], list[bytes]]:
        """Return the paths that are not as wanted: those that were worked on, and others."""
        with self._present(self._dir, wanted.boundaries, check) as now:
            plan = steps(as_shown(now), as_shown(wanted), check)
        fixed = {b""} if self._top_is_fixed else set()
        every = [*plan.added, *plan.replaced, *plan.touched, *plan.removed]
        found = [entry.path for entry in every if entry.path not in fixed]
        return [path for path in found if path in work.paths], [path for path in found if path not in work.paths]

    def _put_back(self, before: Tree | None, after: Tree, error: BaseException) -> None:
        """Make the directory what it was.

        Raises:
            UnsentError: It is so, or that failed too. None where `error` is no failure but a stop.
        """
        try:
            if before is None:
                self._take_away(after)
            else:
                self._bring_back(before)
        except (SandpointError, RefusedError, OSError) as failed:
            raise UnsentError(
                f"{self._dir} in container {self._api.name} could not be restored ({_told(error)}), and not be made "
                f"what it was before either: {failed}. It is neither as before nor as the backup",
                partly=True,
            ) from error
        if isinstance(error, SandpointError | RefusedError | OSError):
            raise UnsentError(
                f"{self._dir} in container {self._api.name} cannot be restored by Docker's API: {_told(error)}. It is "
                "as before"
            ) from error

    def _bring_back(self, before: Tree) -> None:
        with self._present(self._dir, before.boundaries, _go_on) as now:
            plan = steps(as_shown(now), as_shown(before), _go_on)
            if plan.is_empty:
                return
            plan = _with_own_entries(plan, before)
            self._is_new = False
            work = self._work(plan, now, before)
            if work.removed:
                self._check_removable(work)
            self._do(work, now, before, _Deaf())
        wrong, _ = self._differing(work, before, _go_on)
        _refuse(wrong, "did not become what they were")

    def _take_away(self, after: Tree) -> None:
        """Remove a directory that was not there, with those that were made to lead to it."""
        above, name = self._where, (self._leading[0].path if self._leading else self._prefix).split(b"/")[0]
        path = f"{above.rstrip('/')}/{name.decode()}"
        if self._api.kind_of(path) is None:
            return
        remove = self._remove or self._api.remover()
        if remove is None:
            raise RefusedError(f"{path} was made, and the container has no rm to remove it")
        with suppress(KeyError):
            file = msgspec.structs.replace(
                after.manifest.entries[b""], path=name, mode=stat.S_IFREG | 0o600, xattrs=None
            )
            self._api.unpack_in(above, pack([file], after.fd, b"", _go_on))
        self._run([*remove, path], _SUPERUSER)


class _Deaf:
    """Watches what must not be stopped."""

    def check(self) -> None:
        """Go on."""

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """Go on."""


def _go_on() -> None:
    """Never stop."""


def _passing_on_nothing(entry: Entry) -> Entry:
    """Return an entry without an ACL that what is made in it would inherit; directories are sent again at the end."""
    if not entry.is_dir or _DEFAULT_ACL not in (entry.xattrs or {}):
        return entry
    return msgspec.structs.replace(
        entry, xattrs={name: value for name, value in (entry.xattrs or {}).items() if name != _DEFAULT_ACL}
    )


def _with_own_entries(plan: Plan, tree: Tree) -> Plan:
    """Return a plan with all that its tree knows of entries."""
    own = tree.manifest.entries

    def of(entries: Iterable[Entry]) -> list[Entry]:
        return [own.get(entry.path, entry) for entry in entries]

    return Plan(of(plan.added), of(plan.replaced), of(plan.touched), of(plan.restamped), plan.removed)


def _without_end(chunks: Iterable[bytes]) -> Iterator[bytes]:
    last = b""
    for chunk in chunks:
        if last:
            yield last
        last = chunk


def _above(path: str) -> tuple[str, bytes]:
    above, _, name = path.rpartition("/")
    return above or "/", name.encode()


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def _chunks(paths: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for path in paths:
        if chunk and size + len(path) > _ARGUMENTS_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(path)
        size += len(path) + 1
    if chunk:
        yield chunk


def _listed(paths: Sequence[bytes]) -> str:
    shown = ", ".join(display(path) or "the directory itself" for path in sorted(paths)[:_NAMED])
    return f"{shown} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else shown


def _refuse(wrong: Sequence[bytes], what: str) -> None:
    if wrong:
        raise RefusedError(f"{_listed(wrong)} {what}")


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
