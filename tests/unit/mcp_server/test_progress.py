from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from mcp.server.mcpserver import Context

from sandpoint.mcp_server.progress import INTERVAL, ProgressReporter
from sandpoint.models import Progress

pytestmark = pytest.mark.anyio


@dataclass
class FakeContext:
    sent: list[tuple[float, float | None, str | None]] = field(default_factory=list)

    async def report_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.sent.append((progress, total, message))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def report(context: FakeContext, clock: Clock) -> ProgressReporter:
    return ProgressReporter(cast("Context[Any, Any]", context), clock=clock)


async def test_the_value_rises_through_phases_of_different_units(
    report: ProgressReporter, context: FakeContext, clock: Clock
) -> None:
    for phase, done, total in [
        ("reading", 0, None),
        ("reading", 900, None),
        ("writing", 1, 9),
        ("writing", 9, 9),
        ("sending", 0, 5),
    ]:
        clock.now += 1
        await report(Progress(phase=phase, done=done, total=total))
    values = [value for value, _, _ in context.sent]
    assert values == sorted(set(values))
    assert [message for _, _, message in context.sent] == [
        "reading",
        "reading: 900",
        "writing: 11%",
        "writing: 100%",
        "sending: 0%",
    ]


async def test_no_more_often_than_the_interval_except_for_a_new_phase(
    report: ProgressReporter, context: FakeContext, clock: Clock
) -> None:
    await report(Progress(phase="reading", done=1, total=100))
    await report(Progress(phase="reading", done=2, total=100))
    await report(Progress(phase="writing", done=1, total=100))
    clock.now += INTERVAL
    await report(Progress(phase="writing", done=3, total=100))
    assert [message for _, _, message in context.sent] == ["reading: 1%", "writing: 1%", "writing: 3%"]


async def test_a_count_that_falls_back_or_overshoots_never_breaks_the_order(
    report: ProgressReporter, context: FakeContext, clock: Clock
) -> None:
    for done in (5, 2, 5, 20):
        clock.now += 1
        await report(Progress(phase="reading", done=done, total=10))
    await report(Progress(phase="writing"))
    values = [value for value, _, _ in context.sent]
    assert values == [0.4995, 0.999, 1.0]
