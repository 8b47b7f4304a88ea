"""Each example is run as its reader would run it; each configuration starts the server that it names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from helpers.mcp import text
from helpers.trees import list_tree

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = EXAMPLES / "configs"
BIN = Path(sys.executable).parent

CONFIG_FILES = {
    "claude-code/.mcp.json": "mcpServers",
    "claude-desktop/claude_desktop_config.json": "mcpServers",
    "cursor/.cursor/mcp.json": "mcpServers",
    "vscode/.vscode/mcp.json": "servers",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def run(name: str, tmp_path: Path) -> str:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    return done.stdout


def test_the_agent_goes_back_when_its_check_fails(tmp_path: Path) -> None:
    told = run("agent_checkpoint.py", tmp_path)
    assert told.count("the check passes: €3") == 1
    assert "'shop/price.py'], deleted: ['shop/currency.py']" in told
    assert "went back; the failed attempt is kept as 0" in told


@pytest.mark.parametrize("arguments", [[], ["--sandbox-strategy=copy"], ["-n2"]], ids=["overlay", "copy", "workers"])
def test_the_uses_of_the_pytest_plugin(arguments: list[str], tmp_path: Path) -> None:
    before = list_tree(EXAMPLES / "pytest_plugin" / "data")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, EXAMPLES / "pytest_plugin"],
        cwd=EXAMPLES.parent,
        env=os.environ | {"SANDPOINT_STATE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "11 passed" in done.stdout, done.stdout
    assert list_tree(EXAMPLES / "pytest_plugin" / "data") == before


def test_a_database_in_a_container_is_rolled_back(debian: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "docker_postgres"],
        cwd=EXAMPLES.parent,
        env=os.environ
        | {"POSTGRES_IMAGE": debian, "SANDPOINT_STATE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "6 passed" in done.stdout, done.stdout


def test_the_service_is_used_from_python(tmp_path: Path) -> None:
    told = run("python_service.py", tmp_path)
    assert "added ('junk.tmp',)" in told
    assert "modified ('data.csv',)" in told
    assert "docs/plan.md" in told
    assert "plan.md says: first do no harm" in told
    assert "verified: True" in told


def test_the_best_of_several_forks_is_taken(tmp_path: Path) -> None:
    told = run("fork.py", tmp_path)
    assert "shorten: modified ('sort.py',), removed (), passes: False" in told
    assert "rewrite: modified ('sort.py',), removed (), passes: True" in told
    assert "tidy: modified (), removed ('sort.py',), passes: False" in told
    assert "took rewrite: def sort(items): return sorted(items)" in told


def test_every_configuration_is_in_the_table() -> None:
    files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.json")}
    assert files == set(CONFIG_FILES)
    linked = re.findall(r"\]\(([^)]+)\)", (CONFIGS / "README.md").read_text())
    assert set(linked) == files


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "key"), CONFIG_FILES.items(), ids=CONFIG_FILES)
async def test_a_configuration_starts_a_server_that_backs_up_the_project(tmp_path: Path, name: str, key: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("a")

    config = json.loads((CONFIGS / name).read_text())
    entry: dict[str, Any] = config[key]["sandpoint"]
    assert set(config) == {key}
    assert entry.get("type", "stdio") == "stdio"
    environment = {
        variable: value.replace("${workspaceFolder}", str(project)).replace("/home/you/projects", str(project))
        for variable, value in entry.get("env", {}).items()
    }
    server = StdioServerParameters(
        command=str(BIN / entry["command"]),
        args=entry["args"],
        # Only Claude Code is known to start its servers in the project.
        cwd=project if name.startswith("claude-code") else tmp_path,
        env=environment
        | {"SANDPOINT_STORE": (tmp_path / "store").as_uri(), "SANDPOINT_STATE_DIR": str(tmp_path / "state")},
    )
    async with Client(server) as client:
        created = await client.call_tool("create_backup", {"dir": str(project)})
        assert not created.is_error, text(created)
        assert created.structured_content is not None
        assert created.structured_content["file_count"] == 1
        refused = await client.call_tool("create_backup", {"dir": str(tmp_path)})
        assert text(refused).startswith("INVALID_BACKUP_CONFIG: ")
