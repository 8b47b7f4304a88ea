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

from sandpoint.engine.visiting import ATTACH, CLONE, DETACH, READY, VIEW, WRITE

_START = (
    "import sys; package = type(sys)('sandpoint'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['sandpoint'] = package; from sandpoint.engine.visiting import serve; serve(*map(int, sys.argv[2:]))"
)
"""The package itself, whose names are for others, takes half of the time to load."""
_WAIT_S = 20.0


class Visitor:
    """The engine's side: starts the process, and asks it."""

    def __init__(self, pid: int, is_right: Callable[[], bool] = lambda: True) -> None:
        """Start it in the mount namespace of a process.

        Args:
            pid: Its number.
            is_right: Asked whether the number is that of the process that is meant: it may have ended, and the number
                have been given to another.

        Raises:
            OSError: The process is gone (ESRCH), or its namespace may not be entered.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._lock = threading.Lock()
        ours.settimeout(_WAIT_S)
        try:
            self._pidfd = os.pidfd_open(pid)
            try:
                self._process = self._start(pid, self._pidfd, theirs, is_right)
            except BaseException:
                os.close(self._pidfd)
                raise
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
    def _start(pid: int, pidfd: int, theirs: socket.socket, is_right: Callable[[], bool]) -> subprocess.Popen[bytes]:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not is_right() or _has_ended(pidfd):  # alive: all that was asked is of one process
                raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
            fds = (theirs.fileno(), namespace, pidfd)
            home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
        """Whether it and the container's first process are still there."""
        return self._pidfd >= 0 and self._process.poll() is None and not _has_ended(self._pidfd)

    def clone(self, fd: int) -> int:
        """Return a mount that appears nowhere, of the mount whose top is an open directory."""
        return self._ask_for_fd(CLONE, fd)

    def view(self, fd: int) -> int:
        """Return what `linux.clone_for_reading` does."""
        return self._ask_for_fd(VIEW, fd)

    def view_to_write(self, fd: int) -> int:
        """Return what `linux.clone_for_writing` does."""
        return self._ask_for_fd(WRITE, fd)

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
        if self._pidfd < 0:
            return
        self._socket.close()
        os.close(self._pidfd)
        self._pidfd = -1
        try:
            self._process.wait(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
