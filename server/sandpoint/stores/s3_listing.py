"""Backups, newest first, from a server that lists names in ascending order only. Pure: requests are a function.

Ids made by time lie in the order of time, between 2024 and now: looked at from the newest back, window by window. All
other ids, and those of wrong clocks, lie below or above, and are listed as a whole: usually two requests that find
none, or one that finds all where that is no more than it returns. An id that was not made by time may lie between the
others by chance, where it is no more than passed by until its turn comes.
"""

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import isqrt
from uuid import UUID

from sandpoint.errors import StoreUnavailableError
from sandpoint.stores.base import FIRST_MS, Position, id_in, time_of

Folders = Callable[[str], tuple[list[str], bool]]
"""Returns the names that come after a name, in ascending order, some at a time, and whether there are more."""

Place = Callable[[Collection[str]], dict[str, Position]]
"""Returns the positions of ids that were not made by time, by their metadata, of those that have any."""

AHEAD_MS = 60_000
"""So far clocks may be apart."""

_TIME_BITS = 80
"""Of an id, below its time."""

_END = 1 << 128
_FIRST_WINDOW = 60_000 << _TIME_BITS
_WIDER = 16
_WANTED = 700
"""Ids of a window, of the 1000 that one request returns."""

_FEW = 100


def number_of(backup_id: str) -> int:
    """Return an id as the number that it is: ids have the order of their numbers."""
    return int(backup_id.replace("-", ""), 16)


@dataclass(frozen=True)
class _Segment:
    """All ids from a number up to another, in ascending order."""

    start: int
    end: int
    ids: list[str]


class Listing:
    """The names of a store, as positions; what it has learnt of ids that were not made by time it keeps."""

    def __init__(self, folders: Folders, place: Place) -> None:
        """Take the two requests that it makes."""
        self._folders = folders
        self._place = place
        self._placed: dict[str, Position] = {}
        self._seen_from = _END
        """From here on up all ids were listed before."""

    def newest(self, after: Position | None, now_ms: int) -> Iterator[list[Position]]:
        """Yield the positions of all ids that come after one, newest first, many at a time."""
        floor, ceiling = FIRST_MS << _TIME_BITS, (now_ms + AHEAD_MS) << _TIME_BITS
        waiting: list[tuple[int, int, Position]] = []

        def wait(ids: Collection[str]) -> None:
            for position in self._positions(ids):
                if after is None or position < after:
                    heapq.heappush(waiting, (-position.created_ms, -number_of(position.id), position))

        def take(start: int) -> list[Position]:
            turn = (-(start >> _TIME_BITS), -start)
            taken = []
            while waiting and waiting[0][:2] <= turn:
                taken.append(heapq.heappop(waiting)[2])
            return taken

        first = self._page(0, _END)
        if first.end == _END:
            self._seen_from = min(self._seen_from, floor)
            wait(first.ids)
        else:
            start = ceiling if after is None else min(ceiling, max(floor, _limit(after)))
            wait([backup_id for backup_id in first.ids if number_of(backup_id) < floor])
            wait(self._all(first.end, floor))
            wait(self._all(ceiling, _END))
            wait(self._strays(start, ceiling))
            for segment in _Windows(self._page, floor).from_newest(start):
                wait(segment.ids)
                self._note(segment, ceiling)
                yield take(segment.start)
        yield take(0)

    def _note(self, segment: _Segment, ceiling: int) -> None:
        if segment.end == ceiling or segment.end >= self._seen_from:
            self._seen_from = min(self._seen_from, segment.start)

    def _strays(self, start: int, end: int) -> list[str]:
        """Return ids that lie from `start` to `end` and were not made by time: some may be older than they look."""
        if self._seen_from <= start:
            return [backup_id for backup_id in list(self._placed) if start <= number_of(backup_id) < end]
        return [backup_id for backup_id in self._all(start, end) if time_of(backup_id) is None]

    def _positions(self, ids: Collection[str]) -> list[Position]:
        times = {backup_id: time_of(backup_id) for backup_id in ids}
        unknown = [each for each, time in times.items() if time is None and each not in self._placed]
        if unknown:
            self._placed |= self._place(unknown)
        found = [Position(time, backup_id) for backup_id, time in times.items() if time is not None]
        return found + [self._placed[each] for each, time in times.items() if time is None and each in self._placed]

    def _all(self, start: int, end: int) -> list[str]:
        ids: list[str] = []
        while start < end:
            segment = self._page(start, end)
            ids += segment.ids
            start = segment.end
        return ids

    def _page(self, start: int, end: int) -> _Segment:
        """Return the ids from a number on up to another, all of them or as many as one request returns."""
        # Servers differ in whether a folder comes after its own name: ask for what comes after another one.
        after = _text(start - 1) if start else ""
        while True:
            names, more = self._folders(after)
            ids = [name for name in names if id_in(name) and start <= number_of(name) < end]
            if not more or not names or names[-1] >= _text(end):
                return _Segment(start, end, ids)
            if ids:
                return _Segment(start, number_of(ids[-1]) + 1, ids)
            if names[-1] <= after:
                raise StoreUnavailableError("the store lists the same names again and again; its listing is broken")
            after = names[-1]  # a page of what is not ours


