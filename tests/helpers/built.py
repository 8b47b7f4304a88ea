"""What is built from this repository, and whether it serves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mcp import Client

from helpers.documents import BUNDLE, ROOT
from helpers.mcp import text

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*argv: str | Path, **options: Any) -> str:
    """Run a command to its end, which must be a good one, and return what it says."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def build(folder: Path) -> tuple[Path, Path]:
    """Write the source distribution into a folder, and the wheel made from it; return both."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    [sdist] = folder.glob("*.tar.gz")
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(sdist))
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


async def serves(server: Any, project: str) -> None:
    """Ask a server for its tools, for a backup, and for what has changed since."""
    async with Client(server) as client:
        listed = {tool["name"] for tool in json.loads(BUNDLE.read_text())["tools"]}
        assert {tool.name for tool in (await client.list_tools()).tools} == listed
        created = await client.call_tool("create_backup", {"dir": project})
        assert not created.is_error, text(created)
        assert created.structured_content is not None
        compared = await client.call_tool("diff_backup", {"backup_id": created.structured_content["id"]})
        assert not compared.is_error, text(compared)
        assert compared.structured_content == {"added_count": 0, "modified_count": 0, "removed_count": 0}
