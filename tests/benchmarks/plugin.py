"""The pytest plugin as a contender: its roll-backs, and what it costs a run that does not use it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any

from benchmarks.rounds import MORE_ROUNDS, Samples, command, median, merge, settle
from benchmarks.rows import Sizes
from benchmarks.tree import generate

FORBIDDEN = frozenset({"mcp", "boto3", "docker"})
"""What no run of pytest shall load."""

OVERLAY_ROLLBACKS = 50
COPY_ROLLBACKS = 3
"""In each round; their median is the round's figure."""

PAIRS = 7
"""Runs of pytest with and without the plugin, and imports of it, for each of the slow contenders' rounds."""

_ROLLBACKS = Path(__file__).with_name("rollbacks.py")
_IMPORTS = Path(__file__).with_name("imports.py")


class PluginBench:
    """The plugin's part of one run in one workspace."""

    def __init__(self, path: str, sizes: Sizes, *, rounds: int, rest: float) -> None:
        self.path = path
        self.sizes = sizes
        self.rounds = rounds
        self.rest = rest
        self._refusal: str | None = None

    def measure(self) -> Samples:
        """First what needs no tree: making one keeps the machine busy for a while."""
        return merge(self._unused(), self._rollbacks())

    # -- a run that does not use it --

    def _unused(self) -> Samples:
        folder = self._folder("unused")
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        tests = "\n\n\n".join(f"def test_{number}():\n    pass" for number in range(self.sizes.tests))
        Path(folder, "test_empty.py").write_text(tests + "\n")
        env = {
            # An installed package comes with its bytecode; here it is made by the first, untimed run.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"),
            "PYTEST_ADDOPTS": "",
        }
        samples: Samples = {"plugin_import": [], "pytest_with": [], "pytest_without": []}
        time_import(env)
        self._pair(folder, env, ["pytest_with", "pytest_without"])
        for number in range(self.rounds * PAIRS):
            samples["plugin_import"].append(time_import(env))
            order = ["pytest_with", "pytest_without"][:: -1 if number % 2 else 1]
            for key, seconds in self._pair(folder, env, order).items():
                samples[key].append(seconds)
            _say(number, self.rounds * PAIRS, {key: values[-1] for key, values in samples.items()})
        return samples

    def _pair(self, folder: str, env: Mapping[str, str], order: Sequence[str]) -> dict[str, float]:
        """Run pytest with and without the plugin side by side on one core, and return the CPU seconds of each.

        The speed of a shared core changes by half from one second to the next, which drowns two hundredths in a
        run of one second after the other, in CPU time as in wall time. On one core the kernel gives both of them
        turns of some milliseconds, and so they have the same of everything: two equal runs differ by less than
        1 % in most pairs, and by 0.2 % in the median of 15.
        """
        others = [f"-pno:{each.name}" for each in entry_points(group="pytest11") if each.name != "sandpoint"]
        argv = [sys.executable, "-m", "pytest", "-q", "-pno:cacheprovider", *others]
        more = {"pytest_with": [], "pytest_without": ["-pno:sandpoint"]}
        with ExitStack() as stack:
            stack.enter_context(_on_one_core())
            runs = {key: stack.enter_context(_Run([*argv, *more[key]], folder, env)) for key in order}
            return {key: run.finish(f"{self.sizes.tests} passed") for key, run in runs.items()}

    # -- roll-backs --

    def _rollbacks(self) -> Samples:
        tree, larger = self._tree("tree", self.sizes.plugin_files), self._tree("larger", self.sizes.large_plugin_files)
        rounds = self.rounds + MORE_ROUNDS
        samples: Samples = {}
        for number in range(rounds):
            figures = {
                "copytree": self._copytree(tree),
                **self._rollback("overlay", tree, "overlay", OVERLAY_ROLLBACKS),
                **self._rollback("overlay", larger, "overlay_larger", OVERLAY_ROLLBACKS),
                **self._rollback("copy", tree, "copy", COPY_ROLLBACKS),
            }
            samples = merge(samples, {key: [seconds] for key, seconds in figures.items()})
            _say(number, rounds, figures)
        if self._refusal is not None:
            print(f"This machine can mount no overlay: {self._refusal}")
        return samples

    def _copytree(self, tree: str) -> float:
        """Copy the tree and remove the copy, as plugins do for each test that want it to have a tree of its own."""
        target = os.path.join(self.path, "copied")
        settle(self.rest)
        start = time.perf_counter()
        shutil.copytree(tree, target, symlinks=True)
        shutil.rmtree(target)
        seconds = time.perf_counter() - start
        settle(self.rest)
        return seconds

    def _rollback(self, strategy: str, tree: str, key: str, count: int) -> dict[str, float]:
        env = {"SANDPOINT_STATE_DIR": os.path.join(self.path, "state")}
        answer = _ask([str(_ROLLBACKS), strategy, tree, str(count)], env)
        self._refusal = self._refusal or answer["refusal"]
        if answer["refusal"] is not None:
            return {}
        figures = {f"rollback_{key}": median(answer["rollbacks"]), f"checkpoint_{key}": median(answer["cycles"])}
        return figures | ({"checkpoint_copy_first": answer["first"]} if strategy == "copy" else {})

    def _tree(self, name: str, files: int) -> str:
        path = os.path.join(self._folder(name), "tree")
        made = generate(path, files)
        print(f"A tree of {made.files:,} files in {made.directories:,} directories, {made.bytes / 1e6:.0f} MB.")
        return path

    def _folder(self, name: str) -> str:
        path = os.path.join(self.path, name)
        os.makedirs(path)
        return path


def time_import(env: Mapping[str, str]) -> float:
    """Return how long a new process takes to import the plugin.

    Raises:
        RuntimeError: It has loaded what is forbidden.
    """
    return float(_ask([str(_IMPORTS)], env)["seconds"])


def _ask(arguments: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Run a script that tells what it measured and loaded.

    Raises:
        RuntimeError: It failed, or has loaded what is forbidden.
    """
    answer: dict[str, Any] = json.loads(command([sys.executable, *arguments], env))
    if loaded := FORBIDDEN.intersection(answer["loaded"]):
        raise RuntimeError(f"{' '.join(arguments)}: the plugin has loaded {', '.join(sorted(loaded))}")
    return answer


class _Run:
    """A run of pytest whose CPU time is wanted."""

    def __init__(self, argv: Sequence[str], folder: str, env: Mapping[str, str]) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at exit
        self._process = subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def finish(self, last_words: str) -> float:
        """Wait for its end, and return the seconds that it had of the core."""
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")
        if status or last_words not in said:
            raise RuntimeError(f"pytest ended with status {self._process.returncode}: {said[-1000:]}")
        return usage.ru_utime + usage.ru_stime

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()


def _say(number: int, rounds: int, figures: Mapping[str, float]) -> None:
    for key, seconds in figures.items():
        print(f"round {number + 1}/{rounds}  {key:<24} {seconds * 1000:12.2f} ms")


@contextmanager
def _on_one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
