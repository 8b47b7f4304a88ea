"""The open directory of one operation, and what is special about where it lies."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sandpoint.engine import linux, mounts
from sandpoint.engine.directory import open_directory
from sandpoint.engine.mounts import Mount
from sandpoint.engine.overlay import Overlay, own_overlays
from sandpoint.engine.roots import Root
from sandpoint.engine.state import State

_SETTLE_WAIT_S = 2.0
"""How long a capture waits for the filesystem to settle. Without, it is as good, but a later restore compares bytes."""


@dataclass(frozen=True)
class Place:
    """An open directory and what is special about where it lies."""

    path: str
    fd: int
    root: Root
    boundaries: frozenset[bytes]
    """Where foreign filesystems are mounted, relative to the directory."""
    stamps: bool
    """Whether stamps prove that a file is unchanged."""
    is_overlay: bool
    """Whether overlays of ours are mounted on it or below."""
    overlay: Overlay | None
    """The kernel overlay of ours that is mounted on it, if nothing else is mounted there."""

    def upper_is_stamped(self) -> bool:
        """Whether stamps prove that what was written to its overlay is unchanged."""
        if self.overlay is None:
            return False
        fd = os.open(self.overlay.upper, os.O_PATH)
        try:
            mount = mounts.mount_of(fd, mounts.list_mounts())
            return mount is not None and mount.fstype in mounts.STAMPED_FILESYSTEMS
        finally:
            os.close(fd)


@contextmanager
def opened_place(state: State, path: str) -> Iterator[Place]:
    """Open a directory. Overlays of ours below it are part of it, all other mounts are not.

    Raises:
        InvalidBackupConfigError: It cannot be opened.
    """
    fd = open_directory(path, state.root)
    try:
        table = state.root.mounts()
        overlays = own_overlays(state, path, table)
        own = {os.fsencode(overlay.record.dir) for overlay in overlays}
        below = {mount.point for mount in mounts.mounts_below(os.fsencode(path), table)}
        prefix = len(os.fsencode(path)) + 1
        yield Place(
            path,
            fd,
            state.root,
            boundaries=frozenset(point[prefix:] for point in below - own),
            stamps=_has_stamps(fd, table, state) and not own & below,
            is_overlay=bool(own),
            overlay=_on_top(overlays, path) if below <= own else None,
        )
    finally:
        os.close(fd)


def _has_stamps(fd: int, table: Sequence[Mount], state: State) -> bool:
    mount = mounts.mount_of(fd, table)
    return mount is not None and state.root.has_stamps(mount)


def _on_top(overlays: Sequence[Overlay], path: str) -> Overlay | None:
    is_alone = len(overlays) == 1 and overlays[0].record.dir == path and overlays[0].record.kind == "kernel"
    return overlays[0] if is_alone else None


def settle(place: Place) -> bool:
    """Write out what is written through mappings, and return whether that is done: stamps prove nothing else.

    The kernel stamps a file at the first write to a mapped page; further writes go unseen until the page has been
    written out. So they are written out after the time that stamps are compared with was taken.
    """
    done: list[bool] = []

    def sync() -> None:
        with suppress(OSError):
            linux.sync_filesystem(place.fd, place.path)
            done.append(True)

    thread = threading.Thread(target=sync, name="sandpoint-settle", daemon=True)
    thread.start()
    thread.join(_SETTLE_WAIT_S)
    return bool(done)
