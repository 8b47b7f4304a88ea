"""The MCP Inspector's command line, with the configuration file that clients share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.clients import Sandpoint, run_node
from helpers.trees import assert_same, list_tree

PROGRAM = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
TOOL_FAILED = 5
Inspect = Callable[..., dict[str, Any]]


@pytest.fixture
def inspect(tmp_path: Path, server: Sandpoint) -> Inspect:
    """Return what asks the server for a method, and returns the result; `status` is the one that it must end with."""
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"sandpoint": server.stdio}}))

    def ask(method: str, *arguments: str, status: int = 0) -> dict[str, Any]:
        done = run_node(
            PROGRAM,
            *("--cli", "--config", str(config), "--server", "sandpoint", "--format", "json"),
            *("--method", method, *arguments),
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "MCP_INSPECTOR_SECRET_STORE": "memory"},
        )
        assert done.returncode == status, done.stdout + done.stderr
        result = json.loads(done.stdout)["result"]
        assert isinstance(result, dict)
        return result

    return ask


def call(inspect: Inspect, tool: str, *arguments: str) -> dict[str, Any]:
    """Call a tool with arguments as a person writes them."""
    result = inspect("tools/call", "--tool-name", tool, "--tool-arg", *arguments)
    structured = result["structuredContent"]
    assert json.loads(result["content"][0]["text"]) == structured
    assert isinstance(structured, dict)
    return structured


def test_every_schema_is_one_that_all_clients_can_use(inspect: Inspect) -> None:
    listed = inspect("tools/list", "--strict")
    assert {tool["name"] for tool in listed["tools"]} >= {"create_backup", "restore_backup", "list_backups"}
    for tool in listed["tools"]:
        assert tool["inputSchema"]["type"] == "object"
        assert tool["outputSchema"]["type"] == "object"


def test_a_broken_project_comes_back(inspect: Inspect, project: Path) -> None:
    (project / "kept.log").write_text("as it was")
    before = list_tree(project, skip=["kept.log"])
    made = call(inspect, "create_backup", f"dir={project}", 'excludes=["*.log"]', "ttl=600", "use_gitignore=true")
    (project / "src" / "app.py").unlink()
    (project / "new.txt").write_text("new")
    (project / "kept.log").write_text("changed, and kept")
    changes = call(inspect, "diff_backup", f"backup_id={made['id']}")
    assert (changes["added"], changes["removed"]) == (["new.txt"], ["src/app.py"])
    call(inspect, "restore_backup", f"backup_id={made['id']}")
    assert_same(before, list_tree(project, skip=["kept.log"]))
    listed = call(inspect, "list_backups", f"dir={project}", "limit=5")["backups"]
    assert made["id"] in [backup["id"] for backup in listed]


def test_an_error_says_what_is_wrong(inspect: Inspect, project: Path) -> None:
    failed = inspect(
        "tools/call", "--tool-name", "create_backup", "--tool-arg", f"dir={project}", "nme=x", status=TOOL_FAILED
    )
    assert failed["isError"] is True
    assert failed["_meta"]["sandpoint/code"] == "INVALID_BACKUP_CONFIG"
    assert "nme: no such option" in failed["content"][0]["text"]


@pytest.mark.parametrize("kind", ["resources", "prompts"])
def test_resources_and_prompts_are_listed(inspect: Inspect, kind: str) -> None:
    assert isinstance(inspect(f"{kind}/list")[kind], list)
