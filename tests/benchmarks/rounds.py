"""Contenders and rounds: all take turns in each round, so that the machine's noise hits all alike."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

REST_S = 1.0
"""What the kernel is given before each contender to free what the one before it has left."""

MORE_ROUNDS = 2
"""Rounds that the targets get beyond those of the slow contenders."""

Samples = dict[str, list[float]]
"""Seconds (or bytes) of each round, by the key of a row."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """What is timed under the key of a row, and what goes before and after it in each round, not timed."""

    key: str
    run: Callable[[], object]
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing


def take_turns(contenders: Iterable[Contender], rounds: int, *, rest: float) -> Samples:
    """Run all contenders round by round, with so many seconds of rest before each."""
    contenders = tuple(contenders)
    samples: Samples = {contender.key: [] for contender in contenders}
    for number in range(rounds):
        _warm_up(contenders[0])
        for contender in contenders:
            contender.before()
            seconds = _time(contender.run, rest)
            contender.after()
            samples[contender.key].append(seconds)
            print(f"round {number + 1}/{rounds}  {contender.key:<24} {seconds:9.3f} s")
    return samples


def _warm_up(first: Contender) -> None:
    """Run the first one untimed: it pays for what the last of the round before has left the machine in."""
    first.before()
    first.run()
    first.after()


def _time(operation: Callable[[], object], rest: float) -> float:
    settle(rest)
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


def settle(rest: float) -> None:
    """Wait until what went before is on the disk and the kernel has freed what it left.

    Otherwise that would be done at the expense of what comes next: whoever follows the removal of a whole tree
    would pay for a part of it.
    """
    os.sync()
    time.sleep(rest)


def merge(*all_samples: Mapping[str, Sequence[float]]) -> Samples:
    """Join the samples of several series."""
    merged: Samples = {}
    for samples in all_samples:
        for key, values in samples.items():
            merged.setdefault(key, []).extend(values)
    return merged


def median(values: Sequence[float]) -> float:
    """Return the middle of the samples."""
    return statistics.median(values)


def command(
    argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None, input: bytes = b""
) -> bytes:
    """Run a program and return its output; a failure says what the program said."""
    done = subprocess.run(
        argv,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=input,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout)[-1000:].decode(errors="replace")
        raise RuntimeError(f"{argv[0]} failed with status {done.returncode}: {said}")
    return done.stdout


def remove(path: str) -> None:
    """Remove a file or a whole tree, whether it is there or not."""
    command(["rm", "-rf", "--one-file-system", "--", path])
