"""Run the programs that the engine is built on: argv lists, never a shell; ended with their caller."""

import errno
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from typing import IO, Protocol

PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "squashfuse_ll": "squashfuse",
    "fuse-overlayfs": "fuse-overlayfs",
    "fusermount3": "fuse3",
    "git": "git",
    "setpriv": "util-linux",
}
"""The Debian and Ubuntu package of each program."""

ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": os.environ.get("HOME", "/"),
    "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", ""),  # git's rules may lie there; empty counts as unset
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
}
"""Nothing else is passed on: neither variables that bend a program's behaviour, nor secrets."""

_PIECE = 1 << 16
"""Bytes of a tool's input that are written at once: what a pipe takes."""

_CHECK_EVERY_MS = 50
_LOOK_EVERY = 10
"""Checks from one look at what a program waits for to the next."""
_OPENING_A_PIPE = frozenset({b"wait_for_partner", b"fifo_open"})
"""Where in the kernel a thread waits that has opened a named pipe whose other end nobody opens."""
_KEPT_OUTPUT = 64 << 10
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

Check = Callable[[], None]
"""Called often by long operations; raises to stop them (cancellation)."""


class Monitor(Protocol):
    """Who watches an operation: told how far it has come, and able to stop it."""

    def check(self) -> None:
        """Raise to stop the operation. Called often."""

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """Take note of progress, or raise to stop. Called often."""


class ToolMissingError(Exception):
    """A program is not on PATH; the message names the package and the command that installs it."""


class ToolFailedError(Exception):
    """A program ended with an error; the message is the last of what it said."""


def is_for_want_of_space(error: Exception) -> bool:
    """Whether something failed because a filesystem is full, in this process or in a program that said so."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return any(os.strerror(number) in str(error) for number in _NO_SPACE)


def find(program: str) -> str | None:
    """Return where a program is, or None."""
    return shutil.which(program, path=ENVIRONMENT["PATH"])


def install_hint(program: str) -> str:
    """Return the command that installs a program on Debian and Ubuntu."""
    return f"apt-get install {PACKAGES[program]}"


def require(program: str) -> str:
    """Return where a program is.

    Raises:
        ToolMissingError: It is not on PATH.
    """
    path = find(program)
    if path is None:
        raise ToolMissingError(f"{program} is not installed; install it with: {install_hint(program)}")
    return path


class Tool:
    """A running program. Its output is kept in files, so that a pipe never fills and blocks it."""

    def __init__(
        self,
        argv: Sequence[str | bytes],
        *,
        cwd: str | None = None,
        ok: Sequence[int] = (0,),
        outlives_us: bool = False,
        fed: Check | None = None,
        name: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it.

        Args:
            argv: The program by its name, then its arguments.
            cwd: Where it runs; `/proc/self/fd/N` for an open directory.
            ok: Exit statuses that are no error.
            outlives_us: Whether it goes on in the background after it has ended.
            fed: Called while `feed`, which writes its input, waits for it to take more; None: it has no input.
            name: What messages call it, if not by the name of its program.
            pass_fds: Descriptors that it has too, by the same numbers.

        Raises:
            ToolMissingError: It is not on PATH.
        """
        self.name = name or os.fsdecode(argv[0])
        self._ok = ok
        program = require(os.fsdecode(argv[0]))
        # After a kill of ours it would write on into what the next run clears away.
        setpriv = None if outlives_us else find("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        with ExitStack() as files:
            self._out = files.enter_context(tempfile.TemporaryFile())
            self._err = files.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                [*guard, program, *argv[1:]],
                cwd=cwd,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL if fed is None else subprocess.PIPE,
                bufsize=0,
                stdout=self._out,
                stderr=self._err,
                pass_fds=pass_fds,
                process_group=0,  # a terminal's Ctrl-C is ours to handle
            )
            self._files = files.pop_all()
        self._fed = fed
        self._unwritten = bytearray()
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)

    def feed(self, content: bytes | memoryview) -> None:
        """Write a piece of its input, small ones together. One that has ended takes no more: `finish` says why it did.

        Raises:
            BaseException: Whatever the check raises.
        """
        self._unwritten += content
        if len(self._unwritten) >= _PIECE:
            self._write_input()

    def _write_input(self) -> None:
        assert self._process.stdin is not None
        assert self._fed is not None
        content, self._unwritten = self._unwritten, bytearray()
        pipe, rest = self._process.stdin.fileno(), memoryview(content)
        with suppress(BrokenPipeError):
            while rest:
                try:
                    rest = rest[os.write(pipe, rest) :]
                except BlockingIOError:
                    self._fed()
                    _wait_for_room(pipe)

    def finish(self, check: Check) -> tuple[bytes, bytes]:
        """Wait for the end, and return what it wrote to stdout and stderr.

        Raises:
            ToolFailedError: It ended with an error.
            BaseException: Whatever `check` raises; the program is killed first.
        """
        try:
            if self._unwritten:
                self._write_input()
            self._close_input()
            self._wait(check)
        except BaseException:
            self.kill()
            raise
        out, err = self._read(self._out), self._read(self._err)
        status = self._process.returncode
        self._close()
        if status not in self._ok:
            raise ToolFailedError(f"{self.name} {_describe(status)}{_last_words(err or out)}")
        return out, err

    def _wait(self, check: Check) -> None:
        pidfd = os.pidfd_open(self._process.pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            for look in count(1):
                if poller.poll(_CHECK_EVERY_MS):
                    break
                check()
                if look % _LOOK_EVERY == 0 and _waits_for_pipe(self._process.pid):
                    raise ToolFailedError(
                        f"{self.name} was stopped: it met a named pipe that came in the place of a file, and would "
                        "wait for ever; end what changes the directory, or try again"
                    )
        finally:
            os.close(pidfd)
        self._process.wait()

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._close_input()
        self._process.wait()
        self._close()

    @staticmethod
    def _read(file: IO[bytes]) -> bytes:
        file.seek(0)
        return file.read()

    def _close(self) -> None:
        self._files.close()


def run(
    argv: Sequence[str | bytes], *, check: Check, cwd: str | None = None, ok: Sequence[int] = (0,)
) -> tuple[bytes, bytes]:
    """Run a program to its end; see `Tool`."""
    return Tool(argv, cwd=cwd, ok=ok).finish(check)


def run_daemon(argv: Sequence[str], *, check: Check) -> None:
    """Run a program that puts itself into the background, until it has."""
    Tool(argv, outlives_us=True).finish(check)


def _wait_for_room(pipe: int) -> None:
    poller = select.poll()
    poller.register(pipe, select.POLLOUT)
    poller.poll(_CHECK_EVERY_MS)


def _waits_for_pipe(pid: int) -> bool:
    """Whether a thread of a process waits until somebody opens the other end of a named pipe."""
    with suppress(OSError):  # it has ended, or keeps that to itself
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/wchan", "rb") as waiting:
                if waiting.read() in _OPENING_A_PIPE:
                    return True
    return False


def _describe(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"failed with status {status}"


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output[-_KEPT_OUTPUT:].decode("utf-8", "backslashreplace").splitlines()]
    lines = [line for line in lines if line]
    return f": {'; '.join(lines[-3:])[-500:]}" if lines else ""
