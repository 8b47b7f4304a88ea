"""Each example is run as its reader would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.trees import list_tree

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, tmp_path: Path) -> str:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    return done.stdout


def test_the_agent_goes_back_when_its_check_fails(tmp_path: Path) -> None:
    told = run("agent_checkpoint.py", tmp_path)
    assert told.count("the check passes: €3") == 1
    assert "'shop/price.py'], deleted: ['shop/currency.py']" in told
    assert "went back; the failed attempt is kept as 0" in told


@pytest.mark.parametrize("arguments", [[], ["--sandbox-strategy=copy"], ["-n2"]], ids=["overlay", "copy", "workers"])
def test_the_uses_of_the_pytest_plugin(arguments: list[str], tmp_path: Path) -> None:
    before = list_tree(EXAMPLES / "pytest_plugin" / "data")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, EXAMPLES / "pytest_plugin"],
        cwd=EXAMPLES.parent,
        env=os.environ | {"SANDPOINT_STATE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "11 passed" in done.stdout, done.stdout
    assert list_tree(EXAMPLES / "pytest_plugin" / "data") == before


def test_a_database_in_a_container_is_rolled_back(debian: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "docker_postgres"],
        cwd=EXAMPLES.parent,
        env=os.environ
        | {"POSTGRES_IMAGE": debian, "SANDPOINT_STATE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "6 passed" in done.stdout, done.stdout


def test_the_service_is_used_from_python(tmp_path: Path) -> None:
    told = run("python_service.py", tmp_path)
    assert "added ('junk.tmp',)" in told
    assert "modified ('data.csv',)" in told
    assert "docs/plan.md" in told
    assert "plan.md says: first do no harm" in told
    assert "verified: True" in told


def test_the_best_of_several_forks_is_taken(tmp_path: Path) -> None:
    told = run("fork.py", tmp_path)
    assert "shorten: modified ('sort.py',), removed (), passes: False" in told
    assert "rewrite: modified ('sort.py',), removed (), passes: True" in told
    assert "tidy: modified (), removed ('sort.py',), passes: False" in told
    assert "took rewrite: def sort(items): return sorted(items)" in told
