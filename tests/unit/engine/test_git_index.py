"""Two indexes of git say the same where only the stamps of files are others: held against git itself."""

import os
import subprocess
from pathlib import Path

import pytest

from helpers.trees import write
from sandpoint.engine.git_index import says_the_same

LONG = "d" * 200 + "/" + "e" * 200


@pytest.fixture(params=["2", "3", "4"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository with an index of each version; a path of an intent to add makes it one of version 3."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "index.version", request.param)
    for name in ("a", "src/app.py", "src/app.pyc", "src/deep/er", "z" * 30, LONG):
        write(tmp_path / name, f"{name}\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "write-tree")
    if request.param == "3":
        write(tmp_path / "new", "new\n")
        git(tmp_path, "add", "-N", "new")
    assert index(tmp_path)[4:8] == int(request.param).to_bytes(4, "big")
    return tmp_path


def git(repository: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(repository), *arguments], check=True, stdout=subprocess.DEVNULL)


def index(repository: Path) -> bytes:
    return (repository / ".git/index").read_bytes()


def test_an_index_that_a_look_has_refreshed_says_the_same(repository: Path) -> None:
    before = index(repository)
    for name in ("a", "src/app.py"):
        os.utime(repository / name, (1, 1))
    git(repository, "status")
    assert index(repository) != before
    assert says_the_same(before, index(repository))


@pytest.mark.parametrize(
    "arguments",
    [
        ("rm", "--cached", "-q", "src/app.py"),
        ("update-index", "--assume-unchanged", "a"),
        ("update-index", "--skip-worktree", "a"),
        ("update-index", "--chmod=+x", "a"),
        ("update-index", "--cacheinfo", "100644,b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0,a"),
        ("mv", "a", "b"),
    ],
)
def test_an_index_that_git_was_told_to_change_says_something_else(repository: Path, arguments: tuple[str, ...]) -> None:
    before = index(repository)
    git(repository, *arguments)
    assert not says_the_same(before, index(repository))


def test_an_index_that_is_cut_off_or_altered_says_nothing(repository: Path) -> None:
    whole = index(repository)
    assert says_the_same(whole, whole)
    for end in range(0, len(whole), 7):
        assert not says_the_same(whole[:end], whole[:end])
    assert not says_the_same(whole.replace(b"DIRC", b"CRID"), whole.replace(b"DIRC", b"CRID"))
    assert not says_the_same(whole[:8] + b"\xff" * 4 + whole[12:], whole[:8] + b"\xff" * 4 + whole[12:])
