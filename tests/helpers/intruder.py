"""A hostile process in a container, as root there: a child of the test that is shut into the container's tree."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers.docker import Target
from sandpoint.engine import linux

Attack = Callable[[Path, str, int], None]
"""Given the directory, a path of this machine that must never be reached, and a number that grows."""

_AT = -100  # AT_FDCWD
_MOST_SECONDS = 60.0


def exchange(first: Path, second: Path) -> None:
    """Let two names change their files, at once."""
    linux.exchange(_AT, os.fsencode(first), _AT, os.fsencode(second))


def _swap(path: Path, make: Callable[[Path], None]) -> None:
    aside = path.with_name(f"~{path.name}")
    with suppress(OSError):
        make(aside)
        exchange(path, aside)
        exchange(path, aside)
    with suppress(OSError):
        aside.unlink()


def _folders(top: Path) -> list[Path]:
    return [Path(above, name) for above, names, _ in os.walk(top) for name in names if name[0] != "~"]


def _files(top: Path) -> list[Path]:
    return [Path(above, name) for above, _, names in os.walk(top) for name in names if name[0] != "~"]


def links_for_folders(directory: Path, outside: str, number: int) -> None:
    """Put links to the outside in the place of folders."""
    for folder in _folders(directory):
        _swap(folder, lambda path: path.symlink_to(outside))


def links_in_staging(directory: Path, outside: str, number: int) -> None:
    """Put links in the place of folders that are being extracted, and shut these."""
    for staging in directory.glob(".sandpoint-*"):
        for folder in _folders(staging / "tree"):
            with suppress(OSError):
                folder.chmod(0)
            _swap(folder, lambda path: path.symlink_to(outside))


def staging_itself(directory: Path, outside: str, number: int) -> None:
    """Put a link in the place of the staging folder, and of what is in it."""
    for staging in directory.glob(".sandpoint-*"):
        for path in (staging / "trash", staging / "tree", staging):
            _swap(path, lambda aside: aside.symlink_to(outside))


def pipes_for_files(directory: Path, outside: str, number: int) -> None:
    """Let all files be named pipes half of the time."""
    _all_at_once(directory, os.mkfifo)


def devices_for_files(directory: Path, outside: str, number: int) -> None:
    """Let all files be the device of this machine half of the time."""
    device = int(outside)
    _all_at_once(directory, lambda path: os.mknod(path, 0o60666, device))


def _all_at_once(directory: Path, make: Callable[[Path], None]) -> None:
    for path in _files(directory):
        with suppress(OSError):
            aside = path.with_name(f"~{path.name}")
            if not aside.exists():
                make(aside)
            exchange(path, aside)
    time.sleep(0.01)


def the_directory(directory: Path, outside: str, number: int) -> None:
    """Move the directory itself away and back, with a link in its place."""
    _swap(directory, lambda path: path.symlink_to(outside))


@contextmanager
def intruder(target: Target, attack: Attack, directory: str, outside: str) -> Iterator[None]:
    """Let one attack in the container for the time of a block."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def run(root: str) -> None:
        os.chroot(root)
        os.chdir("/")
        ready.set()
        stop, number = time.monotonic() + _MOST_SECONDS, 0
        while time.monotonic() < stop:
            with suppress(OSError):
                attack(Path(directory), outside, number)
            number += 1

    process = context.Process(target=run, args=(str(target.root),), daemon=True)
    process.start()
    try:
        assert ready.wait(_MOST_SECONDS)
        yield
    finally:
        process.kill()
        process.join()
