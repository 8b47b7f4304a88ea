"""What tests of a real MCP server on a real tree share."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
from mcp import Client

from helpers.mcp import code, text


def make_project(project: Path) -> Path:
    """Make a small tree with each kind of entry that an ordinary one has."""
    (project / "src" / "empty").mkdir(parents=True)
    (project / "src" / "app.py").write_text("print('hello')\n")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o750)
    (project / "link").symlink_to("src/app.py")
    os.link(project / "run.sh", project / "same.sh")
    (project / "données.txt").write_bytes(bytes(range(256)) * 40)
    return project


def damage(project: Path) -> None:
    shutil.rmtree(project / "src")
    (project / "run.sh").write_text("rm -rf /\n")
    (project / "junk").mkdir()
    (project / "junk" / "new.txt").write_text("new")


def listing(tree: Path) -> dict[str, tuple[object, ...]]:
    """Return every entry below a directory, read without any of the code under test."""
    entries: dict[str, tuple[object, ...]] = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        entries[str(path.relative_to(tree))] = (
            status.st_mode,
            status.st_uid,
            status.st_mtime_ns,
            links,
            content,
        )
    return entries


def stored_files(tmp_path: Path) -> list[Path]:
    """Return the files of all backups, whole or begun; the store's lock file stays, and is empty."""
    return [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != "lock"]


async def call(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return dict(result.structured_content)


async def failure(client: Client, tool: str, **arguments: object) -> str:
    """Return the code of a call that must fail, having checked that text and `_meta` say the same."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, text(result)
    assert result.structured_content is None
    written, _, message = text(result).partition(": ")
    assert code(result) == written
    assert len(message) > 20
    return written


def put_tool(folder: Path, name: str, script: str) -> str:
    """Put a program into the folder and return a PATH that finds it first."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what it waits for is another process
            await anyio.sleep(0.02)


def server_process() -> psutil.Process:
    (process,) = [child for child in psutil.Process().children() if "serve" in child.cmdline()]
    return process
