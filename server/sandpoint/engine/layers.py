"""Reading a layer as a directory: by a kernel mount where that is allowed, by FUSE, or by extracting it."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from sandpoint.engine import linux, squashfs, tools
from sandpoint.engine.tools import Check

_FUSE_WAIT_S = 10.0


@contextmanager
def opened_layer(layer: str, paths: Sequence[bytes], scratch: str, check: Check) -> Iterator[int]:
    """Yield a descriptor of a directory that shows at least some paths of a checked layer.

    Args:
        layer: The layer's file, its digest already checked.
        paths: What will be read; `b""` stands for everything.
        scratch: A folder of the operation's own.
        check: May raise to stop.

    Raises:
        ToolFailedError, ToolMissingError: The layer can be read in no way.
    """
    place = tempfile.mkdtemp(prefix="layer-", dir=scratch)
    for way in (_mounted, _fuse_mounted):
        opened = way(layer, place)
        if opened is not None:
            fd, close = opened
            break
    else:
        wanted = None if b"" in paths else paths
        squashfs.extract(layer, os.path.join(place, "tree"), wanted, scratch=scratch, check=check)
        fd, close = os.open(os.path.join(place, "tree"), os.O_RDONLY | os.O_DIRECTORY), lambda: None
    try:
        yield fd
    finally:
        os.close(fd)
        close()


def _mounted(layer: str, place: str) -> tuple[int, Callable[[], None]] | None:
    try:
        mount_layer(layer, place, linux.attached_images(), flags=linux.MS_NOSYMFOLLOW)
    except OSError:
        return None
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    linux.detach(os.fsencode(place))  # the descriptor keeps it; nothing is left if we die
    return fd, lambda: None


def mount_layer(layer: str, place: str, attached: Mapping[bytes, Sequence[str]], *, flags: int = 0) -> None:
    """Mount a layer with the kernel's squashfs, read-only, `nosuid,nodev`.

    Args:
        layer: Its file.
        place: A directory.
        attached: Loop devices in use: one that shows the layer already is used again.
        flags: More flags of the mount.

    Raises:
        OSError: EPERM without the right; ENODEV without the filesystem.
    """
    with linux.loop_device(os.fsencode(layer), attached) as device:
        linux.mount(device, os.fsencode(place), "squashfs", flags | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)


@contextmanager
def mounted_layers(layers: Sequence[str], places: Sequence[str]) -> Iterator[list[bytes]]:
    """Mount layers for the block, and yield short paths of their tops: what is stacked on them keeps them.

    Raises:
        OSError: See `mount_layer`.
    """
    opened: list[int] = []
    attached = linux.attached_images()
    try:
        for layer, place in zip(layers, places, strict=True):
            mount_layer(layer, place, attached)
            opened.append(os.open(place, os.O_PATH | os.O_DIRECTORY))
        yield [b"/proc/self/fd/%d" % fd for fd in opened]
    finally:
        for fd, place in zip(opened, places, strict=False):
            os.close(fd)
            linux.detach(os.fsencode(place))


def _fuse_mounted(layer: str, place: str) -> tuple[int, Callable[[], None]] | None:
    try:
        fuse_mount_layer(layer, place, check=lambda: None)
    except (tools.ToolFailedError, tools.ToolMissingError):
        return None
    return os.open(place, os.O_RDONLY | os.O_DIRECTORY), lambda: fuse_unmount(place)


def fuse_mount_layer(layer: str, place: str, *, check: Check) -> None:
    """Mount a layer with squashfuse_ll.

    Raises:
        ToolMissingError: It is not installed.
        ToolFailedError: It may not mount here.
    """
    tools.require("fusermount3")
    fuse_run(["squashfuse_ll", layer, place], place, check)


def fuse_run(argv: Sequence[str], place: str, check: Check) -> None:
    """Start a FUSE program that goes into the background, and wait until its mount is there.

    Raises:
        ToolMissingError: It is not installed.
        ToolFailedError: It ended with an error, or its mount does not come.
    """
    before = os.stat(place).st_dev
    tools.run_daemon(argv, check=check)
    deadline = time.monotonic() + _FUSE_WAIT_S
    while os.stat(place).st_dev == before:
        check()
        if time.monotonic() > deadline:
            raise tools.ToolFailedError(f"{argv[0]} started, but its mount did not come within {_FUSE_WAIT_S} s")
        time.sleep(0.005)


def fuse_unmount(place: str) -> None:
    """Take a FUSE mount away at once; its program ends when the last user leaves."""
    with suppress(OSError):
        linux.detach(os.fsencode(place))
        return
    tools.run(["fusermount3", "-u", "-z", place], check=lambda: None)
