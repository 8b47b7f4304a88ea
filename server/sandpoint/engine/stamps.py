"""All stamps of a tree, looked at again in the shortest time: by processes side by side where they are many.

The processes are started, and have seen all stamps once, before the moment that counts.
"""

import marshal
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

from sandpoint.engine import linux

TYPE_CHECKING = False
if TYPE_CHECKING:  # not loaded by the processes, which need little and must start soon
    from sandpoint.engine.manifest import Manifest
    from sandpoint.engine.tools import Check

Directory = tuple[bytes, list[bytes], list[int], list[int]]
"""Its path, names in it, and for each of these its number and ctime; -1 for one that proves nothing."""

_SHARE = 4000
"""Below so many stamps a process more is not worth its start."""
_MOST = 4
_INSIDE = linux.RESOLVE_BENEATH | linux.NO_LINKS
_REACH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_LENGTH = struct.Struct("<Q")
_GO = b"g"
_CHECK_EVERY_S = 0.05
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandpoint.engine.stamps import serve; serve(int(sys.argv[2]))"
)


class Share:
    """A part of the directories of a tree, and their stamps."""

    def __init__(self, root: int, directories: Sequence[Directory]) -> None:
        """Look at the stamps a first time."""
        self._root = root
        self._directories = directories
        self._seen = [self._first(*directory) for directory in directories]

    def _first(self, path: bytes, names: list[bytes], numbers: list[int], ctimes: list[int]) -> list[linux.Stamp]:
        seen = [linux.NO_STAMP] * len(names)
        fd = self._open(path)
        if fd is not None:
            try:
                seen = [linux.stamp(fd, name) for name in names]
            finally:
                os.close(fd)
        return [
            stamp if _is_of(stamp, number, ctime) else linux.NO_STAMP
            for stamp, number, ctime in zip(seen, numbers, ctimes, strict=True)
        ]

    def _open(self, path: bytes) -> int | None:
        try:
            return linux.openat2(path or b".", _REACH, dir_fd=self._root, resolve=_INSIDE)
        except OSError:
            return None

    def moved(self) -> list[tuple[bytes, list[bytes]]]:
        """Return the names whose stamps are other ones now, by directory."""
        found = []
        for (path, names, _, _), seen in zip(self._directories, self._seen, strict=True):
            fd = self._open(path)
            if fd is None:
                found.append((path, names))
                continue
            try:
                moved = linux.other_stamps(fd, names, seen)
            finally:
                os.close(fd)
            if moved:
                found.append((path, moved))
        return found


def _is_of(stamp: linux.Stamp, number: int, ctime: int) -> bool:
    device, inode, changed = linux.status_of_stamp(stamp)
    # As `walk.number_of` has it, which is not loaded here: it needs more than Python itself.
    return stamp != linux.NO_STAMP and changed == ctime and (inode ^ device << 40) & (2**63 - 1) == number


class Stamps:
    """The stamps of a tree. Use it as a context manager."""

    def __init__(self, root: int, tree: "Manifest", check: "Check") -> None:
        """Look at them a first time.

        Args:
            root: A descriptor of the directory.
            tree: What is there, and when it was looked at: younger stamps prove nothing.
            check: May raise to stop.
        """
        self._root = root
        self._top = tree.entries[b""]
        self._settled = tree.settled_before_ns
        self._open = ExitStack()
        self._own: Share | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        shares = _shares(_directories(tree), len(tree.entries))
        try:
            if len(shares) == 1:
                self._own = Share(root, shares[0])
            else:
                self._others = [self._start(share) for share in shares]
                self._answers(check)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> "Stamps":
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def _start(self, share: Sequence[Directory]) -> subprocess.Popen[bytes]:
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, home, str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._root,),
            env={},
            cwd="/",
            process_group=0,
        )
        self._open.callback(_end, process)
        assert process.stdin is not None, "it is a pipe"
        _send(process.stdin, share)
        return process

    def moved(self, check: "Check") -> list[bytes]:
        """Return the paths of the tree whose stamps are other ones now, or prove nothing.

        Raises:
            OSError: One of the processes ended.
        """
        status = os.fstat(self._root)
        moved = [b""] if status.st_ctime_ns >= self._settled or status.st_ctime_ns != self._top.ctime_ns else []
        for process in self._others:
            assert process.stdin is not None, "it is a pipe"
            process.stdin.write(_GO)
            process.stdin.flush()
        found = self._own.moved() if self._own is not None else self._answers(check)
        return moved + [path + b"/" + name if path else name for path, names in found for name in names]

    def _answers(self, check: "Check") -> list[tuple[bytes, list[bytes]]]:
        found: list[tuple[bytes, list[bytes]]] = []
        for process in self._others:
            assert process.stdout is not None, "it is a pipe"
            while not select.select([process.stdout], [], [], _CHECK_EVERY_S)[0]:
                check()
            found += _receive(process.stdout)
        return found


def _directories(tree: "Manifest") -> Iterator[Directory]:
    mounts = frozenset(tree.header.mounts)
    settled = tree.settled_before_ns
    for path, children in tree.children.items():
        entries = [tree.entries[child] for child in children if child not in mounts]
        start = len(path) + 1 if path else 0
        yield (
            path,
            [entry.path[start:] for entry in entries],
            [entry.ino for entry in entries],
            [entry.ctime_ns if entry.ctime_ns < settled else -1 for entry in entries],
        )


def _shares(directories: Iterator[Directory], count: int) -> list[list[Directory]]:
    number = max(1, min(len(os.sched_getaffinity(0)), _MOST, count // _SHARE))
    shares: list[list[Directory]] = [[] for _ in range(number)]
    sizes = [0] * number
    for directory in directories:
        least = sizes.index(min(sizes))
        shares[least].append(directory)
        sizes[least] += len(directory[1]) + 2
    return shares


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what it was sent last
                continue
    process.wait()


def _send(pipe: IO[bytes], content: Any) -> None:
    packed = marshal.dumps(content)
    pipe.write(_LENGTH.pack(len(packed)) + packed)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> list[tuple[bytes, list[bytes]]]:
    head = pipe.read(_LENGTH.size)
    body = pipe.read(*_LENGTH.unpack(head)) if len(head) == _LENGTH.size else b""
    if not body:
        raise OSError("a process that looks at stamps has ended")
    found: list[tuple[bytes, list[bytes]]] = marshal.loads(body)  # noqa: S302 - of a process of our own
    return found


def hurry(thread: int) -> None:
    """Let a thread go before all that is not in a hurry: a container waits for it. For the superuser, else nothing.

    A higher priority of the usual kind is not enough: where each session has its share, it counts in that alone.
    """
    if os.sched_getscheduler(thread) == os.SCHED_OTHER:
        with suppress(PermissionError):
            os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def serve(root: int) -> None:
    """Look at the stamps of a share, first at once and then whenever asked. For a process of its own."""
    asked, answer = sys.stdin.buffer, sys.stdout.buffer
    share = Share(root, marshal.loads(asked.read(*_LENGTH.unpack(asked.read(_LENGTH.size)))))  # noqa: S302
    _send(answer, [])
    while asked.read(1) == _GO:
        hurry(0)
        _send(answer, share.moved())
