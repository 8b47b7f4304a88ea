"""Test suites of other projects, from their source distributions on PyPI, and runs of them.

What these suites write, and where (seen with the versions below, CPython 3.11, pytest 9.2):

Mako keeps compiled templates in `test/templates/modules` of its own folder; some tests leave them for a later one's
teardown. doit works on a few files in `tests/data` of its own folder under names that its tests share, makes and
removes others in `tests` and in the working directory, and leaves files and a folder in `tests/data` behind.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")


def _pip(*arguments: str) -> None:
    done = subprocess.run([*PIP, *arguments], check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)}: {done.stderr}")


def download(name: str, version: str, sha256: str, into: Path) -> Path:
    """Fetch a source distribution with pip as it is configured here, and return the folder unpacked from it.

    pip asks the project's build backend for metadata, so it is given the digest too and checks it before it does.
    """
    archives = into / "archives" / f"{name}-{version}"
    archives.mkdir(parents=True)
    wanted = archives / "wanted.txt"
    wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
    _pip("download", "--no-deps", "--no-binary", name, "--dest", str(archives), "--requirement", str(wanted))
    [archive] = archives.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{archive.name} has the SHA-256 {found}, not {sha256}")
    with tarfile.open(archive) as packed:
        [top] = {member.name.split("/")[0] for member in packed}
        packed.extractall(into, filter="data")
    return into / top


@dataclass(frozen=True)
class Ran:
    """A run of a suite that ended: the status of pytest, each test's outcome, and what was printed."""

    status: int
    outcomes: tuple[tuple[str, str], ...]
    text: str

    @property
    def counts(self) -> dict[str, int]:
        """How many tests had which outcome."""
        return dict(Counter(outcome for _, outcome in self.outcomes))


@dataclass(frozen=True)
class Suite:
    """A project and how its tests are run: in the unpacked folder, with nothing of it installed."""

    name: str
    version: str
    sha256: str
    tests: str
    requires: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    """Modules that tests look for, and that are to be missing though this environment has them."""
    files: tuple[tuple[str, str], ...] = ()
    """Files that are there before the first test, and their contents."""

    def fetch(self, into: Path) -> Path:
        """Download and unpack the project, and install beside it what it requires; return its folder."""
        folder = download(self.name, self.version, self.sha256, into)
        if self.requires:
            _pip("install", "--no-deps", "--no-compile", "--target", str(into / "site"), *self.requires)
        for path, text in self.files:
            (folder / path).write_text(text)
        return folder

    def command(self, *arguments: str) -> list[str]:
        """Return the command line to be run in the project's folder, with further arguments for pytest."""
        hide = f"import sys; sys.modules.update(dict.fromkeys({self.hidden!r})); import pytest; "
        start = ["-c", hide + "sys.exit(pytest.main())"] if self.hidden else ["-m", "pytest"]
        return [sys.executable, *start, "-q", "-p", "no:cacheprovider", *arguments, self.tests]

    def variables(self, folder: Path) -> dict[str, str]:
        """Return what a run adds to the environment: no plugins but those named by `-p`, temporary files beside it."""
        return {
            "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent / 'site'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "TMPDIR": str(folder.parent / "tmp"),
        }

    def run(self, folder: Path, *arguments: str, timeout: float = 240) -> Ran:
        """Run the tests in a folder that `fetch` returned or a copy beside it, with further arguments for pytest."""
        (folder.parent / "tmp").mkdir(exist_ok=True)
        report = folder.parent / f"{folder.name}.xml"
        report.unlink(missing_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        done = subprocess.run(
            self.command(f"--junit-xml={report}", *arguments),
            cwd=folder,
            env=kept | self.variables(folder),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report:\n{done.stdout}")
        return Ran(done.returncode, outcomes(report), done.stdout)


def outcomes(report: Path) -> tuple[tuple[str, str], ...]:
    """Return the tests in a report written with `--junit-xml`, sorted, each with its outcome."""
    found = []
    for case in ET.parse(report).iter("testcase"):
        told = {part.tag for part in case} & {"failure", "error", "skipped"}
        found.append((f"{case.get('classname')}.{case.get('name')}", "+".join(sorted(told)) or "passed"))
    return tuple(sorted(found))


MAKO = Suite(
    "mako",
    "1.4.3",
    "cd6537fe88d5fec315c55c2f8529bc4ce7a9a352ad7db3eeaa6a66e2dd4ec37a",
    "test",
    requires=("markupsafe==3.0.4",),
)

# Its tests name files otherwise where xdist is installed. Six of them, test_fileDependencies_changed and
# test_fileDependencies_changed_get_log, need a file that an earlier test leaves behind.
DOIT = Suite(
    "doit",
    "0.37.0",
    "d3c72e0e46a8fa1ddabea8f830762402dee090caf33c30c2295ac7010db8f09c",
    "tests",
    hidden=("xdist",),
    files=(("tests/data/dependency2", "part1"),),
)
