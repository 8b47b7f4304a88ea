"""A process of one thread in a container's mount namespace: what only a member of that may do, it does for the engine.

The engine gives it open directories and mounts, it gives back open mounts. It reads nothing by a path and runs no
program, for what lies around it is the container's. It ends with the engine, or with the container's first process:
none of the container's mounts outlives the container because of it.
"""

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from sandpoint.engine import linux

CLONE, VIEW, ATTACH, DETACH, READY = b"clone", b"view", b"attach", b"detach", b"ready"
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandpoint.engine.visitor import serve; "
    "serve(*map(int, sys.argv[2:]))"
)
_WAIT_S = 20.0


class Visitor:
    """The engine's side: starts the process, and asks it."""

    def __init__(self, pid: int) -> None:
        """Start it in the mount namespace of a process.

        Raises:
            OSError: The process is gone (ESRCH), or its namespace may not be entered.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._lock = threading.Lock()
        ours.settimeout(_WAIT_S)
        try:
            pidfd = os.pidfd_open(pid)
            try:
                self._process = self._start(pid, pidfd, theirs)
            finally:
                os.close(pidfd)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            self._ask(READY)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _start(pid: int, pidfd: int, theirs: socket.socket) -> subprocess.Popen[bytes]:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fds = (theirs.fileno(), namespace, pidfd)
            home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, home, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=fds,
                env={},
                cwd="/",
                process_group=0,
            )
        finally:
            os.close(namespace)

    @property
    def pid(self) -> int:
        """Its number; it is not given to another process before `close`."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it, and with it the container, is still there."""
        return self._process.poll() is None

    def clone(self, fd: int) -> int:
        """Return a mount that appears nowhere, of the mount whose top is an open directory."""
        return self._ask_for_fd(CLONE, fd)

    def view(self, fd: int) -> int:
        """Return what `linux.clone_for_reading` does."""
        return self._ask_for_fd(VIEW, fd)

    def attach(self, mount: int, fd: int) -> None:
        """Mount what appears nowhere on an open directory."""
        self._ask(ATTACH, mount, fd)

    def detach(self, fd: int) -> None:
        """Take away the mount whose top is an open directory."""
        self._ask(DETACH, fd)

    def _ask_for_fd(self, what: bytes, *fds: int) -> int:
        (found,) = self._ask(what, *fds)
        return found

    def _ask(self, what: bytes, *fds: int) -> list[int]:
        with self._lock:
            try:
                socket.send_fds(self._socket, [what], list(fds))
                answer, found, _, _ = socket.recv_fds(self._socket, 64, 1, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                raise OSError(
                    errno.ESRCH, f"the container's mounts cannot be reached: {error.strerror or error}"
                ) from error
        if not answer:
            raise OSError(errno.ESRCH, "the container is not running any more")
        if number := int(answer):
            raise OSError(number, os.strerror(number))
        return found

    def close(self) -> None:
        """End it, and wait until it has ended."""
        self._socket.close()
        try:
            self._process.wait(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(connection: int, namespace: int, pidfd: int) -> None:
    """Enter a mount namespace and answer the engine, until it or the container ends. For a process of its own."""
    asked = socket.socket(fileno=connection)
    sys.path.clear()  # from here on a module would be loaded from the container's files
    sys.meta_path.clear()
    entered = _number_of(lambda: linux.join_mount_namespace(namespace))
    os.close(namespace)
    poller = select.poll()
    poller.register(asked, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if pidfd in ready:
            return
        what, fds, _, _ = socket.recv_fds(asked, 64, 2, socket.MSG_CMSG_CLOEXEC)
        if not what:
            return
        number, made = (entered, []) if entered else _answer(what, fds)
        with suppress(BrokenPipeError):
            socket.send_fds(asked, [b"%d" % number], made)
        for fd in (*fds, *made):
            os.close(fd)


def _answer(what: bytes, fds: list[int]) -> tuple[int, list[int]]:
    made: list[int] = []

    def do() -> None:
        if what == CLONE:
            made.append(linux.clone_mount(fds[0]))
        elif what == VIEW:
            made.append(linux.clone_for_reading(fds[0], b""))
        elif what == ATTACH:
            linux.move_mount(fds[0], fds[1])
        elif what == DETACH:
            linux.detach_cwd(fds[0])

    return _number_of(do), made


def _number_of(work: Callable[[], None]) -> int:
    try:
        work()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
