"""Where the paths of directories begin: at this machine's own root, a container's, or in a folder that stands for one.

Every access to a directory that is backed up or restored, as opposed to folders of our own, goes through a root.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from sandpoint.engine import linux, mounts
from sandpoint.engine.mounts import Mount
from sandpoint.engine.visitor import Visitor

OVERLAY_PREFIX = "sandpoint-"
"""Of the source of every overlay of ours, in mount tables."""


class Root(Protocol):
    """A root. Paths are absolute, as `parse_directory` returns them; no link in them is followed."""

    def open(self, path: str, flags: int) -> int:
        """Open a directory below it.

        Raises:
            OSError: As `linux.openat2`.
        """
        ...

    def exists(self, path: str) -> bool:
        """Whether anything of that name is there."""
        ...

    def real_path(self, path: str) -> str | None:
        """Return where a path with links in it leads; None where that is not to be told."""
        ...

    def mounts(self) -> list[Mount]:
        """Return the mounts below it, in the order they were made, by their paths from it."""
        ...

    def suits_overlay(self, path: str) -> bool:
        """Whether an overlay on a directory lasts as long as the sandbox, and hides changes from nobody outside."""
        ...

    def has_stamps(self, mount: Mount) -> bool:
        """Whether every change of a file on a mount moves its ctime, by this machine's clock."""
        ...

    def clone_for_reading(self, fd: int, path: bytes) -> int:
        """Return a descriptor of a private view of a directory below it; see `linux.clone_for_reading`.

        Where there can be none, it is one of the directory itself, if whoever writes there can read no less than we.

        Raises:
            OSError: There can be none, and must be.
        """
        ...

    def clone_for_writing(self, fd: int) -> int:
        """Return a descriptor of a folder of ours below it, for programs that write there by paths.

        It is a view (see `linux.clone_for_writing`) where others can write in the folder too.

        Raises:
            OSError: There can be none, and must be.
        """
        ...

    def view_for_programs(self) -> int | None:
        """Return a view as `clone_for_reading` does of all that lies below the root, for programs that go by paths.

        None: they may go about as they are, for the root is that of the user who runs them.

        Raises:
            OSError: There can be none.
        """
        ...

    def put_mount(self, source: bytes, fd: int, path: str) -> None:
        """Make the mount at a path of our own appear on an open directory below the root too.

        Raises:
            OSError: ESTALE where that directory is not at its path any more; nothing is mounted.
        """
        ...

    def take_mount(self, fd: int, target: bytes) -> None:
        """Make the mount whose top is an open directory below the root appear at a path of our own too."""
        ...

    def detach(self, fd: int) -> None:
        """Take away the mount whose top is an open directory below the root."""
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


class HostRoot:
    """The root of this machine itself."""

    def open(self, path: str, flags: int) -> int:
        """Open a directory."""
        return linux.openat2(os.fsencode(path), flags, resolve=linux.NO_LINKS)

    def exists(self, path: str) -> bool:
        """Whether anything of that name is there."""
        return os.path.lexists(path)

    def real_path(self, path: str) -> str | None:
        """Return where a path with links in it leads."""
        return os.path.realpath(path)

    def mounts(self) -> list[Mount]:
        """Return the mounts of this process's namespace."""
        return mounts.list_mounts()

    def suits_overlay(self, path: str) -> bool:
        """Not on a person's own machine: an overlay is gone after a reboot."""
        return False

    def has_stamps(self, mount: Mount) -> bool:
        """Whether its filesystem is one that does."""
        return mount.fstype in mounts.STAMPED_FILESYSTEMS

    def clone_for_reading(self, fd: int, path: bytes) -> int:
        """Return a view of a directory, or the directory itself."""
        try:
            return linux.clone_for_reading(fd, path)
        except OSError:
            return os.dup(fd)  # an ordinary user: whoever may swap links here can read no more than we

    def clone_for_writing(self, fd: int) -> int:
        """Return the folder itself: it is closed to all but us."""
        return os.dup(fd)

    def view_for_programs(self) -> None:
        """Return none: it is the user's own."""
        return

    def put_mount(self, source: bytes, fd: int, path: str) -> None:
        """Bind a mount to an open directory."""
        linux.bind(source, b"/proc/self/fd/%d" % fd)

    def take_mount(self, fd: int, target: bytes) -> None:
        """Bind the mount of an open directory to a path."""
        linux.bind(b"/proc/self/fd/%d" % fd, target)

    def detach(self, fd: int) -> None:
        """Take a mount away."""
        linux.detach_open(fd)

    def close(self) -> None:
        """There is nothing to end."""


HOST = HostRoot()


