"""The freezer of a container of this machine, worked by its control group: a hundredth of the time that Docker takes.

Docker does not know of it. So a process of its own waits beside: should this one die, it lets the container go on.
"""

import errno
import os
import subprocess
import sys
import time
from contextlib import suppress

from sandpoint.engine.mounts import list_mounts
from sandpoint.sandboxes.docker.host import Target

_WAIT_S = 5.0
_POLL_S = 0.0005
_GONE = frozenset({errno.ENOENT, errno.ENODEV})
_GUARD = "import os, sys; sys.stdin.buffer.read(); os.write(int(sys.argv[1]), sys.argv[2].encode())"


class Cgroup:
    """The control group of a container, of version 1 or 2, with a freezer."""

    def __init__(self, folder: str, version: int) -> None:
        """Name its folder."""
        self._folder = folder
        self._control = os.path.join(folder, "cgroup.freeze" if version == 2 else "freezer.state")
        self._stop, self._go = ("1", "0") if version == 2 else ("FROZEN", "THAWED")
        self._version = version
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, target: Target) -> "Cgroup | None":
        """Return that of a container; None where it is not of this machine, or is not for us to write."""
        if os.geteuid() != 0:
            return None
        with suppress(OSError), open(f"/proc/{target.pid}/cgroup") as groups:
            for line in groups:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                own = _up_to(path, target.id)
                if own is None or controllers not in {"", "freezer"}:
                    continue
                version = 1 if controllers else 2
                found = cls(_mounted(version) + own, version)
                if os.access(found._control, os.W_OK):
                    return found
        return None

    @property
    def is_frozen(self) -> bool:
        """Whether all in it stands still."""
        if self._version == 2:
            with open(os.path.join(self._folder, "cgroup.events")) as events:
                return "frozen 1" in events.read()
        with open(self._control) as state:
            return state.read().strip() == self._stop

    def prepare(self) -> None:
        """Start the process that lets it go on should this one die."""
        control = os.open(self._control, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(control), self._go],
                stdin=subprocess.PIPE,
                pass_fds=(control,),
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(control)

    def freeze(self) -> None:
        """Stop all in it, after `prepare`.

        Raises:
            OSError: It does not come to a stop, or is gone.
        """
        ends = time.monotonic() + _WAIT_S
        self._write(self._stop)
        while not self.is_frozen:
            if time.monotonic() > ends:
                raise TimeoutError("a process of it could not be stopped")
            time.sleep(_POLL_S)
            if self._version == 1:
                self._write(self._stop)  # what was started meanwhile is stopped by another try only

    def thaw(self) -> bool:
        """Let all in it go on, if it is still there; return whether it was stopped until now.

        Raises:
            OSError: It is there, and cannot be let go on.
        """
        try:
            was_frozen = self.is_frozen
            self._write(self._go)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False
        return was_frozen

    def end(self) -> None:
        """End the process that waits."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
            if guard.stdin is not None:
                guard.stdin.close()

    def _write(self, state: str) -> None:
        with open(self._control, "w") as control:
            control.write(state)


def _up_to(path: str, container_id: str) -> str | None:
    """Return the part of a group's path that is the container's own: its processes may be in groups below."""
    parts = path.split("/")
    for count, part in enumerate(parts, start=1):
        if container_id in part:
            return "/".join(parts[:count])
    return None


def _mounted(version: int) -> str:
    """Return where control groups with a freezer are mounted.

    Raises:
        FileNotFoundError: Nowhere.
    """
    for mount in list_mounts():
        if version == 2 and mount.fstype == "cgroup2":
            return os.fsdecode(mount.point)
        if version == 1 and mount.fstype == "cgroup" and os.fsdecode(mount.point).endswith("/freezer"):
            return os.fsdecode(mount.point)
    raise FileNotFoundError("no control groups are mounted")
