"""What README.md and the manifests say of the code is so."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from helpers import documents
from helpers.documents import BUNDLE, README, REGISTRY, ROOT
from sandpoint.mcp_server.http_settings import HTTP_PREFIX, HttpSettings
from sandpoint.settings import PREFIX, Settings

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def expected() -> dict[Path, str]:
    return documents.expected()


@pytest.mark.parametrize("path", [README, BUNDLE, REGISTRY], ids=lambda path: str(path.name))
def test_what_is_made_from_the_code_is_up_to_date(path: Path, expected: dict[Path, str]) -> None:
    if path.read_text() != expected[path]:
        pytest.fail(f"{path.relative_to(ROOT)} is out of date with the code; run: make docs")


def test_every_variable_is_in_the_tables_of_settings_and_no_other() -> None:
    assert sorted(documents.settings_rows(README.read_text())) == sorted(documents.variables())


def test_a_variable_that_the_code_reads_is_known() -> None:
    internal = {"SANDPOINT_WORKERS_PREPARED"}  # from pytest to its own workers
    found = {
        name
        for folder in ("server", "fixtures")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\bSANDPOINT_[A-Z0-9_]*[A-Z0-9]\b", path.read_text())
    }
    assert found - internal - {"SANDPOINT_R2"} <= set(documents.variables())


@pytest.mark.parametrize(("prefix", "model"), [(PREFIX, Settings), (HTTP_PREFIX, HttpSettings)])
def test_defaults_that_are_numbers_are_those_of_the_code(prefix: str, model: type[BaseModel]) -> None:
    rows = documents.settings_rows(README.read_text())
    units = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    for name, field in model.model_fields.items():
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            number, _, unit = rows[prefix + name.upper()][1].replace(",", "").partition(" ")
            assert float(number) * units[unit] == field.default, name


def test_links_within_the_documents_lead_somewhere() -> None:
    for path in (README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        heads = {_anchor(head) for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in heads, f"{path.name}: {target}"
            elif not target.startswith("https://"):
                assert (ROOT / target.partition("#")[0]).exists(), f"{path.name}: {target}"


def _anchor(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def test_the_registry_would_take_the_server(tmp_path: Path) -> None:
    """By the registry's own schema and its rules for publishers, as the linter has them."""
    shutil.copy(REGISTRY, tmp_path)
    lint = [str(BIN / "skillsaw"), "lint", "--strict", "--no-plugins", "--no-custom-rules", "--type=mcp-registry"]
    done = subprocess.run([*lint, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr

    broken = json.loads(REGISTRY.read_text()) | {"description": "x" * 101}
    (tmp_path / REGISTRY.name).write_text(json.dumps(broken))
    done = subprocess.run([*lint, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "description" in done.stdout


def test_the_registrys_entry_is_of_the_newest_schema_and_this_package(project: dict[str, Any]) -> None:
    server = json.loads(REGISTRY.read_text())
    assert server["$schema"] == import_module("skillsaw.formats.mcp_registry").MCP_REGISTRY_SCHEMA_ID
    [package] = server["packages"]
    assert (package["registryType"], package["identifier"]) == ("pypi", project["name"])
    assert package["packageArguments"] == [{"type": "positional", "value": "serve"}]


def test_the_registry_can_tell_that_package_and_entry_are_of_one_owner() -> None:
    """It looks for the server's name in the package's description, which is README.md."""
    name = json.loads(REGISTRY.read_text())["name"]
    assert re.findall(r"<!-- mcp-name: (\S+) -->", README.read_text()) == [name]


def test_secrets_are_marked_as_such() -> None:
    [package] = json.loads(REGISTRY.read_text())["packages"]
    marked = {variable["name"] for variable in package["environmentVariables"] if variable.get("isSecret")}
    assert marked >= {"R2_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    assert not marked & {"SANDPOINT_STORE", "SANDPOINT_ALLOWED_DIRS", "SANDPOINT_DEBUG"}
