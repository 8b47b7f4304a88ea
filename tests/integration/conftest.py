"""A place of its own for each test: tree, store, state, service. Mounts go when the test ends, however it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.place import Place, unmount_all


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    unmount_all(tmp_path)
