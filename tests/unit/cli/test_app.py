import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

from helpers.cli import ID, FakeService
from sandpoint.cli import main
from sandpoint.cli.app import COMMANDS
from sandpoint.cli.options import Common
from sandpoint.models import BackupPage
from sandpoint.settings import Settings

Answer = Callable[..., FakeService]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()] == [*COMMANDS, "hook"]
    assert "..." not in out.split("Commands:\n")[1], "each says its whole first sentence"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-h"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: sandpoint {command}")
    shared = {"--store", "--sandbox", "--json"}
    expected = {"serve": set(), "ui": {"--store", "--sandbox"}}.get(command, shared)
    assert {option for option in shared if option in out} == expected


def test_the_group_of_hooks_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hook", "--help"]) == 0
    out = capsys.readouterr().out
    commands = out.split("Commands:\n")[1]
    assert [line.split()[0] for line in commands.splitlines()] == ["install", "claude-code", "generic"]
    assert "..." not in commands, "each says its whole first sentence"
    for command in ("install", "claude-code", "generic"):
        assert main(["hook", command, "-h"]) == 0
        assert f"Usage: sandpoint hook {command}" in capsys.readouterr().out
    assert main(["hook"]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_no_command_shows_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sandpoint {version('sandpoint')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["restor"], "Did you mean 'restore'?"),
        (["create"], "Missing argument 'DIR'"),
        (["create", "/a", "/b"], "unexpected extra argument"),
        (["create", "/a", "--ttl", "soon"], "--ttl"),
        (["create", "/a", "--metadata", "novalue"], "'novalue' is not KEY=VALUE"),
        (["create", "/a", "--metadata", "a=1", "--metadata", "a=2"], "the key 'a' is given twice"),
        (["restore", ID, "--mode", "magic"], "'auto', 'overlay', 'copy'"),
        (["list", "--limit", "1.5"], "--limit"),
        (["list", "--unknown"], "--unknown"),
        (["diff", ID, ID, "--dir", "/a"], "not both"),
        (["verify"], "Missing argument 'ID'"),
        (["serve", "--transport", "pigeon"], "stdio"),
    ],
)
def test_wrong_usage_is_2_with_a_sentence_that_helps(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert " [WRONG_USAGE]\nTry 'sandpoint" in err
    assert "Value error" not in err


def test_a_program_reads_wrong_usage_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"code": "WRONG_USAGE", "message": "Missing argument 'ID'."}}
    assert err == ""


def test_store_and_sandbox_reach_the_settings(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []
    service = answer(list=BackupPage(backups=()))

    def open_service(settings: Settings) -> FakeService:
        asked.append(settings)
        return service

    monkeypatch.setattr("sandpoint.service.open_service", open_service)
    monkeypatch.setenv("SANDPOINT_STORE", "file:///from/environment")
    assert main(["list"]) == 0
    assert main(["list", "--store", "file:///from/option", "--sandbox", "local"]) == 0
    assert [settings.store for settings in asked] == ["file:///from/environment", "file:///from/option"]
    assert asked[1].sandbox == "local"


def test_a_bad_setting_is_told_like_any_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDPOINT_STATE_DIR", "relative")
    assert main(["list"]) == 3
    assert "state_dir" in capsys.readouterr().err


def test_commands_for_the_user_repeat_store_and_sandbox_and_are_quoted() -> None:
    assert Common(None, None, False).command("restore", ID) == f"sandpoint restore {ID}"
    line = Common("file:///my store", "local", False).command("unmount", "/it's")
    assert line == "sandpoint unmount '/it'\"'\"'s' --store 'file:///my store' --sandbox local"


def test_a_reader_that_goes_away_is_no_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "sandpoint.cli", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert process.stderr == b""
    assert process.returncode == 141


def test_help_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from sandpoint.cli import main; main(['--help']); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'rich', 'pydantic', 'anyio', 'asyncio', 'mcp', 'msgspec'}), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert process.stderr.decode().strip() == "[]"
