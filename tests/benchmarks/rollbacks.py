"""Checkpoints as the pytest plugin makes them, in a process of their own: `rollbacks.py overlay|copy DIR COUNT`.

Prints the seconds that each took, and the modules that were loaded for it.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_sandpoint.checkpoints import Checkpoints
from pytest_sandpoint.namespace import MountNamespace
from pytest_sandpoint.options import Options, parse_strategy

NEW_FILES = 5
OVERWRITTEN = 5
WARM_UPS = {"overlay": 30, "copy": 2}


class Writer:
    """A test that writes 10 files in a tree, 5 of them new, and deletes one; the same ones each time."""

    def __init__(self, tree: str) -> None:
        files = sorted(path for path in Path(tree).rglob("*.js") if not path.is_symlink())
        chosen = random.Random(10).sample(files, NEW_FILES + OVERWRITTEN + 1)
        self._new = [path.with_suffix(".written") for path in chosen[:NEW_FILES]]
        self._overwritten = chosen[NEW_FILES:-1]
        self._deleted = chosen[-1]
        self._before = self._look()

    def write(self) -> None:
        for path in [*self._new, *self._overwritten]:
            path.write_bytes(b"written by a test\n" * 50)
        self._deleted.unlink()

    def check(self) -> None:
        if self._look() != self._before:
            raise RuntimeError("the rollback did not bring the tree back")

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in [*self._new, *self._overwritten, self._deleted]]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_mode, status.st_size, status.st_mtime_ns


def measure(strategy: str, tree: str, count: int) -> dict[str, Any]:
    """Time roll-backs alone, then whole scopes of a function: the checkpoint and its end."""
    options = Options(
        dirs=(),
        strategy=parse_strategy(strategy),
        namespace="auto",
        keep_failed=False,
        kept_dir=None,
        report=False,
        root=os.path.dirname(tree),
    )
    checkpoints = Checkpoints(options, MountNamespace())
    refusal = checkpoints.enter(options.root) if strategy == "overlay" else None
    if refusal is not None:
        return {"refusal": refusal}
    try:
        writer = Writer(tree)
        start = time.perf_counter()
        active = checkpoints.make(tree, "function")
        first = time.perf_counter() - start
        rollbacks = [
            _after_writing(writer, lambda: checkpoints.roll_back(active)) for _ in range(WARM_UPS[strategy] + count)
        ]
        checkpoints.end(active)
        cycles = []
        for _ in range(WARM_UPS[strategy] + count):
            start = time.perf_counter()
            active = checkpoints.make(tree, "function")
            making = time.perf_counter() - start
            cycles.append(making + _after_writing(writer, lambda active=active: checkpoints.end(active)))  # type: ignore[misc]
    finally:
        checkpoints.close()
    return {
        "refusal": None,
        "first": first,
        "rollbacks": rollbacks[WARM_UPS[strategy] :],
        "cycles": cycles[WARM_UPS[strategy] :],
    }


def _after_writing(writer: Writer, bring_back: Callable[[], None]) -> float:
    writer.write()
    start = time.perf_counter()
    bring_back()
    seconds = time.perf_counter() - start
    writer.check()
    return seconds


if __name__ == "__main__":
    measured = measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(json.dumps({**measured, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
