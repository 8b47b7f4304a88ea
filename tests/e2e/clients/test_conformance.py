"""The scenarios of the conformance suites that ask for no fixture of theirs, of both revisions."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.clients import Revision, Sandpoint, run_node

SCENARIOS: dict[Revision, tuple[str, ...]] = {
    "2025-11-25": (
        "server-initialize",
        "ping",
        "tools-list",
        "resources-list",
        "prompts-list",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
    ),
    "2026-07-28": (
        "tools-list",
        "resources-list",
        "prompts-list",
        "caching",
        "http-header-validation",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
        "sep-2164-resource-not-found",
    ),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("conformance")
    with Sandpoint(base, base / "store", base / "state").over_http() as url:
        yield url


@pytest.mark.parametrize(
    ("revision", "scenario"),
    [(revision, scenario) for revision, scenarios in SCENARIOS.items() for scenario in scenarios],
)
def test_a_scenario_passes(revision: Revision, scenario: str, url: str, tmp_path: Path) -> None:
    done = run_node(
        f"conformance-{revision}/dist/index.js",
        *("server", "--url", url, "--scenario", scenario, "--spec-version", revision),
        cwd=tmp_path,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    passed = re.search(r"^Passed: (\d+)/(\d+), 0 failed, 0 warnings$", said, re.MULTILINE)
    assert passed is not None, said
    assert passed[1] == passed[2] != "0"
