"""A project to lose and bring back, and the server that a client starts or finds."""

from pathlib import Path

import pytest

from helpers.clients import Sandpoint
from helpers.mcp_runs import make_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "work" / "project")


@pytest.fixture
def server(tmp_path: Path, project: Path) -> Sandpoint:
    return Sandpoint(project.parent, tmp_path / "store", tmp_path / "state")
