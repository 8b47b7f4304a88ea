"""Differences described from two directories: what may have happened to one since it was walked."""

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from helpers.engine import Stopped, entry, folder, manifest, never, opened, stop, walk
from sandpoint.engine.contents import always
from sandpoint.engine.differences import MAX_FILE_BYTES, Difference, Side, describe, differences, kind_of, turned
from sandpoint.engine.manifest import Manifest
from sandpoint.engine.plan import Comparison, make_plan
from sandpoint.models import FileDiff

ROOT = Comparison(owners=True)


def side(tree: Manifest, fd: int) -> Side:
    return Side(tree, lambda _entries: nullcontext(always(fd)))


def described(old: Path, new: Path, *, seen: Manifest | None = None, max_bytes: int = 1 << 20) -> dict[str, FileDiff]:
    """Compare two directories, the newer one as it was when it was seen."""
    before, after = walk(old), seen or walk(new)
    plan = make_plan(before, after, differ=lambda doubtful: {each.path for each in doubtful}, comparison=ROOT)
    with opened(old) as first, opened(new) as second:
        found = describe(
            differences(plan, before), side(before, first), side(after, second),
            max_bytes=max_bytes, comparison=ROOT, check=never,
        )  # fmt: skip
    return {each.path: each for each in found}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


@pytest.mark.parametrize("becomes", ["link", "link above", "pipe", "directory", "nothing", "large"])
def test_a_file_that_became_something_else_since_the_walk_is_not_read(old: Path, new: Path, becomes: str) -> None:
    secret = old.parent / "outside"
    secret.mkdir()
    (secret / "file").write_text("secret\n")
    for tree in (old, new):
        (tree / "above").mkdir()
        (tree / "above" / "file").write_text(f"{tree.name}\n")
    seen = walk(new)
    file = new / "above" / "file"
    file.unlink()
    if becomes == "link":
        file.symlink_to(secret / "file")
    elif becomes == "link above":
        file.parent.rmdir()
        file.parent.symlink_to(secret)
    elif becomes == "pipe":
        os.mkfifo(file)
    elif becomes == "directory":
        file.mkdir()
    elif becomes == "large":
        file.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    found = described(old, new, seen=seen)["above/file"]
    assert (found.patch, found.omitted) == ("", "large" if becomes == "large" else "unreadable")


def test_where_nothing_is_to_be_read_nothing_is_opened() -> None:
    tree = manifest(folder(b"a"), entry(b"empty"), entry(b"large", size=MAX_FILE_BYTES + 1), entry(b"file", size=3))
    found = [
        Difference(tree.entries[b"a"], None),
        Difference(None, tree.entries[b"empty"]),
        Difference(tree.entries[b"large"], None),
        Difference(tree.entries[b"file"], tree.entries[b"file"], same_content=True),
    ]
    closed = Side(tree, lambda _entries: pytest.fail("opened"))
    paths = describe(found, closed, closed, max_bytes=100, comparison=ROOT, check=never)
    assert [(each.path, each.omitted) for each in paths] == [
        ("a", None), ("empty", None), ("large", "large"), ("file", None),
    ]  # fmt: skip


def test_it_can_be_stopped() -> None:
    tree = manifest(folder(b"a"))
    same = side(tree, -1)
    with pytest.raises(Stopped):
        describe([Difference(tree.entries[b"a"], None)], same, same, max_bytes=1, comparison=ROOT, check=stop)


def test_differences_are_in_order_and_can_be_turned(old: Path, new: Path) -> None:
    (old / "b").touch()
    (old / "c").write_text("1")
    (new / "a").touch()
    (new / "c").write_text("22")
    before, after = walk(old), walk(new)
    found = differences(make_plan(before, after, differ=lambda doubtful: set(), comparison=ROOT), before)
    assert [(each.path, each.old is None, each.new is None) for each in found] == [
        (b"a", True, False), (b"b", False, True), (b"c", False, False),
    ]  # fmt: skip
    assert turned(turned(found)) == found
    assert [each.old is None for each in turned(found)] == [False, True, False]


def test_the_limit_counts_bytes(old: Path, new: Path) -> None:
    (new / "a").write_text("é" * 100)
    (new / "b").write_text("b")
    whole = described(old, new)
    size = len(whole["a"].patch.encode())
    assert described(old, new, max_bytes=size)["a"].patch
    assert described(old, new, max_bytes=size)["b"].omitted == "limit"
    assert described(old, new, max_bytes=size - 1)["a"].omitted == "limit"


@pytest.mark.parametrize(
    ("kind", "word"),
    [(stat.S_IFSOCK, "socket"), (stat.S_IFIFO, "pipe"), (stat.S_IFCHR, "device"), (stat.S_IFBLK, "device"),
     (stat.S_IFLNK, "symlink"), (stat.S_IFDIR, "directory"), (stat.S_IFREG, "file")],
)  # fmt: skip
def test_words_for_types(kind: int, word: str) -> None:
    assert kind_of(entry(b"x", kind | 0o600)) == word
