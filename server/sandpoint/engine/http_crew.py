"""Threads that each have a line to a store, and the one that watches over them."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import TypeVar

from sandpoint.engine.http_line import Line, StoppedError, tls_context
from sandpoint.engine.tools import Check

Result = TypeVar("Result")

_CHECK_EVERY_S = 0.05
_WAITING_BLOCKS = 4


class Crew:
    """A pool of threads. None of them is left when its block has ended, however it ends."""

    def __init__(self, url: str, lines: int, check: Check, *, others: int = 0) -> None:
        """Start as many threads as it takes.

        Args:
            url: One of those that are asked for; all have the same host.
            lines: How many connections there are at most.
            check: Called often by the thread that waits; may raise to stop.
            others: How many threads there are that need no line.
        """
        context = tls_context(url)
        self.lines = [Line(url, context) for _ in range(lines)]
        self._check = check
        self._threads = lines + others
        self._stopped = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[ThreadPoolExecutor]:
        """Yield what runs the threads; when the block has ended all that they do is ended."""
        try:
            with ThreadPoolExecutor(self._threads, "sandpoint-http") as pool:
                try:
                    yield pool
                finally:
                    self._stopped.set()
                    for line in self.lines:
                        line.stop()
        finally:
            for line in self.lines:
                line.close()

    def go_on(self) -> None:
        """Raise `StoppedError` if the block has ended."""
        if self._stopped.is_set():
            raise StoppedError

    def look(self) -> None:
        """Call the check, and cut the lines that are stalled."""
        self._check()
        for line in self.lines:
            line.watch()

    def wait(self, futures: "Sequence[Future[None]]") -> None:
        """Wait for all, or for the first that fails, and raise what it raised."""
        pending = set(futures)
        while pending:
            done, pending = wait(pending, _CHECK_EVERY_S, FIRST_EXCEPTION)
            for future in done:
                future.result()
            self.look()


def work_off(
    url: str,
    jobs: Sequence[Callable[[Line], Result]],
    check: Check,
    *,
    lines: int,
    beside: Callable[[Check], None] | None = None,
) -> list[Result]:
    """Do jobs side by side, and something beside them; return the results in the order of the jobs.

    When it returns or raises, all threads have ended and all connections are closed.

    Raises:
        BaseException: Whatever a job, `beside` or `check` raised first.
    """
    left = deque(enumerate(jobs))
    results: dict[int, Result] = {}

    def work(line: Line) -> None:
        while left:
            try:
                number, job = left.popleft()
            except IndexError:  # another thread was quicker
                return
            results[number] = job(line)

    check()
    crew = Crew(url, min(lines, len(jobs)), check, others=1 if beside else 0)
    with crew.at_work() as pool:
        futures = [pool.submit(work, line) for line in crew.lines]
        if beside:
            futures.append(pool.submit(beside, crew.go_on))
        crew.wait(futures)
    return [results[number] for number in range(len(jobs))]


def pass_on(url: str, job: Callable[[Line, Callable[[bytes], None]], None], check: Check) -> Iterator[bytes]:
    """Yield the blocks that a job hands over, which runs in a thread of its own, somewhat ahead.

    Raises:
        BaseException: Whatever the job or `check` raised.
    """
    blocks: Queue[bytes] = Queue(_WAITING_BLOCKS)
    check()
    crew = Crew(url, 1, check)
    [line] = crew.lines

    def hand_over(block: bytes) -> None:
        with line.paused():
            while True:
                crew.go_on()
                try:
                    return blocks.put(block, timeout=_CHECK_EVERY_S)
                except Full:
                    continue

    with crew.at_work() as pool:
        future = pool.submit(job, line, hand_over)
        while not future.done() or not blocks.empty():
            crew.look()
            try:
                block = blocks.get(timeout=_CHECK_EVERY_S)
            except Empty:
                continue
            yield block
        future.result()
