"""A project with a protected directory, and runs of pytest on it in the background: to be killed, or side by side."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from helpers import ordinary
from helpers.pytest_runs import QUIET, Way
from helpers.trees import Listing, build_small, list_tree

PATIENCE_S = 60.0
_POLL_S = 0.01

SIGNALS = """
import os, pathlib, time

def signal(name):
    path = pathlib.Path(os.environ["SIGNALS"], name)
    path.with_suffix(".partial").write_text(str(os.getpid()))
    path.with_suffix(".partial").rename(path)

def wait_for(*names):
    while not all(os.path.exists(os.path.join(os.environ["SIGNALS"], name)) for name in names):
        time.sleep(0.005)
"""
"""The module `signals` of the project."""


def wait_until(holds: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Wait until something holds; fail with what is found when it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(_POLL_S)


class Started:
    """A run of pytest in the background, in a process group of its own; it is killed when the block ends."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path, output: Path) -> None:
        self._output = output
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Started":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace")

    def end(self) -> int:
        """Wait for its end, and return its status."""
        wait_until(lambda: self.process.poll() is not None, lambda: self.text)
        return self.process.wait()


class Site:
    """A folder with a project, whose directory `data` is to be protected, and a home with state and signals."""

    def __init__(self, base: Path, *, is_root: bool = True) -> None:
        self.base = base
        self.is_root = is_root
        self.project = base / "project"
        self.data = self.project / "data"
        self.home = base / "home"
        self.state = self.home / "state"
        self.temporary = self.home / "tmp"
        self.signals = self.home / "signals"
        self._runs = 0
        base.mkdir(parents=True, exist_ok=True)
        build_small(self.data)
        for folder in (self.home, self.state, self.temporary, self.signals):
            folder.mkdir()
        self.write("pytest.ini", "[pytest]\n")
        self.write("signals.py", SIGNALS)
        self.before = self.listing()

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.project / name).write_text(text)
        if not self.is_root:
            self._give_away()

    def _give_away(self) -> None:
        for top in (self.project, self.home):
            for folder, _, names in os.walk(top):
                for path in (folder, *(os.path.join(folder, name) for name in names)):
                    os.chown(path, ordinary.UID, ordinary.GID, follow_symlinks=False)

    def listing(self) -> Listing:
        """Return what is in the protected directory."""
        return list_tree(self.data)

    @staticmethod
    def listing_of(folder: Path) -> Listing:
        """Return what is in another directory."""
        return list_tree(folder)

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Started:
        """Start pytest."""
        return self.start_program([sys.executable, "-m", "pytest", *QUIET, *arguments], env=env)

    def start_way(self, way: Way, *arguments: str, env: dict[str, str] | None = None) -> Started:
        """Start pytest with as many workers as the way has."""
        return self.start(*(("-n", str(way.workers)) if way.workers else ()), *arguments, env=env)

    def start_program(self, argv: list[str], *, env: dict[str, str] | None = None) -> Started:
        """Start a program in the project, with what the runs of pytest have in their environment."""
        own = {
            "SANDPOINT_STATE_DIR": str(self.state),
            "SANDPOINT_STORE": (self.home / "store").as_uri(),
            "SIGNALS": str(self.signals),
            "TMPDIR": str(self.temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
        } | (env or {})
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "SANDPOINT_"))}
        self._runs += 1
        output = self.base / f"output{self._runs}.txt"
        if self.is_root:
            return Started(argv, inherited | own, self.project, output)
        become = [sys.executable, "-P", ordinary.__file__, f"--home={self.home}", f"--cwd={self.project}"]
        become += [f"--env={name}={text}" for name, text in own.items()]
        return Started([*become, "--", *argv], inherited, self.project, output)

    def signal(self, name: str) -> None:
        """Tell the tests something."""
        (self.signals / name).touch()

    def wait_for(self, *names: str, by: Started) -> list[int]:
        """Wait for signals of the tests, and return the ids of the processes that gave them."""
        wait_until(
            lambda: all(self.has(name) for name in names) or by.process.poll() is not None,
            lambda: f"waited for {names}: {by.text}",
        )
        assert all(self.has(name) for name in names), by.text
        return self.pids(*names)

    def has(self, name: str) -> bool:
        """Whether a signal was given."""
        return (self.signals / name).exists()

    def pids(self, *names: str) -> list[int]:
        """Return which processes gave signals."""
        return [int((self.signals / name).read_text()) for name in names]

    # -- what is left --

    def processes(self) -> dict[int, str]:
        """Return the processes of its runs that are alive, and their command lines."""
        mark = f"SANDPOINT_STATE_DIR={self.state}\0".encode()
        found = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def guardians(self) -> list[int]:
        """Return the ids of the guardians of its runs."""
        return [pid for pid, command in self.processes().items() if "pytest_sandpoint.guardian" in command]

    def mounts(self) -> list[str]:
        """Return the mounts that this process sees of what runs have mounted."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(self.base) in line or "sandpoint-checkpoint" in line]

    def leftovers(self) -> list[str]:
        """Return what only a run that goes on may have on disk."""
        kept = self.state / "pytest"
        found = [path for name in ("runs", "directories") for path in (kept / name).glob("*")]
        return [str(path) for path in (*found, *self.temporary.glob("sandpoint-*"))]
