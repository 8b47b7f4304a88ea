"""Writes through a mapping, in a container's own filesystem: a backup sees them, also those after the last backup."""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from helpers.docker import Target
from helpers.kinds import Sandboxed, opened
from helpers.trees import write


@pytest.fixture
def here(tmp_path: Path, start_container: Callable[..., Target]) -> Iterator[Sandboxed]:
    with opened("direct", tmp_path, start_container) as sandboxed:
        write(sandboxed.tree / "mapped", bytes(4096))
        write(sandboxed.tree / "other", "content")
        yield sandboxed


def test_each_write_through_a_mapping_is_in_the_next_backup(here: Sandboxed) -> None:
    async def read(backup_id: str) -> int:
        async with await here.service.open_file(backup_id, "mapped") as stream:
            return (await stream.receive())[0]

    with open(here.tree / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        found = []
        for number in range(1, 6):
            mapped[0] = number
            found.append(anyio.run(read, here.create().id))
    assert found == [1, 2, 3, 4, 5]
