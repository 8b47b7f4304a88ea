import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandpoint.cli import main
from sandpoint.cli.hook_install import hook_command, own_program
from sandpoint.cli.hook_run import HookOptions

OTHERS: dict[str, Any] = {
    "$schema": "https://example.com/schema",
    "permissions": {"allow": ["Bash(ls:*)"], "größe": 1.5, "big": 12345678901234567890},
    "hooks": {
        "PreToolUse": [
            {"matcher": "Bash", "hooks": [{"type": "command", "command": "mine.sh", "timeout": 5}]},
            {"hooks": [{"type": "prompt", "prompt": "sandpoint?"}]},
        ],
        "Stop": [{"hooks": [{"type": "command", "command": "stop.sh"}]}],
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, a repository with a folder in it, and a home beside it."""
    home = tmp_path / "home"
    (home / ".claude").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    monkeypatch.chdir(project / "sub")
    return project


def install(*options: str) -> int:
    return main(["hook", "install", *options])


def ours(path: Path) -> list[dict[str, Any]]:
    groups = json.loads(path.read_text()).get("hooks", {}).get("PreToolUse", [])
    return [each for group in groups for each in group["hooks"] if "hook claude-code" in each.get("command", "")]


def local(project: Path) -> Path:
    return project / ".claude" / "settings.local.json"


def test_into_a_new_file_of_the_repository(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install() == 0
    program = Path(sys.executable).with_name("sandpoint")
    assert json.loads(local(project).read_text()) == {
        "hooks": {
            "PreToolUse": [
                {
                    "matcher": "Edit|Write|MultiEdit|NotebookEdit|Bash",
                    "hooks": [{"type": "command", "command": f"{program} hook claude-code", "timeout": 60}],
                }
            ]
        }
    }
    out, err = capsys.readouterr()
    assert f"Put the hook in {local(project)}:\n  {program} hook claude-code\n" in out
    assert ".gitignore" in err
    assert list(local(project).parent.iterdir()) == [local(project)]


@pytest.mark.parametrize("option", ["--user", "--project", "--local"])
def test_everything_else_stays_and_twice_is_as_good_as_once(option: str, project: Path) -> None:
    names = {"--user": "../home/.claude/settings.json", "--project": ".claude/settings.json"}
    path = project / names.get(option, ".claude/settings.local.json")
    path.parent.mkdir(exist_ok=True)
    before = json.dumps(OTHERS, indent=4, ensure_ascii=False)
    path.write_text(before)
    assert install(option) == 0
    once = path.read_text()
    settings = json.loads(once)
    added = settings["hooks"]["PreToolUse"].pop()
    assert settings == OTHERS
    assert list(settings) == list(OTHERS)
    assert added["hooks"][0]["command"].startswith("sandpoint " if option == "--project" else "/")
    status = path.stat()
    assert install(option) == 0
    assert (path.read_text(), path.stat().st_ino, path.stat().st_mtime_ns) == (once, status.st_ino, status.st_mtime_ns)
    assert install(option, "--uninstall") == 0
    assert path.read_text() == before


def test_other_options_change_the_entry_and_what_the_user_chose_for_it_stays(project: Path) -> None:
    install()
    settings = json.loads(local(project).read_text())
    settings["hooks"]["PreToolUse"][0]["matcher"] = "Edit"
    settings["hooks"]["PreToolUse"][0]["hooks"][0]["timeout"] = 90
    settings["hooks"]["PreToolUse"].append(
        {"matcher": "Bash", "hooks": [{"command": "/old/bin/sandpoint hook claude-code"}]}
    )
    local(project).write_text(json.dumps(settings))
    assert install("--keep", "5", "--exclude", "*.log", "--exclude", "it's", "--use-gitignore", "--deadline", "45") == 0
    (group,) = json.loads(local(project).read_text())["hooks"]["PreToolUse"]
    assert group["matcher"] == "Edit"
    (entry,) = group["hooks"]
    assert entry["timeout"] == 90
    words = shlex.split(entry["command"])
    options = ["--deadline", "45", "--keep", "5", "--use-gitignore", "--exclude", "*.log", "--exclude", "it's"]
    assert words[1:] == ["hook", "claude-code", *options]
    assert install("--deadline", "100") == 0
    assert ours(local(project))[0]["timeout"] == 130


def test_a_deadline_longer_than_the_agent_waits_is_told_to_it(project: Path) -> None:
    install("--deadline", "120")
    assert ours(local(project))[0]["timeout"] == 150


NO_SETTINGS = {
    "empty": "",
    "torn": "{",
    "comment": "// a comment\n{}",
    "list": "[]",
    "hooks": '{"hooks": []}',
    "event": '{"hooks": {"PreToolUse": {}}}',
    "twice": '{"a": 1, "a": 2}',
    "no number": '{"a": NaN}',
    "mark": "\ufeff{}",
    "too large": '{"a": 1e400}',
    "too exact": '{"a": 1.00000000000000000001}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_what_is_no_settings_file_is_left_as_it_is(
    text: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local(project).parent.mkdir()
    local(project).write_text(text)
    before = local(project).stat()
    for options in ([], ["--uninstall"]):
        assert install(*options) == 3
        assert str(local(project)) in capsys.readouterr().err
    assert (local(project).read_text(), local(project).stat().st_mtime_ns) == (text, before.st_mtime_ns)
    assert list(local(project).parent.iterdir()) == [local(project)]


def test_bytes_that_are_no_text_are_left_as_they_are(project: Path) -> None:
    local(project).parent.mkdir()
    local(project).write_bytes(b'{"a": "\xff"}')
    assert install() == 3
    assert local(project).read_bytes() == b'{"a": "\xff"}'


def test_a_link_to_dotfiles_stays_one(project: Path, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles" / "claude.json"
    dotfiles.parent.mkdir()
    dotfiles.write_text("{}")
    dotfiles.chmod(0o600)
    link = tmp_path / "home" / ".claude" / "settings.json"
    link.symlink_to(dotfiles)
    assert install("--user") == 0
    assert link.is_symlink()
    assert len(ours(dotfiles)) == 1
    assert stat.S_IMODE(dotfiles.stat().st_mode) == 0o600
    assert os.listdir(dotfiles.parent) == ["claude.json"]


@pytest.mark.parametrize("option", ["--project", "--local"])
def test_a_link_out_of_a_project_is_not_followed(
    option: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "home" / ".claude" / "settings.json"
    victim.write_text("{}")
    (project / ".claude").symlink_to(victim.parent)
    (victim.parent / "settings.local.json").write_text("{}")
    assert install(option) == 3
    assert "leads out of" in capsys.readouterr().err
    assert victim.read_text() == "{}"


def test_the_configuration_directory_of_the_agent_counts(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    assert install("--user") == 0
    assert len(ours(tmp_path / "elsewhere" / "settings.json")) == 1


def test_the_home_directory_is_no_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.parent / "home")
    assert install() == 3
    assert "--user" in capsys.readouterr().err


def test_what_git_ignores_needs_no_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".gitignore").write_text(".claude/settings.local.json\n")
    assert install() == 0
    assert capsys.readouterr().err == ""


def test_what_is_not_there_is_not_taken_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install("--uninstall") == 0
    assert "There is no hook" in capsys.readouterr().out
    assert not local(project).parent.exists()


def test_a_program_is_told_as_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["changed"], len(told["commands"])) == (str(local(project)), True, 1)


def test_one_scope_at_a_time(project: Path) -> None:
    assert install("--user", "--project") == 2


def test_a_file_that_cannot_be_written_is_left_as_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".claude").write_text("a file")
    assert install() == 3
    assert "cannot be" in capsys.readouterr().err
    assert (project / ".claude").read_text() == "a file"


def test_a_shared_command_is_no_machines_and_no_error_to_those_without_sandpoint() -> None:
    command = hook_command(HookOptions(), shared=True)
    assert command == "sandpoint hook claude-code || true"
    finished = subprocess.run(["/bin/sh", "-c", command], env={"PATH": "/none"}, capture_output=True, check=False)
    assert finished.returncode == 0


def test_the_program_is_this_installation() -> None:
    finished = subprocess.run([*own_program(), "--version"], capture_output=True, check=True)
    assert finished.stdout.startswith(b"sandpoint ")


@pytest.mark.parametrize(
    "command",
    [
        "/opt/bin/sandpoint hook claude-code",
        "'/a b/bin/sandpoint' hook claude-code --keep 3",
        "sandpoint hook claude-code || true",
        "/usr/bin/python3 -m sandpoint.cli hook claude-code",
        "uvx --from sandpoint sandpoint hook claude-code",
        "SANDPOINT_STORE='file:///a b' sandpoint hook claude-code",
    ],
)
def test_entries_of_ours_are_known_again(command: str, project: Path) -> None:
    local(project).parent.mkdir()
    entry = {"matcher": "Edit", "hooks": [{"type": "command", "command": command}, {"type": "command", "command": "x"}]}
    local(project).write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}))
    assert install("--uninstall") == 0
    assert json.loads(local(project).read_text())["hooks"]["PreToolUse"][0]["hooks"] == [
        {"type": "command", "command": "x"}
    ]


@pytest.mark.parametrize(
    "command",
    [
        "./lint.sh && sandpoint hook claude-code; ./audit.sh",
        "sandpoint hook claude-code | tee log",
        "sandpoint hook claude-code\n./audit.sh",
        "echo $(sandpoint hook claude-code)",
        "echo 'now comes sandpoint hook claude-code'",
        "echo sandpoint hook claude-code",
        "log-sandpoint.sh; other hook claude-code",
        "sandpoint hook claude-code-extra",
        "my-sandpoint-wrapper hook claude-code",
        "sandpoint 'hook claude-code",
    ],
)
def test_what_does_other_things_too_is_not_ours(command: str, project: Path) -> None:
    local(project).parent.mkdir()
    group = {"matcher": "Bash", "hooks": [{"type": "command", "command": command}]}
    before = json.dumps({"hooks": {"PreToolUse": [group]}}, indent=2)
    local(project).write_text(before)
    assert install("--uninstall") == 0
    assert local(project).read_text() == before
    assert install() == 0
    groups = json.loads(local(project).read_text())["hooks"]["PreToolUse"]
    assert (len(groups), groups[0]) == (2, group)
    assert install("--uninstall") == 0
    assert local(project).read_text() == before


def test_variables_that_the_user_set_for_it_stay(project: Path) -> None:
    local(project).parent.mkdir()
    handler = {
        "type": "command",
        "command": "A=1 SANDPOINT_STORE='s3://b/x y' sandpoint hook claude-code",
        "timeout": "5",
    }
    local(project).write_text(json.dumps({"hooks": {"PreToolUse": [{"hooks": [handler]}]}}))
    assert install("--keep", "7") == 0
    (entry,) = ours(local(project))
    assert entry["command"].startswith("A=1 SANDPOINT_STORE='s3://b/x y' /")
    assert entry["command"].endswith("sandpoint hook claude-code --keep 7")
    assert entry["timeout"] == 60


def test_line_ends_and_escapes_stay(project: Path) -> None:
    local(project).parent.mkdir()
    before = b'{\r\n  "half": "\\ud800",\r\n  "n": 0.1\r\n}\r\n'
    local(project).write_bytes(before)
    assert install() == 0
    assert local(project).read_bytes().count(b"\n") == local(project).read_bytes().count(b"\r\n")
    assert len(ours(local(project))) == 1
    assert install("--uninstall") == 0
    assert local(project).read_bytes() == before


def test_a_file_that_is_read_only_is_left_as_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local(project).parent.mkdir()
    local(project).write_text("{}")
    local(project).chmod(0o444)
    assert install() == 3
    assert "read-only" in capsys.readouterr().err
    assert (local(project).read_text(), stat.S_IMODE(local(project).stat().st_mode)) == ("{}", 0o444)


def test_where_no_sandpoint_is_on_path_a_shared_hook_is_warned_of(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install("--project") == 0
    assert "on PATH" in capsys.readouterr().err
    (tmp_path / "sandpoint").touch(mode=0o755)
    assert install("--project") == 0
    assert "PATH" not in capsys.readouterr().err


def test_ways_back_are_no_name_for_it(project: Path) -> None:
    assert install("--name", "undo") == 2
    assert not local(project).exists()
