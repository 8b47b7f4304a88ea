"""Patches: git applies them, and gets just what was asked for."""

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.engine import Stopped, never, stop
from sandpoint.engine.patches import Blob, is_text, make_patch, quoted

FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\r\n", b"\n", b"+\n", b"-- x\n", b"@@ -1 +1 @@\n", b"\x0c\r\n"]))
TEXTS = st.builds(lambda lines, rest: b"".join(lines) + rest, LINES, st.sampled_from([b"", b"end", b"\\ No newline"]))
NAMES = (
    "plain",
    "two words",
    "new\nline",
    "tab\there",
    'quote"d',
    "back\\slash",
    "naïve",
    "\x1b[31m",
    "- dash",
    " blank ",
)


def put(path: Path, blob: Blob | None) -> None:
    path.unlink(missing_ok=True)
    if blob is None:
        return
    if stat.S_ISLNK(blob.mode):
        path.symlink_to(os.fsdecode(blob.content))
    else:
        path.write_bytes(blob.content)
        path.chmod(stat.S_IMODE(blob.mode))


def seen(path: Path) -> Blob | None:
    if not path.is_symlink() and not path.exists():
        return None
    content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
    return Blob(path.lstat().st_mode, content)


def assert_applies(folder: Path, name: str, old: Blob | None, new: Blob | None) -> None:
    folder.mkdir(exist_ok=True)
    put(folder / name, old)
    patch = make_patch(os.fsencode(name), old, new, never)
    if patch:
        git = ["git", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(git, cwd=folder, input=patch.encode(), capture_output=True, check=False)
        assert done.returncode == 0, (done.stderr, patch)
    else:
        assert old == new
    assert seen(folder / name) == new


@given(TEXTS, TEXTS)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_git_applies_what_turns_one_text_into_another(tmp_path: Path, old: bytes, new: bytes) -> None:
    assert_applies(tmp_path / "tree", "file", Blob(FILE, old), Blob(FILE, new))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, Blob(FILE, b"new\n")),
        (None, Blob(stat.S_IFREG | 0o755, b"")),
        (Blob(FILE, b"old"), None),
        (Blob(FILE, b""), None),
        (Blob(FILE, b"same\n"), Blob(stat.S_IFREG | 0o755, b"same\n")),
        (Blob(FILE, b"old\n"), Blob(stat.S_IFREG | 0o755, b"new\n")),
        (Blob(LINK, b"here"), Blob(LINK, b"there")),
        (Blob(FILE, b"file\n"), Blob(LINK, b"there")),
        (Blob(LINK, b"here"), Blob(FILE, b"file\n")),
    ],
)
def test_git_applies_each_kind_of_change_to_each_name(
    tmp_path: Path, name: str, old: Blob | None, new: Blob | None
) -> None:
    assert_applies(tmp_path / "tree", name, old, new)


def test_a_name_that_is_no_text_is_applied_too(tmp_path: Path) -> None:
    assert_applies(tmp_path / "tree", os.fsdecode(b"caf\xe9"), None, Blob(FILE, b"x\n"))


def test_the_words_are_gits() -> None:
    assert make_patch(b"src/two words", Blob(FILE, b"1\n2\n3\n4\n5\n"), Blob(FILE, b"1\n2\n3\n4\nfive"), never) == (
        "diff --git a/src/two words b/src/two words\n"
        "--- a/src/two words\t\n+++ b/src/two words\t\n"
        "@@ -2,4 +2,4 @@\n 2\n 3\n 4\n-5\n+five\n\\ No newline at end of file\n"
    )
    assert make_patch(b"new\nline", None, Blob(FILE, b"x\n"), never).splitlines() == [
        'diff --git "a/new\\nline" "b/new\\nline"',
        "new file mode 100644",
        "--- /dev/null",
        '+++ "b/new\\nline"',
        "@@ -0,0 +1 @@",
        "+x",
    ]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"a b", "a b"),
        ("é".encode(), "é"),
        (b"\xe9", '"\\351"'),
        (b'"', '"\\""'),
        (b"\\n", '"\\\\n"'),
        (b"\x1b", '"\\033"'),
    ],
)
def test_names_that_are_not_plain_are_quoted(path: bytes, shown: str) -> None:
    assert quoted(path) == shown


def test_nothing_differs() -> None:
    assert make_patch(b"x", Blob(FILE, b"\0"), Blob(FILE, b"\0"), never) == ""
    assert make_patch(b"x", None, None, never) == ""


@pytest.mark.parametrize(("content", "text"), [(b"", True), ("é".encode(), True), (b"\xe9", False), (b"a\0", False)])
def test_what_is_text(content: bytes, text: bool) -> None:
    assert is_text(content) == text


def test_files_that_agree_in_little_take_no_more_than_moments(tmp_path: Path) -> None:
    # Each line is in 1 % of the places: the most that difflib compares, and nothing lines up.
    old = b"".join(b"%d\n" % (number * 7919 % 101) for number in range(100_000))
    new = b"".join(b"%d\n" % (number * 104_729 % 103) for number in range(100_000))
    began = time.monotonic()
    patch = make_patch(b"x", Blob(FILE, old), Blob(FILE, new), never)
    assert time.monotonic() - began < 20
    assert patch.count("@@ -") >= 1
    assert_applies(tmp_path / "tree", "x", Blob(FILE, old), Blob(FILE, new))


def test_a_few_edits_in_a_long_file_stay_a_short_patch() -> None:
    lines = [b"line %d\n" % (number // 3) for number in range(60_000)]
    edited = list(lines)
    edited[20_000] = edited[40_000] = b"edited\n"
    patch = make_patch(b"x", Blob(FILE, b"".join(lines)), Blob(FILE, b"".join(edited)), never)
    assert patch.count("\n") < 25


def test_it_can_be_stopped() -> None:
    with pytest.raises(Stopped):
        make_patch(b"x", Blob(FILE, b"a\n"), Blob(FILE, b"b\n"), stop)
