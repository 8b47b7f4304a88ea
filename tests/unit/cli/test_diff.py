import json
import sys
from collections.abc import Callable

import pytest

from helpers.cli import ID, OTHER_ID, FakeService
from sandpoint.cli import main
from sandpoint.cli.changes import show_changes
from sandpoint.models import Changes

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
    assert service.calls == [("diff", {"backup_id": ID, "other_id": other, "dir": directory})]
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
