"""A real server on a real tree, started over stdio, in both revisions of the protocol."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client

from helpers.mcp import sandpoint_server
from helpers.mcp_runs import make_project

Mode = Literal["auto", "legacy"]
Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> Mode:
    revision: Mode = request.param
    return revision


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "allowed" / "project")


@pytest.fixture
def connect(tmp_path: Path, project: Path, mode: Mode) -> Connect:
    """Return what starts a server in the project and connects to it; keywords are its environment."""

    @asynccontextmanager
    async def connected(*, elicitation_callback: Any = None, **environment: str) -> AsyncIterator[Client]:
        server = sandpoint_server(project, store=tmp_path / "store", state=tmp_path / "state", **environment)
        async with Client(server, mode=mode, elicitation_callback=elicitation_callback) as client:
            yield client

    return connected


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder to put first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder
