import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import FakeService
from sandpoint.cli import main
from sandpoint.errors import InvalidBackupConfigError
from sandpoint.models import Lifecycle, LifecycleRule

Answer = Callable[..., FakeService]


def make_rule(**changes: Any) -> LifecycleRule:
    values: dict[str, Any] = {"id": "sandpoint-backups:p/", "prefix": "p/backups/", "is_enabled": True, "is_ours": True}
    return LifecycleRule(**(values | changes))


RULES = Lifecycle(
    bucket="b",
    rules=(
        make_rule(expire_days=5),
        make_rule(id="sandpoint-uploads:p/", abort_uploads_days=1),
        make_rule(id="logs\x1b", prefix="", is_ours=False, expire_days=30, abort_uploads_days=7),
        make_rule(id="cold", prefix="x/", is_ours=False, is_enabled=False),
    ),
)


def rows(told: str) -> list[list[str]]:
    """Return the cells of a table, which two blanks or more part."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in told.splitlines()]


def test_the_rules_are_shown_with_who_set_them(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(lifecycle=RULES)
    assert main(["lifecycle", "show"]) == 0
    assert service.calls == [("lifecycle", {})]
    assert rows(capsys.readouterr().out) == [
        ["KEYS", "WHAT", "SET BY", "RULE"],
        ["p/backups/*", "files are deleted after 5 days", "Sandpoint", "sandpoint-backups:p/"],
        ["p/backups/*", "unfinished uploads are aborted after 1 day", "Sandpoint", "sandpoint-uploads:p/"],
        [
            "*",
            "files are deleted after 30 days, unfinished uploads are aborted after 7 days",
            "others",
            "logs\\x1b",
        ],
        ["x/*", "off: something else", "others", "cold"],
    ]


def test_where_there_are_no_rules_it_says_how_to_set_them(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(lifecycle=Lifecycle(bucket="b", rules=()))
    assert main(["lifecycle", "show", "--store", "s3://b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "The bucket b has no rules.",
        "Set those of Sandpoint with: sandpoint lifecycle apply --days N --store s3://b",
    ]


def test_the_days_reach_the_service_and_what_holds_is_shown(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(apply_lifecycle=RULES)
    assert main(["lifecycle", "apply", "--days", "5"]) == 0
    assert service.calls == [("apply_lifecycle", {"days": 5})]
    told = capsys.readouterr().out
    assert "files are deleted after 5 days" in told
    assert told.endswith("Set them anew before you take backups that live longer than those that are there now.\n")


def test_a_program_gets_the_rules(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(apply_lifecycle=RULES, lifecycle=RULES)
    for arguments in (["show"], ["apply", "--days", "5"]):
        assert main(["lifecycle", *arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == RULES.model_dump(mode="json")


def test_too_few_days_are_an_error(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(apply_lifecycle=InvalidBackupConfigError("days: must be at least 5 (got 1)"))
    assert main(["lifecycle", "apply", "--days", "1"]) == InvalidBackupConfigError.exit_status
    assert "must be at least 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["apply"], "needs --days N"),
        (["show", "--days", "5"], "--days is for 'apply' only"),
        (["apply", "--days", "five"], "--days"),
        (["forget"], "forget"),
        ([], "show|apply"),
    ],
)
def test_wrong_usage_is_told_and_nothing_is_asked(
    arguments: list[str], said: str, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    service = answer()
    assert main(["lifecycle", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert service.calls == []


@pytest.mark.parametrize("arguments", [["show"], ["apply", "--days", "9"]])
def test_a_folder_has_no_rules(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SANDPOINT_STATE_DIR", str(tmp_path / "state"))
    status = main(["lifecycle", *arguments, "--store", (tmp_path / "store").as_uri()])
    assert status == InvalidBackupConfigError.exit_status
    assert "use 'sandpoint prune'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
