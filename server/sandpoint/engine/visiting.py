"""The other side of `sandpoint.engine.visitor`, in the container's mount namespace. It loads next to nothing."""

import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from sandpoint.engine import linux

CLONE, VIEW, WRITE, ATTACH, DETACH, READY = b"clone", b"view", b"write", b"attach", b"detach", b"ready"


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
        elif what == WRITE:
            made.append(linux.clone_for_writing(fds[0], b""))
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
