"""Newest first, by as few requests as it takes: against a server in memory."""

import bisect
import random
from collections.abc import Collection, Iterable
from functools import cache, cached_property
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandpoint.errors import StoreUnavailableError
from sandpoint.stores.base import FIRST_MS, Position, time_of
from sandpoint.stores.s3_listing import AHEAD_MS, Listing

NOW_MS = 1_790_000_000_000
HOUR_MS, YEAR_MS = 3_600_000, 31_536_000_000


class Server:
    """Names in ascending order, and the times of backups whose ids were not made by time."""

    def __init__(
        self,
        ids: Iterable[str],
        created: dict[str, int] | None = None,
        others: Iterable[str] = (),
        *,
        page: int = 1000,
    ) -> None:
        self.created = created or {}
        self.ids = {*ids, *self.created}
        self.names = sorted({*self.ids, *others})
        self.page = page
        self.lists = 0
        self.reads = 0

    def folders(self, after: str) -> tuple[list[str], bool]:
        self.lists += 1
        start = bisect.bisect_right(self.names, after)
        return self.names[start : start + self.page], start + self.page < len(self.names)

    def place(self, ids: Collection[str]) -> dict[str, Position]:
        self.reads += len(ids)
        return {each: self.position(each) for each in ids if each in self.ids}

    def position(self, backup_id: str) -> Position:
        time = time_of(backup_id)
        if time is None:
            created, digits = self.created[backup_id], UUID(backup_id).int >> 80
            time = digits if FIRST_MS <= digits <= created else created
        return Position(time, backup_id)

    @cached_property
    def in_order(self) -> list[Position]:
        return sorted(map(self.position, self.ids), reverse=True)

    def listed(self, after: Position | None = None, limit: int | None = None) -> list[Position]:
        return listed(Listing(self.folders, self.place), after, limit)


def listed(listing: Listing, after: Position | None = None, limit: int | None = None) -> list[Position]:
    found: list[Position] = []
    for some in listing.newest(after, NOW_MS):
        found += some
        if limit is not None and len(found) >= limit:
            break
    return found[:limit]


def as_id(ms: int, rest: int, version: int = 7) -> str:
    rest &= ~(0xF << 76 | 3 << 62)
    return str(UUID(int=ms << 80 | rest | version << 76 | 2 << 62))


def made_at(ms: int, chance: random.Random) -> str:
    return as_id(ms, chance.getrandbits(80))


