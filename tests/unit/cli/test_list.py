import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

from helpers.cli import CREATED, ID, OTHER_ID, FakeService, make_backup
from sandpoint.cli import main
from sandpoint.cli.list import show_page
from sandpoint.cli.terminal import local_time
from sandpoint.models import BackupPage

Answer = Callable[..., FakeService]

PAGE = BackupPage(
    backups=(
        make_backup(id=OTHER_ID, name="[bold]x[/bold]\x1b[2J", dir="/work/" + "deep/" * 10),
        make_backup(expires_at=CREATED),
    ),
    next_cursor=ID,
)
NOW = CREATED + timedelta(seconds=1)


def test_every_option_reaches_the_service(answer: Answer) -> None:
    service = answer(list=BackupPage(backups=()))
    arguments = "list --dir /work --name n --sandbox-id local:1 --limit 3 --cursor c --all"
    assert main(arguments.split()) == 0
    assert main(["list"]) == 0
    assert [values for operation, values in service.calls if operation == "list"] == [
        {
            "dir": "/work",
            "name": "n",
            "sandbox_id": "local:1",
            "limit": 3,
            "cursor": "c",
            "include_expired": True,
        },
        {"dir": None, "name": None, "sandbox_id": None, "cursor": None, "include_expired": False},
    ]


def test_a_pipe_gets_whole_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_page(PAGE, filtered=False, now=NOW)
    heading, first, second, more = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "CREATED", "EXPIRES", "KIND", "SIZE", "FILES", "NAME", "DIRECTORY"]
    assert first.startswith(OTHER_ID)
    assert "[bold]x[/bold]\\x1b[2J" in first
    assert first.endswith("deep/" * 10)
    assert local_time(CREATED, seconds=False) in second
    assert f"{local_time(CREATED, seconds=False)} (over)" in second
    assert first.index("1.2 MB") == second.index("1.2 MB") == heading.index("SIZE")
    assert more.endswith(f"--cursor {ID}")


def test_backups_of_several_sandboxes_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    backups = tuple(make_backup(sandbox_id=sandbox_id) for sandbox_id in ("local:1", "local:2\x1b"))
    show_page(BackupPage(backups=backups), filtered=False, now=NOW)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split()[-1] == "SANDBOX"
    assert (first.split()[-1], second.split()[-1]) == ("local:1", "local:2\\x1b")


@pytest.mark.parametrize(("width", "has_size"), [(80, False), (200, True)])
def test_a_terminal_gets_a_table_that_fits_and_ids_stay_whole(
    width: int, has_size: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    show_page(PAGE, filtered=False, now=NOW)
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    table = out.splitlines()[:-1]
    assert all(len(line) <= width for line in table)
    assert OTHER_ID in out
    assert ID in out
    assert ("1.2 MB" in out) is has_size
    assert "\x1b" not in out
    if has_size:
        assert "[bold]x[/bold]\\x1b[2J" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list"], "No backups yet. Make one with: sandpoint create DIR\n"),
        (["list", "--name", "x"], "No backup matches.\n"),
        (["list", "--dir", "/x"], "No backup matches.\n"),
        (["list", "--sandbox-id", "local:1"], "No backup matches.\n"),
    ],
)
def test_an_empty_list_says_what_to_do(
    arguments: list[str], said: str, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(list=BackupPage(backups=()))
    assert main(arguments) == 0
    assert capsys.readouterr().out == said


def test_a_program_gets_the_page(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(list=PAGE)
    assert main(["list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"backups", "next_cursor"}
    assert [backup["id"] for backup in told["backups"]] == [OTHER_ID, ID]
    assert told["next_cursor"] == ID
