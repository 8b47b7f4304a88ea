"""Where a benchmark works: a fresh filesystem where that can be made, else a directory as it is."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

IMAGE_SIZE = 16 << 30
BUILD = Path(__file__).resolve().parents[2] / "build"


@dataclass(frozen=True)
class Workspace:
    """An empty directory, and what kind of filesystem it is on, in words."""

    path: str
    kind: str


@contextmanager
def workspace(directory: str | None = None) -> Iterator[Workspace]:
    """Make a workspace, and take it away whatever happens, SIGTERM included.

    An old and busy filesystem makes files many times slower than a fresh one, which would drown the
    differences between the contenders: root gets an ext4 of its own, in a sparse file. With a directory, that
    is used.
    """
    _terminate_orderly()
    if directory is not None:
        with _plain(directory, "the directory given, as it is") as space:
            yield space
        return
    base = os.environ.get("TMPDIR") or str(BUILD)
    os.makedirs(base, exist_ok=True)
    with _plain(base, "a directory on the machine's own filesystem, as it is") as space:
        mounted = _mount_fresh(space.path)
        if mounted is None:
            yield space
            return
        try:
            yield Workspace(mounted, "a fresh ext4 on a loop device")
        finally:
            _unmount_all(mounted)


@contextmanager
def _plain(base: str, kind: str) -> Iterator[Workspace]:
    path = tempfile.mkdtemp(prefix="sandpoint-bench-", dir=base)
    try:
        yield Workspace(path, kind)
    finally:
        _unmount_all(path)
        subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)


def _mount_fresh(base: str) -> str | None:
    if os.geteuid() != 0:
        return None
    image, target = os.path.join(base, "image"), os.path.join(base, "mnt")
    os.mkdir(target)
    with open(image, "xb") as file:
        file.truncate(IMAGE_SIZE)
    # Of inodes twice as many as usual, for trees of many small files. noinit_itable: no background thread fills their
    # tables while the contenders run.
    for command in (
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192", image],
        ["mount", "-o", "loop,noinit_itable", image, target],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            print(f"No fresh filesystem ({command[0]}: {reason}); using the machine's own.")
            return None
    return target


def _unmount_all(path: str) -> None:
    for target in reversed(_mounts_under(path)):
        # Lazy: a killed contender may take a moment to let go, and the image is deleted anyway.
        subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)


def _mounts_under(path: str) -> list[str]:
    with open("/proc/self/mountinfo", "rb") as file:
        targets = [line.split()[4].decode("unicode_escape") for line in file]
    return [target for target in targets if target == path or target.startswith(path + "/")]


def _terminate_orderly() -> None:
    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
