"""Work in a second thread while the first one goes on."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from sandpoint.engine.tools import Check

Result = TypeVar("Result")

_CHECK_EVERY_S = 0.05


@contextmanager
def beside(work: Callable[[Check], Result], check: Check) -> Iterator[Callable[[], Result]]:
    """Do something in a thread beside the block, and yield a function that waits for its result.

    Args:
        work: Given a check of its own, which raises once the block has ended.
        check: Called while waiting; may raise to stop.
    """
    ended = threading.Event()

    def stop() -> None:
        if ended.is_set():
            raise InterruptedError

    with ThreadPoolExecutor(1, "sandpoint-beside") as pool:
        future = pool.submit(work, stop)

        def result() -> Result:
            check()
            while not future.done():
                wait([future], _CHECK_EVERY_S)
                check()
            return future.result()

        try:
            yield result
        finally:
            ended.set()
