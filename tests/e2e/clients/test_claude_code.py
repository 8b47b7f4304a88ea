"""Claude Code: connects, tells the model of the tools, and gets a broken project back through them."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.claude import ClaudeCode, Script, Shown, Use, sandpoint
from helpers.clients import Sandpoint
from helpers.trees import assert_same, list_tree

TOOLS = (
    "create_backup",
    "restore_backup",
    "fork_backup",
    "list_backups",
    "delete_backup",
    "diff_backup",
    "verify_backup",
    "show_backups",
)
TOKEN = "a-token-of-the-tests"
UNKNOWN_ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"


UNATTENDED = {"SANDPOINT_CONFIRM": "never"}
"""For a server over HTTP, which cannot see that nobody is there: Claude Code then dismisses every question."""


@pytest.fixture
def claude(tmp_path: Path, project: Path, server: Sandpoint) -> ClaudeCode:
    """Claude Code in the project, with the server added as a user adds it."""
    return add_server(ClaudeCode(tmp_path, project), server)


@pytest.fixture
def claude_over_http(tmp_path: Path, project: Path, server: Sandpoint) -> Iterator[ClaudeCode]:
    """Claude Code in the project, with a server added that runs already, for work that nobody watches."""
    with over_http(ClaudeCode(tmp_path, project), replace(server, env=UNATTENDED)) as claude:
        yield claude


@pytest.fixture
def asked_claude(tmp_path: Path, project: Path, server: Sandpoint) -> Iterator[ClaudeCode]:
    """Claude Code in the project, with a server added that runs already, and asks."""
    with over_http(ClaudeCode(tmp_path, project), server) as claude:
        yield claude


@contextmanager
def over_http(claude: ClaudeCode, server: Sandpoint) -> Iterator[ClaudeCode]:
    with replace(server, env={**server.env, "SANDPOINT_HTTP_TOKEN": TOKEN}).over_http() as url:
        claude.run("mcp", "add", "--transport", "http", "sandpoint", url, "--header", f"Authorization: Bearer {TOKEN}")
        yield claude


def add_server(claude: ClaudeCode, server: Sandpoint) -> ClaudeCode:
    variables = [word for name, value in server.environment.items() for word in ("--env", f"{name}={value}")]
    claude.run("mcp", "add", "sandpoint", *variables, "--", server.command, "serve")
    return claude


def hook(event: str, command: str, matcher: str = "") -> dict[str, Any]:
    """Return settings of Claude Code with one hook."""
    return {"hooks": {event: [{"matcher": matcher, "hooks": [{"type": "command", "command": command}]}]}}


def allowed(*tools: str) -> tuple[str, ...]:
    return ("--permission-mode", "dontAsk", "--allowedTools", ",".join(("mcp__sandpoint", *tools)))


def result(shown: Shown) -> dict[str, Any]:
    assert not shown.is_error, shown.text
    structured = json.loads(shown.text)
    assert isinstance(structured, dict)
    return structured


def test_it_connects_to_a_server_that_was_added(claude: ClaudeCode) -> None:
    assert "Connected" in claude.run("mcp", "get", "sandpoint")


@pytest.mark.parametrize("where", ["claude", "claude_over_http"])
def test_a_broken_project_comes_back(where: str, project: Path, request: pytest.FixtureRequest) -> None:
    claude: ClaudeCode = request.getfixturevalue(where)
    before = list_tree(project)

    _, ended = claude.prompt(break_and_bring_back(project), *allowed("Read", "Edit", "Bash"))

    assert ended["result"] == "All is as before."
    assert ended["permission_denials"] == []
    assert_same(before, list_tree(project))


def break_and_bring_back(project: Path) -> Script:
    made = result((yield sandpoint("create_backup", dir=str(project), name="before")))
    assert made["file_count"] == 5
    [listed] = result((yield sandpoint("list_backups", dir=str(project))))["backups"]
    assert listed["id"] == made["id"]

    app = str(project / "src" / "app.py")
    yield Use("Read", {"file_path": app})
    edited = yield Use("Edit", {"file_path": app, "old_string": "hello", "new_string": "bye"})
    assert not edited.is_error, edited.text
    broken = yield Use("Bash", {"command": "rm -r src/empty link && mkdir junk && echo x > junk/new"})
    assert not broken.is_error, broken.text

    changes = result((yield sandpoint("diff_backup", backup_id=made["id"])))
    assert changes["modified"] == ["src/app.py"]
    assert changes["added"] == ["junk", "junk/new"]
    restored = result((yield sandpoint("restore_backup", backup_id=made["id"])))
    assert restored["undo_id"] != made["id"]
    return "All is as before."


def test_the_model_knows_what_it_can_do_before_it_has_any_schema(claude: ClaudeCode, project: Path) -> None:
    def script() -> Script:
        yield Use("ToolSearch", {"query": "select:mcp__sandpoint__create_backup", "max_results": 5})
        return "Found."

    model, _ = claude.prompt(script(), *allowed())

    assert "Back up BEFORE a risky step" in model.told
    assert f"Directories: Must be one of these or inside: {project}." in model.told
    for tool in TOOLS:
        assert f"mcp__sandpoint__{tool}" in model.told
    assert not [name for name in model.tools(0) if "sandpoint" in name]
    found = model.tools(-1)["mcp__sandpoint__create_backup"]
    assert found["description"].startswith("Take a point-in-time backup of a directory")
    assert found["input_schema"]["additionalProperties"] is False
    assert found["input_schema"]["required"] == ["dir"]


def test_the_model_reads_prompts_and_files_of_backups(claude: ClaudeCode, project: Path) -> None:
    def script() -> Script:
        made = result((yield sandpoint("create_backup", dir=str(project))))
        uri = f"backup://{made['id']}/file/src/app.py"
        read = yield Use("ReadMcpResourceTool", {"server": "sandpoint", "uri": uri})
        assert json.loads(read.text)["contents"][0]["text"] == "print('hello')\n"
        return "Read."

    model, _ = claude.prompt(script(), *allowed(), text=f"/mcp__sandpoint__checkpoint_before_risky_change {project}")
    assert "make sure that there is a way back" in model.told
    assert f'"dir": "{project}"' in model.told


def test_an_error_tells_the_model_its_code_and_what_to_do(claude: ClaudeCode, project: Path) -> None:
    def script() -> Script:
        misspelt = yield sandpoint("create_backup", dir=str(project), nme="before")
        assert misspelt.is_error
        assert misspelt.text.startswith("INVALID_BACKUP_CONFIG: create_backup: nme: no such option")
        outside = yield sandpoint("create_backup", dir="/etc")
        assert outside.is_error
        assert "outside the allowed directories" in outside.text
        unknown = yield sandpoint("restore_backup", backup_id=UNKNOWN_ID)
        assert unknown.is_error
        assert unknown.text.startswith("BACKUP_NOT_FOUND: ")
        return "Three errors."

    _, ended = claude.prompt(script(), *allowed())
    assert ended["result"] == "Three errors."


def test_a_question_that_nobody_sees_is_no_yes(asked_claude: ClaudeCode, project: Path) -> None:
    def script() -> Script:
        made = result((yield sandpoint("create_backup", dir=str(project))))
        (project / "new").touch()
        refused = yield sandpoint("restore_backup", backup_id=made["id"])
        assert refused.is_error
        assert refused.text.startswith("NOT_CONFIRMED: ")
        assert "SANDPOINT_CONFIRM=never" in refused.text
        return "Nobody answered."

    asked_claude.prompt(script(), *allowed())
    assert (project / "new").exists()


def test_a_restore_that_is_agreed_to_is_made(asked_claude: ClaudeCode, project: Path, tmp_path: Path) -> None:
    def script() -> Script:
        made = result((yield sandpoint("create_backup", dir=str(project))))
        (project / "new").touch()
        assert result((yield sandpoint("restore_backup", backup_id=made["id"])))["success"] is True
        return "It was agreed to."

    asked = tmp_path / "asked.json"
    yes = json.dumps({"hookSpecificOutput": {"hookEventName": "Elicitation", "action": "accept", "content": {}}})
    asked_claude.prompt(script(), *allowed(), settings=hook("Elicitation", f"cat >{asked}; echo '{yes}'"))
    assert "- new" in json.loads(asked.read_text())["message"].splitlines()
    assert not (project / "new").exists()


def test_each_change_can_be_undone_though_the_model_took_no_backup(
    tmp_path: Path, project: Path, server: Sandpoint
) -> None:
    claude = ClaudeCode(tmp_path, project, server.environment | {"IS_SANDBOX": "1"})
    run(server, project, "hook", "install")
    before = list_tree(project)

    def script() -> Script:
        app = str(project / "src" / "app.py")
        yield Use("Read", {"file_path": app})
        edited = yield Use("Edit", {"file_path": app, "old_string": "hello", "new_string": "bye"})
        assert not edited.is_error, edited.text
        removed = yield Use("Bash", {"command": "rm -r src"})
        assert not removed.is_error, removed.text
        return "Broken."

    claude.prompt(script(), "--permission-mode", "bypassPermissions")
    assert not (project / "src").exists()
    run(server, project, "undo")
    assert (project / "src" / "app.py").read_text() == "print('bye')\n"
    run(server, project, "undo")
    assert_same(before, list_tree(project))


def run(server: Sandpoint, project: Path, *arguments: str) -> None:
    """Run a command of the command line in the project, as its user."""
    done = subprocess.run(
        [server.command, *arguments],
        cwd=project,
        env=os.environ | server.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
