"""Each client's configuration is what the client reads, and starts the server that it names."""

import base64
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mcp import Client, StdioServerParameters

from helpers.mcp import text

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
BIN = Path(sys.executable).parent

KEYS = {
    "claude-code/.mcp.json": "mcpServers",
    "claude-desktop/claude_desktop_config.json": "mcpServers",
    "cline/cline_mcp_settings.json": "mcpServers",
    "codex/config.toml": "mcp_servers",
    "cursor/.cursor/mcp.json": "mcpServers",
    "gemini-cli/.gemini/settings.json": "mcpServers",
    "jetbrains/.junie/mcp/mcp.json": "mcpServers",
    "opencode/opencode.json": "mcp",
    "vscode/.vscode/mcp.json": "servers",
    "windsurf/mcp_config.json": "mcpServers",
    "zed/settings.json": "context_servers",
}
"""Under which key each client looks for its servers."""

STARTED_IN_PROJECT = {"claude-code/.mcp.json"}
"""Of the clients that are known to start their servers in the project."""

LINTED = ("claude-code", "cursor", "opencode", "vscode")
"""Folders whose clients' formats the linter knows."""

LINKED = {"cursor.com": "cursor/.cursor/mcp.json", "insiders.vscode.dev": "vscode/.vscode/mcp.json"}
"""Links that install with a click, by host."""


def read(name: str) -> dict[str, Any]:
    content = (CONFIGS / name).read_text()
    return tomllib.loads(content) if name.endswith(".toml") else json.loads(content)


def entry(name: str) -> dict[str, Any]:
    found = read(name)[KEYS[name]]["sandpoint"]
    assert isinstance(found, dict)
    return found


def command(name: str) -> list[str]:
    """Return the command line in an entry, whichever way its client writes it."""
    found = entry(name)
    if isinstance(found["command"], list):
        return list(found["command"])
    return [found["command"], *found["args"]]


def test_every_file_is_in_the_table() -> None:
    files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_file()} - {"README.md"}
    assert files == set(KEYS)
    linked = re.findall(r"\]\(([^):]+)\)", (CONFIGS / "README.md").read_text())
    assert set(linked) == files


def test_a_file_says_nothing_that_its_client_does_not_read() -> None:
    for name, key in KEYS.items():
        assert set(read(name)) - {"$schema"} == {key}
        assert set(entry(name)) <= {"type", "command", "args", "env", "environment"}
        assert entry(name).get("type", "stdio") in ("stdio", "local")


def test_a_linter_that_knows_these_clients_has_no_complaint() -> None:
    lint = [str(BIN / "skillsaw"), "lint", "--strict", "--no-plugins", "--no-custom-rules", *LINTED]
    done = subprocess.run(lint, cwd=CONFIGS, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("host", "name"), LINKED.items())
def test_a_link_installs_what_the_file_says(host: str, name: str) -> None:
    [link] = re.findall(rf"\]\((https://{host}/[^)]+)\)", (CONFIGS / "README.md").read_text())
    query = parse_qs(urlsplit(link).query)
    assert query["name"] == ["sandpoint"]
    [config] = query["config"]
    told = config if config.startswith("{") else base64.b64decode(config, validate=True).decode()
    assert json.loads(told) == entry(name)


@pytest.mark.anyio
@pytest.mark.parametrize("name", KEYS)
async def test_a_configuration_starts_a_server_that_backs_up_the_project(tmp_path: Path, name: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("a")

    found = entry(name)
    environment = {
        variable: value.replace("${workspaceFolder}", str(project)).replace("/home/you/projects", str(project))
        for variable, value in (found.get("env") or found.get("environment") or {}).items()
    }
    program, *arguments = command(name)
    server = StdioServerParameters(
        command=str(BIN / program),
        args=arguments,
        cwd=project if name in STARTED_IN_PROJECT else tmp_path,
        env=environment
        | {"SANDPOINT_STORE": (tmp_path / "store").as_uri(), "SANDPOINT_STATE_DIR": str(tmp_path / "state")},
    )
    async with Client(server) as client:
        tools = (await client.list_tools()).tools
        assert "create_backup" in [tool.name for tool in tools]
        created = await client.call_tool("create_backup", {"dir": str(project)})
        assert not created.is_error, text(created)
        assert created.structured_content is not None
        assert created.structured_content["file_count"] == 1
        refused = await client.call_tool("create_backup", {"dir": str(tmp_path)})
        assert text(refused).startswith("INVALID_BACKUP_CONFIG: ")