class _Windows:
    """Looks at the ids below a number window by window, newest first.

    A request returns the oldest of a window. Where there are more than it returns, they wait until the newer ones are
    found, which are looked for in one of three ways in turn: as if they lay as close as those do; in the upper half of
    what is left; and near to those, in case that they are a burst. Nothing is asked for twice.
    """

    def __init__(self, page: Callable[[int, int], _Segment], floor: int) -> None:
        self._page = page
        self._floor = floor
        self._known: list[_Segment] = []
        self._given = 0
        self._width = _FIRST_WINDOW
        self._guess = self._by_width

    def from_newest(self, end: int) -> Iterator[_Segment]:
        """Yield segments that follow each other without a gap, from `end` down to the floor."""
        while end > self._floor:
            if self._known and self._known[-1].end == end:
                segment = self._known.pop()
                self._guess = self._by_width
            else:
                bottom = self._known[-1].end if self._known else self._floor
                segment = self._page(min(max(self._guess(bottom, end), bottom), end - 1), end)
                self._learn(segment, end)
                if segment.end < end:
                    self._known.append(segment)
                    continue
            yield segment
            self._given += len(segment.ids)
            end = segment.start

    def _learn(self, segment: _Segment, end: int) -> None:
        """Choose the next guess, and its width."""
        span, count = segment.end - segment.start, len(segment.ids)
        if segment.end < end:
            waiting = count + sum(len(known.ids) for known in self._known)
            if waiting <= self._given:
                self._guess = self._by_page
            else:
                self._guess = self._by_half if self._guess == self._by_width and self._known else self._by_width
                self._width = max(1, (segment.end - number_of(segment.ids[0])) * _WANTED // count)
        elif not self._known or count >= _FEW:
            self._guess = self._by_width
            self._width = max(1, min(max(span * _WANTED // max(count, 1), span // _WIDER), span * _WIDER))
        else:
            self._guess = self._by_half if self._guess == self._by_width else self._by_burst

    def _by_page(self, bottom: int, end: int) -> int:
        return bottom

    def _by_width(self, bottom: int, end: int) -> int:
        return end - self._width

    def _by_half(self, bottom: int, end: int) -> int:
        return (bottom + end) // 2

    def _by_burst(self, bottom: int, end: int) -> int:
        known = self._known[-1]
        rest = end - bottom
        return bottom + min(isqrt((known.end - number_of(known.ids[0])) * rest), rest // 2)


def _limit(after: Position) -> int:
    """Return the number that all ids are below that come after a position, but for strays."""
    number = number_of(after.id)
    return number if number >> _TIME_BITS == after.created_ms else (after.created_ms + 1) << _TIME_BITS


def _text(number: int) -> str:
    return str(UUID(int=number)) if number < _END else "g"
