from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.server.mcpserver import Context

from sandpoint.mcp_server.progress import CREATE, FORK, INTERVAL, RESTORE, TOTAL, VERIFY, ProgressReporter
from sandpoint.models import Progress

pytestmark = pytest.mark.anyio


@dataclass
class FakeContext:
    sent: list[tuple[float, float | None, str | None]] = field(default_factory=list)

    async def report_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.sent.append((progress, total, message))

    @property
    def values(self) -> list[float]:
        return [value for value, _, _ in self.sent]

    @property
    def messages(self) -> list[str | None]:
        return [message for _, _, message in self.sent]


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        self.now += INTERVAL
        return self.now


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


def reporter(context: FakeContext, phases: dict[str, int], **options: Any) -> ProgressReporter:
    return ProgressReporter(cast("Context[Any, Any]", context), phases, **{"clock": Clock()} | options)


async def test_the_percentage_is_of_the_whole_and_the_message_says_the_phase(context: FakeContext) -> None:
    report = reporter(context, CREATE)
    for phase, done, total in [
        ("reading", 0, None),
        ("reading", 10_000, None),
        ("archiving", 0, 4),
        ("archiving", 4, 4),
        ("storing", 0, None),
    ]:
        await report(Progress(phase=phase, done=done, total=total))
    await report.finish()
    assert context.messages == [
        "reading: 0%",
        "reading: 25%",
        "archiving: 25%",
        "archiving: 85%",
        "storing: 85%",
        "done: 100%",
    ]
    assert {total for _, total, _ in context.sent} == {TOTAL}
    assert context.values[-1] == TOTAL


async def test_no_more_often_than_the_interval_except_for_a_new_phase(context: FakeContext) -> None:
    now = 100.0
    report = reporter(context, CREATE, clock=lambda: now)
    await report(Progress(phase="reading", done=1, total=100))
    await report(Progress(phase="reading", done=2, total=100))
    await report(Progress(phase="archiving", done=1, total=100))
    now += INTERVAL
    await report(Progress(phase="archiving", done=50, total=100))
    assert context.messages == ["reading: 0%", "archiving: 1%", "archiving: 42%"]


async def test_phases_that_come_again_or_are_not_known_move_it_on(context: FakeContext) -> None:
    report = reporter(context, RESTORE)
    for phase in ("comparing", "reading", "archiving", "reading", "unheard of", "applying"):
        for done in (0, 5, 10):
            await report(Progress(phase=phase, done=done, total=10))
    assert len({message.split(":")[0] for message in context.messages if message}) == 5
    assert context.values == sorted(set(context.values))
    assert context.values[-1] < TOTAL


async def test_each_directory_of_a_fork_has_its_share(context: FakeContext) -> None:
    report = reporter(context, FORK, rounds=4)
    ends = []
    for _ in range(4):
        for phase in ("fetching", "extracting", "applying"):
            for done in (0, 10):
                await report(Progress(phase=phase, done=done, total=10))
        ends.append(context.values[-1])
    assert ends == [23.75, 48.75, 73.75, 98.75]


async def test_a_wait_is_told_without_a_phase(context: FakeContext) -> None:
    report = reporter(context, RESTORE)
    await report(Progress(phase="comparing", done=1, total=2))
    await report.note("waiting for the user's answer")
    assert context.messages[-1] == "waiting for the user's answer: 30%"
    assert context.values == sorted(set(context.values))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*RESTORE, "unheard of"]),
            st.integers(0, 10**12),
            st.none() | st.integers(0, 10**12),
        )
    ),
    st.integers(1, 5),
)
async def test_whatever_is_reported_it_rises_and_ends_at_a_hundred(
    reports: list[tuple[str, int, int | None]], rounds: int
) -> None:
    context = FakeContext()
    report = reporter(context, RESTORE, rounds=rounds)
    for phase, done, total in reports:
        await report(Progress(phase=phase, done=done, total=total))
    await report.finish()
    assert context.values == sorted(set(context.values))
    assert all(0 <= value < TOTAL for value in context.values[:-1])
    assert context.values[-1] == TOTAL


async def test_one_phase_alone_is_its_own_percentage(context: FakeContext) -> None:
    report = reporter(context, VERIFY)
    for done in (0, 25, 50):
        await report(Progress(phase="verifying", done=done, total=100))
    assert context.values == [0, 25, 50]
