"""Files on their way from a store by presigned URLs."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator

from urllib3 import BaseHTTPResponse

from sandpoint.engine.http_answers import OtherSizeError, refusal, told, try_again
from sandpoint.engine.http_crew import pass_on, work_off
from sandpoint.engine.http_line import LastingError, Line, PassingError
from sandpoint.engine.http_ranges import Ranges, arriving
from sandpoint.engine.tools import Check
from sandpoint.models import GetGrant

LINES = 6
RANGE_BYTES = 16 << 20

_BLOCK = 1 << 20
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


def fetch_file(grant: GetGrant, size: int, path: str, check: Check) -> str:
    """See `http.download`."""
    total = hashlib.sha256()

    with arriving(path, size, RANGE_BYTES) as ranges, told(grant.key, "read from"):

        def digest(check: Check) -> None:
            block = memoryview(bytearray(_BLOCK))
            for start, end in ranges.in_order(check):
                for at in range(start, end, _BLOCK):
                    check()
                    length = os.preadv(ranges.fd, [block[: end - at]], at)
                    total.update(block[:length])

        jobs = [_Fetch(grant.url, ranges, number, size).run for number in ranges.missing]
        work_off(grant.url, jobs, check, lines=LINES, beside=digest)
    return total.hexdigest()


class _Fetch:
    """A range of a file on its way from a store."""

    def __init__(self, url: str, ranges: Ranges, number: int, size: int) -> None:
        self._url = url
        self._ranges = ranges
        self._number = number
        self._size = size
        self._at, self._end = ranges.span(number)

    def run(self, line: Line) -> None:
        """Fetch it."""
        _persist(line, lambda: self._fetch_once(line), lambda: self._at)
        self._ranges.arrive(self._number)

    def _fetch_once(self, line: Line) -> None:
        with line.ask("GET", self._url, _range_header(self._at, self._end, self._size)) as answer:
            _check_span(answer, line, self._at, self._end, self._size)
            while block := line.read(answer, _BLOCK):
                self._write(memoryview(block))
            _check_end(self._at, self._end)

    def _write(self, block: memoryview) -> None:
        while block:
            written = os.pwrite(self._ranges.fd, block, self._at)
            self._at += written
            block = block[written:]


def fetch_blocks(grant: GetGrant, check: Check) -> Iterator[bytes]:
    """See `http.stream`."""
    with told(grant.key, "read from"):
        yield from pass_on(grant.url, _Stream(grant.url).run, check)


class _Stream:
    """A file on its way from a store, of a size that the first answer says."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._at = 0
        self._size: int | None = None

    def run(self, line: Line, hand_over: Callable[[bytes], None]) -> None:
        """Fetch it."""
        _persist(line, lambda: self._fetch_once(line, hand_over), lambda: self._at)

    def _fetch_once(self, line: Line, hand_over: Callable[[bytes], None]) -> None:
        size = self._size
        headers = {} if size is None else _range_header(self._at, size, size)
        with line.ask("GET", self._url, headers) as answer:
            size = self._size = _check_span(answer, line, self._at, size, size)
            while block := line.read(answer, _BLOCK):
                self._at += len(block)
                hand_over(block)
            _check_end(self._at, size)


def _persist(line: Line, work: Callable[[], None], at: Callable[[], int]) -> None:
    """Try again as long as it gets on."""
    while True:
        before = at()
        try:
            return try_again(line, work)
        except PassingError:
            if at() - before < _BLOCK:
                raise


def _range_header(start: int, end: int, size: int) -> dict[str, str]:
    return {} if (start, end) == (0, size) else {"Range": f"bytes={start}-{end - 1}"}


def _check_span(answer: BaseHTTPResponse, line: Line, start: int, end: int | None, size: int | None) -> int:
    """See that an answer is what was asked for, a range or the whole; return the size of the file."""
    if answer.status == 416 and size is not None:
        raise OtherSizeError("fewer bytes", size)
    if answer.status not in {200, 206}:
        raise refusal(answer, line)
    found = _size_of(answer)
    wrong = _wrongness(answer, found, start, end, size)
    if wrong is None:
        return found
    # A connection that breaks within an answer's head leaves one that looks whole, and nothing after it.
    if not line.read(answer, 1) and found:
        raise PassingError("the connection broke")
    raise wrong


def _wrongness(answer: BaseHTTPResponse, found: int, start: int, end: int | None, size: int | None) -> Exception | None:
    whole = start == 0 and end == size
    if answer.status != (200 if whole else 206):
        return LastingError(f"it answers {answer.status} where {'a file' if whole else 'a range'} was asked for")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return LastingError("it sends the file encoded, which was not asked for")
    if found < 0:
        return LastingError("it does not say how long its answer is")
    if size is not None and found != size:
        return OtherSizeError(f"{found} bytes", size)
    if size is not None and _span_of(answer) != (start, end):
        return LastingError("it answers with another range than was asked for")
    return None


def _size_of(answer: BaseHTTPResponse) -> int:
    """Return the size of the file that an answer says, -1 if it does not."""
    if answer.status == 200:
        return -1 if answer.length_remaining is None else answer.length_remaining
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(match[3]) if match and answer.length_remaining is not None else -1


def _span_of(answer: BaseHTTPResponse) -> tuple[int, int]:
    length = answer.length_remaining or 0
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    start = int(match[1]) if match and answer.status == 206 else 0
    return start, start + length


def _check_end(at: int, end: int) -> None:
    if at != end:
        raise PassingError("the connection broke")
