"""How much runs at once, and that quick things do not wait for long ones."""

from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import pytest

from sandpoint.errors import ServerBusyError
from sandpoint.mcp_server.limits import QUICK_OPERATIONS, Gate
from sandpoint.mcp_server.logs import Call, current_call

pytestmark = pytest.mark.anyio


async def test_those_that_wait_come_in_by_turns() -> None:
    gate = Gate(1, 10)
    order: list[int] = []

    async def work(number: int) -> None:
        async with gate.enter():
            order.append(number)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(work, number)
    assert order == [*range(20)]
    with anyio.fail_after(30):
        await gate.wait_idle()


async def test_one_that_waits_too_long_or_is_cancelled_takes_no_room() -> None:
    gate = Gate(1, 0.02)
    async with gate.enter():
        with pytest.raises(ServerBusyError, match="none ended within"):
            async with gate.enter():
                pytest.fail("there was no room")
        with anyio.move_on_after(0.001):
            async with gate.enter():
                pytest.fail("there was no room")
    async with gate.enter():
        pass


async def test_listing_has_room_of_its_own() -> None:
    gate = Gate(1, 0)
    async with gate.enter():
        token = current_call.set(Call(tool="list_backups"))
        try:
            with anyio.fail_after(30):
                async with gate.enter():
                    pass
        finally:
            current_call.reset(token)


async def test_who_is_sent_away_is_told_how_many_were_before_it() -> None:
    gate = Gate(1, 0)
    token = current_call.set(Call(tool="list_backups"))
    try:
        async with AsyncExitStack() as entered:
            for _ in range(QUICK_OPERATIONS):
                await entered.enter_async_context(gate.enter())
            with pytest.raises(ServerBusyError, match=f"^{QUICK_OPERATIONS} operations of other clients"):
                await entered.enter_async_context(gate.enter())
    finally:
        current_call.reset(token)


async def test_a_closed_gate_lets_out_and_not_in_and_sends_those_that_wait_away() -> None:
    gate = Gate(1, 10)
    outcomes: list[str] = []

    async def wait() -> None:
        try:
            async with gate.enter():
                outcomes.append("in")
        except ServerBusyError as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as tasks, gate.enter():
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        gate.close()
        with pytest.raises(ServerBusyError, match="about to stop"):
            async with gate.enter():
                pytest.fail("it is closed")
    assert [outcome[:24] for outcome in outcomes] == ["the server is about to s"]
    await gate.wait_idle()
