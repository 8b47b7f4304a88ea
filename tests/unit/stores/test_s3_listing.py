"""Newest first, by as few requests as it takes: against a server in memory."""

import bisect
import random
from collections.abc import Collection, Iterable
from uuid import UUID

import pytest

from sandpoint.stores.base import FIRST_MS, Position, time_of
from sandpoint.stores.s3_listing import Listing

NOW_MS = 1_790_000_000_000
HOUR_MS, YEAR_MS = 3_600_000, 31_536_000_000
PAGE = 1000


class Server:
    """Names in ascending order, and the times of backups whose ids were not made by time."""

    def __init__(self, ids: Iterable[str], created: dict[str, int] | None = None, others: Iterable[str] = ()) -> None:
        self.created = created or {}
        self.ids = {*ids, *self.created}
        self.names = sorted({*self.ids, *others})
        self.lists = 0
        self.reads = 0

    def folders(self, after: str) -> tuple[list[str], bool]:
        self.lists += 1
        start = bisect.bisect_right(self.names, after)
        return self.names[start : start + PAGE], start + PAGE < len(self.names)

    def place(self, ids: Collection[str]) -> dict[str, Position]:
        self.reads += len(ids)
        return {each: self.position(each) for each in ids if each in self.ids}

    def position(self, backup_id: str) -> Position:
        time = time_of(backup_id)
        if time is None:
            created, digits = self.created[backup_id], UUID(backup_id).int >> 80
            time = digits if FIRST_MS <= digits <= created else created
        return Position(time, backup_id)

    def in_order(self, after: Position | None = None) -> list[Position]:
        positions = sorted(map(self.position, self.ids), reverse=True)
        return [position for position in positions if after is None or position < after]

    def listed(self, after: Position | None = None, limit: int | None = None) -> list[Position]:
        return listed(Listing(self.folders, self.place), after, limit)


def listed(listing: Listing, after: Position | None = None, limit: int | None = None) -> list[Position]:
    found: list[Position] = []
    for some in listing.newest(after, NOW_MS):
        found += some
        if limit is not None and len(found) >= limit:
            break
    return found[:limit]


def made_at(ms: int, chance: random.Random) -> str:
    return str(UUID(int=ms << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)))


def by_chance(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


def over(span_ms: int, count: int) -> Server:
    chance = random.Random(5)
    return Server(made_at(NOW_MS - chance.randrange(span_ms), chance) for _ in range(count))


def in_bursts(bursts: int, count: int, span_ms: int) -> Server:
    chance = random.Random(6)
    times = [NOW_MS - chance.randrange(span_ms) for _ in range(bursts)]
    return Server(made_at(times[number % bursts], chance) for number in range(count))


MANY = {
    "a year": lambda: over(YEAR_MS, 100_000),
    "an hour": lambda: over(HOUR_MS, 100_000),
    "a minute": lambda: over(60_000, 100_000),
    "a second": lambda: over(1000, 100_000),
    "a millisecond": lambda: over(1, 100_000),
    "a millisecond of last year": lambda: in_bursts(1, 100_000, YEAR_MS),
    "bursts within an hour": lambda: in_bursts(50, 100_000, HOUR_MS),
    "bursts within a year": lambda: in_bursts(500, 100_000, YEAR_MS),
    "large bursts within a year": lambda: in_bursts(20, 100_000, YEAR_MS),
}


@pytest.mark.parametrize("shape", MANY)
def test_the_newest_of_many_take_few_requests(shape: str) -> None:
    server = MANY[shape]()
    assert server.listed(limit=21) == server.in_order()[:21]
    assert server.lists + 21 <= 40
    print(shape, server.lists)


@pytest.mark.parametrize("shape", MANY)
def test_a_page_further_on_takes_few_requests_too(shape: str) -> None:
    server = MANY[shape]()
    after = server.in_order()[50_000]
    listing = Listing(server.folders, server.place)
    listed(listing, limit=60_000)
    server.lists = 0
    assert listed(listing, after, 21) == server.in_order(after)[:21]
    assert server.lists + 21 <= 40


@pytest.mark.parametrize("shape", MANY)
def test_all_of_many_take_hardly_more_requests_than_pages(shape: str) -> None:
    server = MANY[shape]()
    assert server.listed() == server.in_order()
    print(shape, server.lists)
    assert server.lists <= 100_000 / 600 + 40
