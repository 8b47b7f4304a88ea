import json
import sys
from collections.abc import Callable

import pytest

from helpers.cli import ID, OTHER_ID, FakeService
from sandpoint.cli import main
from sandpoint.cli.changes import show_changes, show_contents
from sandpoint.models import Changes, ContentChanges, FileDiff, FileState

Answer = Callable[..., FakeService]

CHANGES = Changes(added=("new",), modified=("edited",), removed=("gone",))


@pytest.mark.parametrize(
    ("arguments", "other", "directory", "sentence"),
    [
        ([ID], None, None, f"Since backup {ID}: 1 added, 1 modified, 1 removed."),
        (
            [ID, OTHER_ID],
            OTHER_ID,
            None,
            f"From backup {ID} to backup {OTHER_ID}: 1 added, 1 modified, 1 removed.",
        ),
        ([ID, "--dir", "/b"], None, "/b", f"From backup {ID} to /b: 1 added, 1 modified, 1 removed."),
    ],
)
def test_each_path_and_the_counts(
    arguments: list[str],
    other: str | None,
    directory: str | None,
    sentence: str,
    answer: Answer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = answer(diff=CHANGES)
    assert main(["diff", *arguments]) == 0
    assert service.calls == [("diff", {"backup_id": ID, "other_id": other, "dir": directory, "paths": ()})]
    assert capsys.readouterr().out.splitlines() == ["~ edited", "- gone", "+ new", sentence]


def test_no_difference_is_said(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(diff=Changes())
    assert main(["diff", ID]) == 0
    assert capsys.readouterr().out == f"Since backup {ID}: no difference.\n"


def test_a_program_gets_three_lists(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(diff=CHANGES)
    assert main(["diff", ID, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "added": ["new"],
        "modified": ["edited"],
        "removed": ["gone"],
    }


def test_signs_have_colours_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_changes(CHANGES)
    assert capsys.readouterr().out.splitlines() == [
        "\x1b[33m~ edited\x1b[0m",
        "\x1b[31m- gone\x1b[0m",
        "\x1b[32m+ new\x1b[0m",
    ]


STATE = FileState(kind="file", mode="0644", size_bytes=2)
PATCH = "diff --git a/app b/app\n--- a/app\n+++ b/app\n@@ -1,2 +1,2 @@\n \x1b[2J\n-old\n+new\n"
CONTENTS = ContentChanges(
    added=("folder",),
    modified=("app", "data", "image", "locked", "more", "touched"),
    removed=("gone.bin",),
    files=(
        FileDiff(path="app", change="modified", old=STATE, new=STATE, attributes=("mtime",), patch=PATCH),
        FileDiff(path="data", change="modified", old=STATE, new=STATE, omitted="large"),
        FileDiff(path="folder", change="added", old=None, new=STATE),
        FileDiff(path="gone.bin", change="removed", old=STATE, new=None, omitted="binary"),
        FileDiff(path="image", change="modified", old=STATE, new=STATE, omitted="binary"),
        FileDiff(path="locked", change="modified", old=STATE, new=STATE, omitted="unreadable"),
        FileDiff(path="more", change="modified", old=STATE, new=STATE, omitted="limit"),
        FileDiff(path="touched", change="modified", old=STATE, new=STATE, attributes=("owner", "mtime")),
    ),
)


def test_contents_are_a_patch_with_lines_for_what_is_none(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(diff_contents=CONTENTS)
    assert main(["diff", ID, OTHER_ID, "--content", "--path", "a", "--path", "b"]) == 0
    assert service.calls == [
        ("diff_contents", {"backup_id": ID, "other_id": OTHER_ID, "dir": None, "paths": ["a", "b"]})
    ]
    assert capsys.readouterr().out == PATCH + (
        "Files a/data and b/data differ: larger than 1 MiB, not shown\n"
        "+ folder\n"
        "Binary files a/gone.bin and /dev/null differ\n"
        "Binary files a/image and b/image differ\n"
        "Files a/locked and b/locked differ: it could not be read\n"
        "Files a/more and b/more differ: beyond what is shown at once; name it with --path\n"
        "~ touched (owner, mtime)\n"
        f"From backup {ID} to backup {OTHER_ID}: 1 added, 6 modified, 1 removed.\n"
    )


def test_contents_for_a_program(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(diff_contents=CONTENTS)
    assert main(["diff", ID, "--content", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == CONTENTS.model_dump(mode="json")


def test_contents_cannot_play_tricks_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_contents(ContentChanges(files=CONTENTS.files[:1]))
    assert capsys.readouterr().out.splitlines() == [
        "diff --git a/app b/app",
        "--- a/app",
        "+++ b/app",
        "\x1b[36m@@ -1,2 +1,2 @@\x1b[0m",
        " \\x1b[2J",
        "\x1b[31m-old\x1b[0m",
        "\x1b[32m+new\x1b[0m",
    ]
    monkeypatch.setenv("NO_COLOR", "1")
    show_contents(ContentChanges(files=CONTENTS.files[:1]))
    assert capsys.readouterr().out == PATCH.replace("\x1b", "\\x1b")