def by_chance(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


def over(span_ms: int, count: int) -> Server:
    chance = random.Random(5)
    return Server(made_at(NOW_MS - chance.randrange(span_ms), chance) for _ in range(count))


def in_bursts(bursts: int, count: int, span_ms: int) -> Server:
    chance = random.Random(6)
    times = [NOW_MS - chance.randrange(span_ms) for _ in range(bursts)]
    return Server(made_at(times[number % bursts], chance) for number in range(count))


EVEN = {
    "a year": (YEAR_MS, 100_000),
    "an hour": (HOUR_MS, 100_000),
    "few within a year": (YEAR_MS, 2500),
}
BURSTS = {
    "a millisecond": (1, 1),
    "a millisecond of last year": (1, YEAR_MS),
    "bursts within an hour": (50, HOUR_MS),
}


@cache
def many(shape: str) -> Server:
    if shape in EVEN:
        return over(*EVEN[shape])
    bursts, span_ms = BURSTS[shape]
    return in_bursts(bursts, 100_000, span_ms)


@pytest.mark.parametrize("shape", EVEN)
def test_the_newest_twenty_of_many_take_few_requests(shape: str) -> None:
    server = many(shape)
    server.lists = 0
    assert server.listed(limit=21) == server.in_order[:21]
    assert server.lists <= 6  # and one for each backup


@pytest.mark.parametrize("shape", BURSTS)
def test_the_newest_of_bursts_take_not_many_more(shape: str) -> None:
    server = many(shape)
    server.lists = 0
    assert server.listed(limit=21) == server.in_order[:21]
    assert server.lists <= 26


@pytest.mark.parametrize("shape", ["a year", "bursts within an hour"])
def test_a_page_further_on_takes_few_requests_too(shape: str) -> None:
    server = many(shape)
    listing = Listing(server.folders, server.place)
    assert listed(listing, limit=50_001)[-1] == server.in_order[50_000]
    server.lists = 0
    assert listed(listing, server.in_order[50_000], 21) == server.in_order[50_001:50_022]
    assert server.lists <= 19


@pytest.mark.parametrize("shape", ["a year", "bursts within an hour"])
def test_all_of_many_take_hardly_more_requests_than_they_fill(shape: str) -> None:
    server = many(shape)
    server.lists = 0
    assert server.listed() == server.in_order
    assert server.lists <= 100_000 / 700 + 50


def test_ids_that_were_not_made_by_time_are_asked_for_once() -> None:
    chance = random.Random(7)
    foreign = {by_chance(chance): NOW_MS - chance.randrange(YEAR_MS) for _ in range(3000)}
    server = Server((made_at(NOW_MS - number * 1000, chance) for number in range(3000)), foreign)
    listing = Listing(server.folders, server.place)
    assert listed(listing) == server.in_order
    assert listed(listing) == server.in_order
    assert server.reads == len(foreign)


TIMES = st.one_of(
    st.integers(0, (1 << 48) - 1),
    st.integers(FIRST_MS - 3, FIRST_MS + 3),
    st.integers(NOW_MS - 5, NOW_MS + AHEAD_MS + 5),
    st.integers(NOW_MS - YEAR_MS, NOW_MS),
)
REST = st.one_of(st.integers(0, 7), st.integers(0, (1 << 80) - 1))


@st.composite
def servers(draw: st.DrawFn) -> Server:
    ids = [as_id(ms, rest) for ms, rest in draw(st.lists(st.tuples(TIMES, REST), max_size=30))]
    foreign = draw(st.lists(st.tuples(TIMES, REST, st.sampled_from([1, 4, 5, 6, 8]), TIMES), max_size=10))
    created = {as_id(ms, rest, version): time for ms, rest, version, time in foreign}
    others = draw(st.lists(st.sampled_from(["0", "01", "019", "ABC", "notes", "zzz", "01900000-x", "~"])))
    return Server(ids, created, others, page=draw(st.sampled_from([2, 7, 30])))


@settings(max_examples=60, deadline=None)
@given(servers(), st.data())
def test_every_backup_is_listed_once_and_in_its_place_from_anywhere(server: Server, data: st.DataObject) -> None:
    assert server.listed() == server.in_order
    if server.in_order:
        after = data.draw(st.sampled_from(server.in_order))
        rest = server.in_order[server.in_order.index(after) + 1 :]
        assert server.listed(after) == rest
        listing = Listing(server.folders, server.place)
        listed(listing, limit=data.draw(st.integers(1, 50)))
        assert listed(listing, after) == rest


@settings(max_examples=40, deadline=None)
@given(servers(), st.integers(1, 5), st.data())
def test_pages_hold_while_backups_come_and_go(server: Server, size: int, data: st.DataObject) -> None:
    before = server.in_order
    gone = {*data.draw(st.lists(st.sampled_from(before)))} if before else set()
    listing = Listing(server.folders, server.place)
    found: list[Position] = []
    while page := listed(listing, found[-1] if found else None, size):
        found += page
        server.names = [name for name in server.names if name not in {position.id for position in gone - {*found}}]
        server.names = sorted({*server.names, as_id(NOW_MS, len(found))})
    added = {*found} - {*before}
    assert [position for position in found if position not in added and position not in gone] == [
        position for position in before if position not in gone
    ]
    assert found == sorted({*found}, reverse=True)


def test_a_server_that_lists_the_same_again_and_again_is_not_listened_to() -> None:
    listing = Listing(lambda after: (["!"], True), lambda ids: {})
    with pytest.raises(StoreUnavailableError, match="again and again"):
        list(listing.newest(None, NOW_MS))
