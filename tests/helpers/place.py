"""A service with its own store and state, for tests that use the real engine."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import anyio

from sandpoint.chains import DEFAULT_LIMITS
from sandpoint.engine.state import DEFAULT_CACHE_BYTES
from sandpoint.models import Backup, Changes, RestoreResult, UnmountResult
from sandpoint.sandboxes.local import LocalSandbox
from sandpoint.service import BackupService
from sandpoint.stores import Store
from sandpoint.stores.local import LocalStore

P = ParamSpec("P")
R = TypeVar("R")

OverlayKind = Literal["kernel", "fuse"]


class Place:
    """A folder with a tree, a store and a state directory, and the service between them."""

    def __init__(
        self,
        base: Path,
        *,
        overlay: OverlayKind | None = None,
        state: Path | None = None,
        chain_layers: int = DEFAULT_LIMITS.layers,
        store: Store | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.base = base
        self.tree = base / "tree"
        self.store = base / "store"
        self.state = state or base / "state"
        self.backups = store or LocalStore(str(self.store))
        self.sandbox = LocalSandbox(
            str(self.state),
            kept_out=(str(self.store),),
            overlay=overlay,
            cache_bytes=cache_bytes,
            relay=self.backups.relay,
        )
        limits = replace(DEFAULT_LIMITS, layers=chain_layers)
        self.service = BackupService(self.sandbox, self.backups, chain_limits=limits)

    @staticmethod
    def run(function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an operation to its end."""
        return anyio.run(partial(function, *args, **kwargs))

    def create(self, dir: Path | str | None = None, **options: Any) -> Backup:
        """Back up the tree, or another directory."""
        return self.run(self.service.create, str(dir or self.tree), **options)

    def restore(self, backup_id: str, **options: Any) -> RestoreResult:
        """Restore a backup."""
        if "dir" in options:
            options["dir"] = str(options["dir"])
        return self.run(self.service.restore, backup_id, **options)

    def diff(self, backup_id: str, other_id: str | None = None, **options: Any) -> Changes:
        """Compare a backup with the tree, or another backup."""
        return self.run(self.service.diff, backup_id, other_id, **options)

    def unmount(self, dir: Path | None = None, **options: Any) -> UnmountResult:
        """Take down the overlay on the tree, or on another directory."""
        return self.run(self.service.unmount, str(dir or self.tree), **options)

    def ids(self) -> list[str]:
        """Return the ids of all backups in the store, newest first."""
        page = self.run(self.service.list, limit=1000, include_expired=True)
        return [backup.id for backup in page.backups]

    def mounts(self) -> list[str]:
        """Return where something is mounted in this place."""
        return mounts_in(self.base) + (mounts_in(self.state) if self.base not in self.state.parents else [])

    def needed(self) -> set[str]:
        """Return the keys of all files of the store that belong to visible backups."""
        keys = set()
        for path in (self.store / "backups").glob("*/meta.json"):
            keys.add(str(path.relative_to(self.store)))
            with suppress(ValueError, KeyError, TypeError):  # damaged, or another's
                metadata = json.loads(path.read_text())
                files = (*metadata["layers"], metadata["manifest"], *metadata["parentManifests"])
                keys.update(file["key"] for file in files)
        return keys

    def leftovers(self) -> list[str]:
        """Return what only a running operation may have: scratch folders, parts of backups, scratch mounts."""
        found = [str(path) for path in _children(self.state / "work")]
        found += [str(path) for path in _children(self.store / "incoming")]
        found += [str(path) for path in _children(self.state / "turns") if path.name != "lock"]
        found += [str(path) for path in _children(self.state / "overlays") if not (path / "ready").exists()]
        needed = self.needed()
        for backup in _children(self.store / "backups"):
            if not any(f"backups/{backup.name}/{name}" in needed for name in _FILES):
                found.append(str(backup))
            found += [str(path) for path in _children(backup) if path.name not in _FILES]
        found += [str(path) for path in _children(self.state / "cache") if ".partial" in path.name]
        found += [str(path) for path in _children(self.tree) if path.name.startswith(".sandpoint-")]
        found += mounts_in(self.state)
        return found

    def assert_clean_but_lower(self) -> None:
        """As `assert_clean`, but a FUSE overlay in place keeps its layers mounted in its own folder."""
        assert [found for found in self.leftovers() if "/lower/" not in found] == []

    def loops(self) -> list[str]:
        """Return loop devices on files of this place."""
        return loops_in(self.base)

    def assert_clean(self) -> None:
        """Fail if anything is left that only a running operation may have."""
        left = self.leftovers()
        assert not left, f"left over: {left}"

    def assert_unmounted(self) -> None:
        """Fail unless nothing is mounted here and no loop device is in use, after a moment for the kernel."""
        assert self.mounts() == []
        self.assert_loops(0)

    def assert_loops(self, number: int) -> None:
        """Fail unless so many loop devices are on files of this place, each on one of its own.

        A mount namespace that a neighbour's test has made meanwhile keeps a copy of each mount until it ends.
        """
        deadline = time.monotonic() + 60
        while len(self.loops()) > number and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(self.loops()) == len(set(self.loops())) == number, self.loops()


_FILES = {"data.sqsh", "manifest.zst", "meta.json"}


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def mounts_in(folder: Path) -> list[str]:
    """Return where something is mounted at or below a folder, in the order of the kernel's table."""
    wanted = os.fsencode(folder)
    points = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = line.split(b" ")[4].decode("unicode_escape").encode("latin-1")
            if point == wanted or point.startswith(wanted + b"/"):
                points.append(os.fsdecode(point))
    return points


def mount_line(point: Path) -> str:
    """Return the last line of the mount table for a mount point."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split(" ")[4] == str(point)][-1]


def unmount_all(folder: Path) -> None:
    """Take away all mounts at and below a folder."""
    for _ in range(100):
        points = mounts_in(folder)
        if not points:
            return
        subprocess.run(["umount", "-l", points[-1]], check=False, capture_output=True)


def loops_in(folder: Path) -> list[str]:
    """Return the backing files of loop devices that lie below a folder."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = path.read_text().strip()
        except OSError:
            continue
        if file.startswith(f"{folder}/"):
            found.append(file)
    return found


@contextmanager
def mounted(point: Path, *arguments: str) -> Iterator[Path]:
    """Mount something for the time of a block: `mount ARGUMENTS POINT`."""
    subprocess.run(["mount", *arguments, str(point)], check=True)
    try:
        yield point
    finally:
        unmount_all(point)


@contextmanager
def tmpfs(point: Path, *, size: str = "4m") -> Iterator[Path]:
    """Mount a small tmpfs for the time of a block."""
    point.mkdir(parents=True, exist_ok=True)
    with mounted(point, "-t", "tmpfs", "-o", f"size={size}", "sandpoint-test"):
        yield point


@contextmanager
def ext4(point: Path, *, size: int = 128 << 20) -> Iterator[Path]:
    """Mount an ext4 filesystem that lies in memory for the time of a block: unlike tmpfs it stamps every change."""
    point.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sandpoint-test-", dir="/dev/shm") as folder:
        image = Path(folder, "image")
        with image.open("xb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", str(image)], check=True)
        with mounted(point, "-o", "loop", str(image)):
            (point / "lost+found").rmdir()
            yield point


@contextmanager
def bind(source: Path, point: Path) -> Iterator[Path]:
    """Make a file or directory appear at another place for the time of a block."""
    with mounted(point, "--bind", str(source)):
        yield point


def message(error: BaseException) -> str:
    """Return what a person reads of an error."""
    return str(error)
