"""Suites of other projects, their own folder protected or not: the same outcomes, and nothing stays behind."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from helpers import ordinary
from helpers.sdist import DOIT, MAKO, Ran, Suite, outcomes
from helpers.trees import Listing, assert_same, differences, list_tree

PLUGIN = ("-p", "pytest_sandpoint.plugin")
PROTECTED = (*PLUGIN, "--sandbox-checkpoint-dir=.")
ROOT = "--rootdir=."


@dataclass(frozen=True)
class Fetched:
    """A project's unpacked folder, which no test changes, and what its suite does without protection."""

    suite: Suite
    folder: Path
    plain: Ran
    left: list[str]

    def copy(self, base: Path) -> Path:
        """Return a copy, with what the project requires beside it."""
        folder = base / self.folder.name
        shutil.copytree(self.folder, folder, symlinks=True)
        site = self.folder.parent / "site"
        if site.exists():
            shutil.copytree(site, base / "site")
        return folder


def fetch(suite: Suite, base: Path) -> Fetched:
    fetched = Fetched(suite, suite.fetch(base), Ran(0, (), ""), [])
    folder = fetched.copy(base / "plain")
    before = list_tree(folder)
    plain = suite.run(folder, ROOT)
    return Fetched(suite, fetched.folder, plain, differences(before, list_tree(folder)))


@pytest.fixture(scope="module", params=[MAKO, DOIT], ids=lambda suite: suite.name)
def fetched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    return fetch(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    state = tmp_path / "state"
    monkeypatch.setenv("SANDPOINT_STATE_DIR", str(state))
    yield state
    assert [path for name in ("runs", "directories") for path in (state / "pytest" / name).glob("*")] == []


def as_user(suite: Suite, folder: Path, *arguments: str) -> Ran:
    """Run the suite as an ordinary user, in a folder of theirs."""
    base = folder.parent
    (base / "tmp").mkdir()
    for top, _, names in os.walk(base):
        for path in (top, *(os.path.join(top, name) for name in names)):
            os.chown(path, ordinary.UID, ordinary.GID, follow_symlinks=False)
    report = base / "tmp" / "report.xml"
    variables = suite.variables(folder) | {"SANDPOINT_STATE_DIR": str(base / "state")}
    done = ordinary.run(
        suite.command(ROOT, f"--junit-xml={report}", *arguments), cwd=folder, home=base, env=variables, timeout=240
    )
    assert report.exists(), done.stdout + done.stderr
    return Ran(done.returncode, outcomes(report), done.stdout)


def assert_equal(plain: Ran, protected: Ran) -> None:
    assert sorted(set(plain.outcomes) ^ set(protected.outcomes)) == [], protected.text
    assert protected.status == plain.status
    assert protected.counts == plain.counts


def folder_of(fetched: Fetched, base: Path) -> tuple[Path, Listing]:
    folder = fetched.copy(base)
    return folder, list_tree(folder)


def test_without_protection_the_suites_pass_and_one_leaves_files_behind(fetched: Fetched) -> None:
    """One test of doit needs pyflakes, which need not be there."""
    assert fetched.plain.counts["passed"] > 300, fetched.plain.text
    assert fetched.plain.counts.get("failure", 0) <= 1, fetched.plain.text
    assert "error" not in fetched.plain.counts, fetched.plain.text
    if fetched.suite is DOIT:
        assert any(line.startswith("extra: b'tests/data/") for line in fetched.left), fetched.left


def test_by_overlay_as_root(fetched: Fetched, tmp_path: Path) -> None:
    folder, before = folder_of(fetched, tmp_path / "box")
    protected = fetched.suite.run(folder, ROOT, *PROTECTED, "--sandbox-strategy=overlay")
    assert_equal(fetched.plain, protected)
    assert_same(before, list_tree(folder))


def test_by_overlay_as_an_ordinary_user(fetched: Fetched, tmp_path: Path) -> None:
    folder, before = folder_of(fetched, tmp_path / "box")
    protected = as_user(fetched.suite, folder, *PROTECTED, "--sandbox-strategy=overlay")
    assert_equal(fetched.plain, protected)
    owned = {path: replace(item, uid=ordinary.UID, gid=ordinary.GID) for path, item in before.items()}
    assert_same(owned, list_tree(folder))


@pytest.mark.parametrize("fetched", [MAKO], ids=["mako"], indirect=True)
def test_by_copy_as_root(fetched: Fetched, tmp_path: Path) -> None:
    folder, before = folder_of(fetched, tmp_path / "box")
    protected = fetched.suite.run(folder, ROOT, *PROTECTED, "--sandbox-strategy=copy")
    assert_equal(fetched.plain, protected)
    assert_same(before, list_tree(folder))
