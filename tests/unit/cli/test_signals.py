import os
import signal

import anyio
import pytest

from sandpoint.cli.failures import StoppedError, describe
from sandpoint.cli.signals import until_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_the_clean_up_is_waited_for(number: signal.Signals) -> None:
    steps = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
                steps.append("cleaned up")

    with pytest.raises(StoppedError) as caught:
        anyio.run(until_signal, work)
    assert caught.value.number == number
    assert steps == ["cleaned up"]


def test_an_error_after_a_signal_is_told_with_the_signal() -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        raise RuntimeError("half done")

    with pytest.raises(StoppedError) as caught:
        anyio.run(until_signal, work)
    failure = describe(caught.value)
    assert (failure.code, failure.status) == ("CANCELLED", 130)
    assert failure.message == "stopped by SIGINT before it was done: half done"


def test_an_error_without_a_signal_is_itself() -> None:
    async def work() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"^broken$"):
        anyio.run(until_signal, work)


def test_work_that_is_done_all_the_same_counts_as_done() -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        return "done"

    assert anyio.run(until_signal, work) == "done"


def test_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def work() -> None:
        assert signal.getsignal(signal.SIGTERM) != before

    anyio.run(until_signal, work)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
