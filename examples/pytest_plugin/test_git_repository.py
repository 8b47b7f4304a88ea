"""A git repository: built once for the module, and every test may commit, clean and reset in it."""

import subprocess
from pathlib import Path

import pytest

from pytest_sandpoint import Checkpoint, CheckpointFactory


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Example", "-c", "user.email=example@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "a.txt").write_text("first\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "First")
    return folder


@pytest.fixture
def repository(built: Path, sandbox_checkpoint: CheckpointFactory) -> Checkpoint:
    return sandbox_checkpoint(built)


def test_a_commit(repository: Checkpoint) -> None:
    (repository.path / "a.txt").write_text("second\n")
    git(repository.path, "commit", "--quiet", "-am", "Second")
    assert git(repository.path, "rev-list", "--count", "HEAD") == "2"


def test_a_lost_branch(repository: Checkpoint) -> None:
    git(repository.path, "update-ref", "-d", "HEAD")
    assert git(repository.path, "status", "--porcelain") == "A  a.txt"
    repository.restore()
    assert git(repository.path, "log", "--format=%s") == "First"


def test_only_the_first_commit_is_there(repository: Checkpoint) -> None:
    assert git(repository.path, "log", "--format=%s") == "First"
    assert git(repository.path, "status", "--porcelain") == ""
