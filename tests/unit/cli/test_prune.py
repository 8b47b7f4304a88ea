import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from helpers.cli import CREATED, ID, OTHER_ID, UNDO_ID, FakeService
from sandpoint.cli import main
from sandpoint.cli.terminal import local_time
from sandpoint.models import Decision, PruneResult

Answer = Callable[..., FakeService]


def decision(backup_id: str, *, keep: bool, reason: str, **changes: Any) -> Decision:
    values = {"id": backup_id, "dir": "/w", "name": None, "created_at": CREATED, "keep": keep, "reason": reason}
    return Decision(**(values | changes))


KEPT = decision(OTHER_ID, keep=True, reason="1st of the newest 1", name="a\x1b[2J")
GONE = decision(ID, keep=False, reason="no rule keeps it")
RESULT = PruneResult(removed=(ID,), abandoned=(), freed_bytes=1500, decisions=(KEPT, GONE))


def test_every_option_reaches_the_service(answer: Answer) -> None:
    service = answer(prune=RESULT)
    options = ["--keep-last", "1", "--keep-hourly", "2", "--keep-daily", "3", "--keep-weekly", "4"]
    names = ["--keep-name", "a*", "--keep-name", "b"]
    assert main(["prune", *options, *names, "--dir", "/w", "--dry-run"]) == 0
    assert main(["prune"]) == 0
    none: dict[str, Any] = dict.fromkeys(("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "dir"))
    assert [values for _, values in service.calls] == [
        {
            "keep_last": 1,
            "keep_hourly": 2,
            "keep_daily": 3,
            "keep_weekly": 4,
            "keep_names": ["a*", "b"],
            "dir": "/w",
            "dry_run": True,
        },
        none | {"keep_names": (), "dry_run": False},
    ]


def test_each_decision_is_told_with_its_reason(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=RESULT)
    assert main(["prune", "--keep-last", "1"]) == 0
    heading, kept, gone, total = capsys.readouterr().out.splitlines()
    assert heading.split() == ["DECISION", "ID", "CREATED", "NAME", "DIRECTORY", "REASON"]
    created = local_time(CREATED, seconds=False)
    assert re.split("  +", kept) == ["keep", OTHER_ID, created, "a\\x1b[2J", "/w", "1st of the newest 1"]
    assert re.split("  +", gone) == ["remove", ID, created, "/w", "no rule keeps it"]
    assert total == "Removed: 1 backup; 1.5 kB freed in the store."


def test_without_rules_only_what_goes_is_told(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=RESULT)
    assert main(["prune"]) == 0
    out = capsys.readouterr().out
    assert ID in out
    assert OTHER_ID not in out


def test_a_dry_run_says_what_would_be(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=RESULT.model_copy(update={"dry_run": True, "abandoned": (UNDO_ID, "/w\x1b")}))
    assert main(["prune", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"Would remove what was left of {UNDO_ID}, which is no backup.",
        "Would remove what an overlay on /w\\x1b left, mounted no more.",
        "Would remove: 1 backup, parts of 1 other, 1 overlay; 1.5 kB would be freed in the store. Nothing was changed.",
    ]


def test_a_narrow_terminal_has_the_id_and_the_reason(
    answer: Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    answer(prune=RESULT)
    assert main(["prune", "--keep-last", "1"]) == 0
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert OTHER_ID in out
    assert "1st of the newest 1" in out


@pytest.mark.parametrize("rules", [[], ["--keep-last", "5"]])
def test_nothing_to_prune(rules: list[str], answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=PruneResult(removed=(), abandoned=(), freed_bytes=0, decisions=(KEPT,)))
    assert main(["prune", *rules]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing to remove."


def test_a_prune_says_why_it_freed_nothing(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=RESULT.model_copy(update={"freed_bytes": 0}))
    assert main(["prune"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Removed: 1 backup; 0 bytes freed in the store, for backups that stay need the rest."


def test_a_prune_of_what_is_not_there_says_so(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=PruneResult(removed=(), abandoned=(), freed_bytes=0))
    assert main(["prune", "--dir", "/misspelt"]) == 0
    assert capsys.readouterr().out == "Nothing to remove: there are no backups of /misspelt.\n"


def test_a_program_gets_the_decisions(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=RESULT)
    assert main(["prune", "--keep-last", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in ("removed", "abandoned", "freed_bytes", "dry_run")} == {
        "removed": [ID],
        "abandoned": [],
        "freed_bytes": 1500,
        "dry_run": False,
    }
    assert told["decisions"][1] == {
        "id": ID,
        "dir": "/w",
        "name": None,
        "created_at": "2026-11-21T20:46:51Z",
        "keep": False,
        "reason": "no rule keeps it",
    }


@pytest.mark.parametrize("value", ["x", "1.5", ""])
def test_a_count_is_a_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--keep-last", value]) == 2
    assert "--keep-last" in capsys.readouterr().err


def test_what_was_not_done_and_what_is_left_of_containers_is_told(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    states = tuple(f"state of container {number}, which is no more" for number in range(12))
    answer(prune=RESULT.model_copy(update={"leftovers": states, "sandbox_problem": "container web is\nnot running"}))
    assert main(["prune"]) == 0
    out, err = capsys.readouterr()
    assert "Removed on the Docker engine: state of container 0, which is no more, " in out
    assert "state of container 9, which is no more and 2 more.\n" in out
    assert err == "warning: only the store was pruned, not the sandbox: container web is\\nnot running\n"
    nothing = PruneResult(removed=(), abandoned=(), freed_bytes=0, leftovers=states[:1])
    answer(prune=nothing)
    assert main(["prune"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "No backup was removed."
