"""What is left out: patterns as git reads them, and what git itself ignores."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.engine import Stopped, never, stop, walk
from sandpoint.engine import tools
from sandpoint.engine.ignore import GitError, Rules, git_ignored
from sandpoint.engine.place import opened_place
from sandpoint.engine.state import State
from sandpoint.errors import InvalidBackupConfigError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def git(where: Path, *arguments: str, **environment: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=where, check=True, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )  # fmt: skip
    return done.stdout


def repository(path: Path, *, ignored: str = "*.log\n") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "-q")
    (path / ".gitignore").write_text(ignored)
    return path


def ignored_in(path: Path) -> set[bytes]:
    with opened_place(State(str(path.parent / "state")), str(path)) as place:
        return set(git_ignored(place, never))


def fill(root: Path, *names: str) -> None:
    for name in names:
        path = root / name.rstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()


def kept_by_git(root: Path, names: Sequence[bytes]) -> set[bytes]:
    """Those of the names that `git check-ignore` does not report, below a repository with the patterns."""
    done = subprocess.run(
        ["git", "check-ignore", "-z", "--stdin", "--no-index"],
        cwd=root, input=b"\0".join(names) + b"\0", capture_output=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    return set(names) - set(done.stdout.split(b"\0"))


def kept_by_rules(root: Path, patterns: Sequence[str]) -> set[bytes]:
    return {path for path in walk(root, Rules(patterns)).entries if path and path != b".git" and path[:5] != b".git/"}


TREE = (
    "a.log", "keep.log", "b.txt", "#hash", "!bang", " blank", "trail ", "foo", "foobar", "dir/", "dir/a.log",
    "dir/keep.log", "dir/foo", "dir/sub/x", "dir/sub/a.log", "deep/er/dir/x", "deep/er/foo/x", "build/out/x", "build/x",
    "src/build/x", "[x]", "x", "y", "back\\slash", "new\nline", "new\n/foo", "foo\n", "caf\u00e9", "a b", "...",
)  # fmt: skip

PATTERNS = (
    ["*.log"],
    ["*.log", "!keep.log"],
    ["!keep.log", "*.log"],
    ["/foo"],
    ["foo"],
    ["foo/"],
    ["dir/"],
    ["dir/*"],
    ["dir/*", "!dir/keep.log"],
    ["dir/", "!dir/keep.log"],
    ["dir/sub"],
    ["/dir/sub/"],
    ["**/foo"],
    ["dir/**"],
    ["deep/**/x"],
    ["**/sub/x"],
    ["/*", "!/dir/"],
    ["*", "!*/", "!*.txt"],
    ["build/*", "!build/x"],
    ["\\#hash"],
    ["#hash"],
    ["\\!bang"],
    [" blank"],
    ["trail\\ "],
    ["trail "],
    ["[xy]"],
    ["\\[x\\]"],
    ["[!x]"],
    ["?"],
    ["b?txt"],
    ["back\\\\slash"],
    ["new*"],
    ["new?line"],
    ["caf\u00e9"],
    ["dir/**", "!dir/keep.log"],
    ["caf?"],
    ["caf??"],
    ["*\u00e9"],
    ["[!a-f]*"],
    ["[^a-f]oo"],
    ["[]x]"],
    ["[x-]"],
    ["[[:alpha:]]"],
    ["[[:upper:]xy]"],
    ["[a\\-z]"],
    ["d***r"],
    ["dir/***"],
    ["deep/**er/dir"],
    ["deep/*/dir"],
    ["deep*dir"],
    ["foo\r"],
    ["fo\\o"],
    ["[/]x"],
    ["dir[!x]foo"],
    ["dir/**/"],
    ["**/"],
    ["**"],
    ["*/"],
    ["*", "!*/", "!keep*"],
    ["/*", "!/deep", "/deep/*", "!/deep/er"],
    ["a b"],
    ["..."],
    ["foo*"],
    ["*o"],
    ["x/"],
    ["/build", "!/build/out"],
    ["deep/er"],
    ["er/dir"],
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = repository(tmp_path_factory.mktemp("tree") / "t", ignored="")
    fill(root, *TREE)
    return root


def assert_as_git(tree: Path, patterns: Sequence[str]) -> None:
    (tree / ".git" / "info").mkdir(exist_ok=True)
    (tree / ".git" / "info" / "exclude").write_text("\n".join(patterns) + "\n")
    every = [path for path in walk(tree).entries if path and path[:4] != b".git"]
    expected = kept_by_git(tree, every)
    found = {path for path in kept_by_rules(tree, patterns) if path != b".gitignore"}
    assert found == expected, patterns


@pytest.mark.parametrize("patterns", PATTERNS, ids=" ".join)
def test_excludes_mean_what_git_means_by_them(tree: Path, patterns: list[str]) -> None:
    assert_as_git(tree, patterns)


PIECES = st.sampled_from(
    ["foo", "[!d]*", "f**", "?oo", "dir", "sub", "x", "*", "**", "?", "*.log", "keep*", "build", "[xf]*"]
)
RANDOM = st.builds(
    lambda start, pieces, end: start + "/".join(pieces) + end,
    st.sampled_from(["", "/", "!", "!/"]),
    st.lists(PIECES, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/**", "/**/", "/*"]),
)


@given(st.lists(RANDOM, min_size=1, max_size=4))
@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_random_excludes_mean_what_git_means_by_them(tree: Path, patterns: list[str]) -> None:
    assert_as_git(tree, patterns)


def test_a_newline_in_a_name_is_a_character_like_others() -> None:
    rules = Rules(["foo", "*.log"])
    assert not rules.excludes(b"foo\n", is_dir=False)
    assert rules.excludes(b"a\nb/foo", is_dir=False)
    assert rules.excludes(b"a\nb.log", is_dir=False)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "pattern", ["a*" * 40 + "b", "/" + "a*" * 40 + "/b", "**/a/" * 30 + "b", "*a?" * 40 + "b", "**/" * 99 + "b"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    rules = Rules([pattern])
    assert not rules.excludes(b"a" * 255, is_dir=False)
    assert not rules.excludes(b"a/" * 1500 + b"c", is_dir=False)


def test_names_that_are_not_utf8_are_matched() -> None:
    assert Rules(["*.log"]).excludes(b"\xff.log", is_dir=False)
    assert Rules(["?"]).excludes(b"\xff", is_dir=False)


def test_a_pattern_for_directories_leaves_files_alone() -> None:
    rules = Rules(["build/"])
    assert rules.excludes(b"build", is_dir=True)
    assert not rules.excludes(b"build", is_dir=False)


def test_paths_are_excluded_as_such_and_cover_overrides_all() -> None:
    rules = Rules(["*.log"], paths=[b"secret", b"*"], cover=[b"a.log", b"secret"])
    assert not rules.excludes(b"a.log", is_dir=False)
    assert not rules.excludes(b"secret", is_dir=True)
    assert rules.excludes(b"b.log", is_dir=False)
    assert rules.excludes(b"*", is_dir=False)
    assert not rules.excludes(b"anything", is_dir=False)


def test_no_rules_are_empty() -> None:
    assert Rules().is_empty
    assert Rules(cover=[b"x"]).is_empty
    assert not Rules(["x"]).is_empty
    assert not Rules(paths=[b"x"]).is_empty


@pytest.mark.parametrize("pattern", ["!", "/", "!/", "a\\", "[", "[a", "[!", "[a\\", "[[:nothing:]]", "x[]"])
def test_what_can_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"excludes: .* which is no gitignore pattern"):
        Rules(["*.log", pattern])


# -- git --


def test_outside_a_repository_nothing_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    fill(tmp_path, "a.log")
    assert ignored_in(tmp_path) == set()


def test_ignored_files_and_directories(tmp_path: Path) -> None:
    root = repository(tmp_path, ignored="*.log\nbuild/\n")
    fill(root, "a.log", "b.txt", "build/x", "src/build/y", "src/c.log", "src/d.py")
    assert ignored_in(root) == {b"a.log", b"build", b"src/build", b"src/c.log"}


def test_nested_rules_and_negations(tmp_path: Path) -> None:
    root = repository(tmp_path, ignored="*.log\n!keep.log\n")
    fill(root, "a.log", "keep.log", "sub/a.log", "sub/keep.log", "sub/x.txt")
    (root / "sub" / ".gitignore").write_text("!a.log\nkeep.log\n*.txt\n")
    assert ignored_in(root) == {b"a.log", b"sub/keep.log", b"sub/x.txt"}


def test_tracked_files_stay_in(tmp_path: Path) -> None:
    root = repository(tmp_path, ignored="*.log\nbuild/\n")
    fill(root, "tracked.log", "other.log", "build/tracked", "build/other")
    git(root, "add", "-f", "tracked.log", "build/tracked")
    assert ignored_in(root) == {b"other.log", b"build/other"}


def test_rules_above_the_directory_count_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", ignored="*.log\n/sub/dist/\n/dist/\n")
    fill(root, "sub/a.log", "sub/dist/x", "sub/deep/dist/x", "dist/x")
    assert ignored_in(root / "sub") == {b"a.log", b"dist"}


def test_a_directory_that_is_ignored_itself_is_not_emptied(tmp_path: Path) -> None:
    root = repository(tmp_path, ignored="/out/\n")
    fill(root, "out/a", "out/sub/b")
    assert not {b"a", b"sub", b"sub/b"} & ignored_in(root / "out")


def test_names_of_any_bytes(tmp_path: Path) -> None:
    root = repository(tmp_path, ignored="*.log\n")
    for name in (b"new\nline.log", b"\xff.log", b'"quoted".log', b" .log"):
        with open(os.path.join(os.fsencode(root), name), "wb"):
            pass
    assert ignored_in(root) == {b"new\nline.log", b"\xff.log", b'"quoted".log', b" .log"}


@as_root
def test_a_repository_of_another_user(tmp_path: Path) -> None:
    root = repository(tmp_path)
    fill(root, "a.log")
    for path in (root, *root.rglob("*")):
        os.chown(path, 12345, 12345)
    assert ignored_in(root) == {b"a.log"}


def test_the_repositorys_own_programs_do_not_run(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    fill(root, "a.log", "b.txt")
    marker = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $0 >> {marker}\n")
    program.chmod(0o755)
    for setting in (
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.editor",
        "filter.x.clean",
        "diff.external",
    ):
        git(root, "config", setting, str(program))
    git(root, "config", "core.hooksPath", str(tmp_path / "hooks"))
    (tmp_path / "hooks").mkdir()
    for hook in ("fsmonitor-watchman", "post-index-change", "reference-transaction"):
        shutil.copy(program, tmp_path / "hooks" / hook)
    (root / ".gitattributes").write_text("* filter=x\n")
    assert ignored_in(root) == {b"a.log"}
    assert not marker.exists()


def test_a_partial_clone_fetches_nothing(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    git(root, "add", ".")
    git(root, "commit", "-qm", "rules")
    blob = git(root, "rev-parse", "HEAD:.gitignore").strip()
    git(root, "update-index", "--skip-worktree", ".gitignore")
    (root / ".gitignore").unlink()
    (root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    marker = tmp_path / "ran"
    for name, value in (
        ("core.repositoryformatversion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", "ssh://host/path"),
        ("core.sshCommand", f"touch {marker}; false"),
    ):
        git(root, "config", name, value)
    fill(root, "a.log")
    ignored_in(root)
    assert not marker.exists()


def test_git_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(GitError, match=r"use_gitignore: git is not installed; .*apt-get install git, or leave"):
        ignored_in(tmp_path)


def test_a_damaged_repository_is_said(tmp_path: Path) -> None:
    root = repository(tmp_path)
    fill(root, "a.log")
    (root / ".git" / "index").write_bytes(b"nonsense")
    with pytest.raises(GitError, match=r"use_gitignore: git failed .*repair the repository"):
        ignored_in(root)


def test_an_unreadable_configuration_is_said(tmp_path: Path) -> None:
    root = repository(tmp_path)
    (root / ".git" / "config").write_text("[core\n")
    with pytest.raises(GitError, match=r"use_gitignore: git cannot read the repository: .*config"):
        ignored_in(root)


def test_a_stop_ends_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setitem(tools.ENVIRONMENT, "PATH", f"{tmp_path}:{os.environ['PATH']}")

    with opened_place(State(str(tmp_path / "state")), str(tmp_path)) as place, pytest.raises(Stopped):
        git_ignored(place, stop)
