"""One operation at a time on one sandbox, in order of arrival, in one process and across processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from helpers.place import Place
from helpers.trees import assert_same, build_small, list_tree, write
from sandpoint.models import Progress
from sandpoint.sandboxes.local import LocalSandbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def small(place: Place) -> Place:
    build_small(place.tree)
    return place


class Log:
    """Who began and ended when, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def watch(self, name: str) -> Callable[[Progress], Awaitable[None]]:
        async def report(_progress: Progress) -> None:
            if self.lines[-1:] != [name]:
                self.lines.append(name)

        return report


async def test_operations_of_one_process_do_not_overlap_and_keep_their_order(small: Place) -> None:
    log = Log()
    names = [f"operation {number}" for number in range(8)]

    async def create(name: str) -> None:
        await small.service.create(str(small.tree), name=name, report=log.watch(name))  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(create, name)
            await anyio.lowlevel.checkpoint()

    assert log.lines == names
    page = await small.service.list()
    assert [backup.name for backup in page.backups] == names[::-1]


async def test_restores_and_creates_side_by_side_leave_one_of_the_states(small: Place) -> None:
    first = await small.service.create(str(small.tree))
    one = list_tree(small.tree)
    write(small.tree / "README.md", "two\n")
    second = await small.service.create(str(small.tree))
    two = list_tree(small.tree)

    async with anyio.create_task_group() as tasks:
        for backup in (first, second, first, second, first):
            tasks.start_soon(small.service.restore, backup.id)
            tasks.start_soon(small.service.create, str(small.tree))

    assert list_tree(small.tree) in (one, two)
    for backup in (await small.service.list()).backups:
        await small.service.restore(backup.id, dir=str(small.base / "other"), undo=False)
        assert list_tree(small.base / "other") in (one, two)
    small.assert_clean()


async def test_a_waiting_operation_that_is_cancelled_gives_its_place_up(small: Place) -> None:
    async with small.sandbox.turn():
        with anyio.move_on_after(0.1) as waiting:
            await small.service.create(str(small.tree))
        assert waiting.cancelled_caught
        assert len(list((small.state / "turns").iterdir())) == 2  # the lock, and the turn that is held
    with anyio.fail_after(60):
        await small.service.create(str(small.tree))
    small.assert_clean()


async def test_an_operation_that_fails_gives_its_turn_back(small: Place) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        async with small.sandbox.turn():
            raise ValueError("on purpose")
    with anyio.fail_after(60):
        await small.service.create(str(small.tree))


HOLD = """
import sys, anyio
from sandpoint.sandboxes.local import LocalSandbox

async def hold():
    print("waiting", flush=True)
    async with LocalSandbox(sys.argv[1]).turn():
        print("held", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)

anyio.run(hold)
"""


@asynccontextmanager
async def holder(state: Path) -> AsyncIterator[subprocess.Popen[str]]:
    """Start a process that draws a ticket; it says when it holds its turn, and keeps it until told."""
    with subprocess.Popen(  # noqa: ASYNC220 - started in a moment
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def tickets(state: Path) -> int:
    return len([name for name in os.listdir(state / "turns") if name.isdigit()])


async def wait_for_tickets(state: Path, number: int) -> None:
    with anyio.fail_after(60):
        while tickets(state) != number:  # noqa: ASYNC110 - of other processes
            await anyio.sleep(0.01)


async def test_processes_wait_for_each_other_in_order(small: Place) -> None:
    order: list[str] = []

    async def ours() -> None:
        async with LocalSandbox(str(small.state)).turn():
            order.append("ours")

    async with holder(small.state) as first:
        assert [await anyio.to_thread.run_sync(said, first) for _ in range(2)] == ["waiting", "held"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours)
            await wait_for_tickets(small.state, 2)
            async with holder(small.state) as last:
                assert await anyio.to_thread.run_sync(said, last) == "waiting"
                await wait_for_tickets(small.state, 3)
                assert order == []
                let_go(first)
                assert await anyio.to_thread.run_sync(said, last) == "held"
                assert order == ["ours"]
                let_go(last)
                assert await anyio.to_thread.run_sync(last.wait) == 0


async def test_a_killed_holder_blocks_nobody(small: Place) -> None:
    async with holder(small.state) as process:
        assert [await anyio.to_thread.run_sync(said, process) for _ in range(2)] == ["waiting", "held"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(small.service.create, str(small.tree))
            await wait_for_tickets(small.state, 2)
            process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
        assert time.monotonic() - killed < 10
    assert len((await small.service.list()).backups) == 1
    small.assert_clean()


async def test_a_killed_waiter_blocks_nobody(small: Place) -> None:
    async with small.sandbox.turn(), holder(small.state) as process:
        assert await anyio.to_thread.run_sync(said, process) == "waiting"
        await wait_for_tickets(small.state, 2)
        process.kill()
        await anyio.to_thread.run_sync(process.wait)
    with anyio.fail_after(60):
        await small.service.create(str(small.tree))
    small.assert_clean()


async def test_sandboxes_of_their_own_do_not_wait(small: Place) -> None:
    other = Place(small.base, state=small.base / "state2")
    before = list_tree(small.tree)
    async with small.sandbox.turn():
        with anyio.fail_after(60):
            backup = await other.service.create(str(small.tree))
    await small.service.restore(backup.id)
    assert_same(before, list_tree(small.tree))
