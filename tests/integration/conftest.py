"""A place of its own for each test: tree, store, state, service. Mounts go when the test ends, however it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.killer import KillerProcess
from helpers.place import Place, ext4, unmount_all


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    unmount_all(tmp_path)


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder on a filesystem in memory, whose stamps prove as much as a disk's: for the base of a place."""
    with ext4(tmp_path / "memory") as memory:
        base = memory / "base"
        base.mkdir()
        yield base
        unmount_all(base)


@pytest.fixture(scope="module")
def killer() -> Iterator[KillerProcess]:
    with KillerProcess() as process:
        yield process