class _ContainedRoot(ABC):
    """A root that is a container's own, or a copy of that: nothing in it leads out, and none of its links is told."""

    @property
    @abstractmethod
    def _top(self) -> str:
        """The path by which it is reached from here."""

    @abstractmethod
    def clone_for_reading(self, fd: int, path: bytes) -> int:
        """Return a view of a directory; see `linux.clone_for_reading`."""

    def open(self, path: str, flags: int) -> int:
        """Open a directory in it."""
        # Not held from call to call: a container that is removed could not go.
        top = os.open(self._top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return linux.openat2(os.fsencode(path), flags, dir_fd=top, resolve=linux.RESOLVE_IN_ROOT | linux.NO_LINKS)
        finally:
            os.close(top)

    def exists(self, path: str) -> bool:
        """Whether anything of that name is in it."""
        try:
            os.close(self.open(path, os.O_PATH | os.O_NOFOLLOW))
        except FileNotFoundError:
            return False
        except OSError as error:
            return error.errno != errno.ENOTDIR
        return True

    def real_path(self, path: str) -> str | None:
        """Return nothing: what a container's links say is the container's own business."""
        return None

    def view_for_programs(self) -> int:
        """Return a view of all of it."""
        top = self.open("/", os.O_PATH | os.O_DIRECTORY)
        try:
            return self.clone_for_reading(top, b"/")
        finally:
            os.close(top)


class ContainerRoot(_ContainedRoot):
    """The root of a container that runs on this machine; for the superuser."""

    def __init__(self, pid: int, *, stamped: bool, is_right: Callable[[], bool] = lambda: True) -> None:
        """Enter a container by its first process.

        Args:
            pid: Its number.
            is_right: Whether that is still the number of that process; see `Visitor`.
            stamped: Whether the layers of the container's own filesystem lie where every change moves a file's ctime.

        Raises:
            OSError: It is gone, or may not be entered.
        """
        self._stamped = stamped
        self._visitor = Visitor(pid, is_right)

    @property
    def is_alive(self) -> bool:
        """Whether the container still runs."""
        return self._visitor.is_alive

    @property
    def _top(self) -> str:
        return f"/proc/{self._visitor.pid}/root"

    def mounts(self) -> list[Mount]:
        """Return the container's mounts."""
        return mounts.list_mounts(str(self._visitor.pid))

    def suits_overlay(self, path: str) -> bool:
        """Whether a directory is on the container's own filesystem, and holds nothing that is mounted from outside."""
        table = self.mounts()
        point = os.fsencode(path)
        foreign = [mount for mount in table if mount.point != b"/" and not mount.source.startswith(OVERLAY_PREFIX)]
        return not any(
            mount.point == point or point.startswith(mount.point.rstrip(b"/") + b"/") for mount in foreign
        ) and not mounts.mounts_below(point, foreign)

    def has_stamps(self, mount: Mount) -> bool:
        """Whether its filesystem is one that does, or is the container's own and made of such."""
        return mount.fstype in mounts.STAMPED_FILESYSTEMS or (
            self._stamped and mount.fstype == "overlay" and mount.point == b"/"
        )

    def clone_for_reading(self, fd: int, path: bytes) -> int:
        """Return a view of a directory; see `linux.clone_for_reading`."""
        return self._visitor.view(fd)

    def clone_for_writing(self, fd: int) -> int:
        """Return a view of a folder: the container's root may be what we are, and exchanges what is in it."""
        return self._visitor.view_to_write(fd)

    def put_mount(self, source: bytes, fd: int, path: str) -> None:
        """Make a mount of ours appear in the container."""
        place = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mount = linux.clone_mount(place)
        finally:
            os.close(place)
        try:
            self._visitor.attach(mount, fd)
            if not self._is_on_top(mount, path):
                self._visitor.detach(mount)
                raise OSError(errno.ESTALE, "the directory was moved, or something was mounted on it, meanwhile")
        finally:
            os.close(mount)

    def _is_on_top(self, mount: int, path: str) -> bool:
        there = mounts.mounts_at(os.fsencode(path), self.mounts())
        return bool(there) and there[-1].id == linux.mount_id(mount)

    def take_mount(self, fd: int, target: bytes) -> None:
        """Make a mount of the container appear at a path of ours."""
        mount = self._visitor.clone(fd)
        try:
            linux.move_mount_to(mount, target)
        finally:
            os.close(mount)

    def detach(self, fd: int) -> None:
        """Take a mount of the container away."""
        self._visitor.detach(fd)

    def close(self) -> None:
        """Leave the container."""
        self._visitor.close()


class FolderRoot(_ContainedRoot):
    """A folder that stands for a sandbox's root: what lies in it is a copy, and nothing is mounted there."""

    def __init__(self, folder: str) -> None:
        """Name the folder."""
        self.folder = folder

    @property
    def _top(self) -> str:
        return self.folder

    def mounts(self) -> list[Mount]:
        """Nothing is mounted there."""
        return []

    def suits_overlay(self, path: str) -> bool:
        """Nothing can be mounted in a copy."""
        return False

    def has_stamps(self, mount: Mount) -> bool:
        """Return no: a copy is made anew each time."""
        return False

    def clone_for_reading(self, fd: int, path: bytes) -> int:
        """Return a view of a directory; see `linux.clone_for_reading`."""
        return linux.clone_for_reading(fd, path)

    def clone_for_writing(self, fd: int) -> int:
        """Return the folder itself: the container cannot reach it."""
        return os.dup(fd)

    def put_mount(self, source: bytes, fd: int, path: str) -> None:
        """Refuse."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self.folder)

    def take_mount(self, fd: int, target: bytes) -> None:
        """Refuse."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self.folder)

    def detach(self, fd: int) -> None:
        """Refuse."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self.folder)

    def close(self) -> None:
        """There is nothing to end."""
