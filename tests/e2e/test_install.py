"""What is built from this repository can be installed, and serves: a source distribution, a wheel, a bundle."""

import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mcp import StdioServerParameters

from helpers.built import PIP, build, run, serves
from helpers.documents import ROOT

MCPB = ROOT / "tests" / "bundle" / "node_modules"

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel made from it."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("a")
    return project


def own_places(folder: Path) -> dict[str, str]:
    return {"SANDPOINT_STORE": (folder / "store").as_uri(), "SANDPOINT_STATE_DIR": str(folder / "state")}


def test_a_source_distribution_has_what_its_makefile_and_tests_need(built: tuple[Path, Path]) -> None:
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        names = {member.name.removeprefix(f"{top}/") for member in archive if member.isfile()}
    assert names >= {
        *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml"),
        *("server/Dockerfile", "server/helper/Dockerfile", "server/server.json", "server/mcpb/manifest.json"),
        *("server/mcpb/main.py", "tests/bundle/package.json", "tests/conftest.py", "examples/configs/README.md"),
        *("examples/configs/claude-code/.mcp.json", "examples/configs/cursor/.cursor/mcp.json"),
    }
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name]


def test_a_wheel_has_the_packages_and_what_they_read(built: tuple[Path, Path]) -> None:
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    of_source = {
        str(path.relative_to(folder))
        for folder, package in ((ROOT / "server", "sandpoint"), (ROOT / "fixtures", "pytest_sandpoint"))
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == of_source | {"sandpoint/helper/Dockerfile"}


async def test_the_wheel_serves_from_an_environment_of_its_own(
    built: tuple[Path, Path], tmp_path: Path, project: Path
) -> None:
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = str(environment / "bin" / "python")
    run(*PIP, "--python", python, "install", "--no-compile", str(built[1]))
    await serves(
        StdioServerParameters(
            command=str(environment / "bin" / "sandpoint"), args=["serve"], cwd=project, env=own_places(tmp_path)
        ),
        str(project),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as an app unpacks it."""
    folder = tmp_path_factory.mktemp("bundle")
    run("make", "bundle", f"DIST={folder}", f"BUNDLE={folder / 'made'}", cwd=ROOT)
    run("node", str(MCPB / ".bin" / "mcpb"), "unpack", str(folder / "sandpoint.mcpb"), str(folder / "unpacked"))
    return folder / "unpacked"


def expand(bundle: Path, choices: dict[str, Any]) -> dict[str, Any]:
    """Return the command that an app makes of the manifest and what its user chose, by the format's own code."""
    script = """
    const {getMcpConfigForManifest} = await import(process.argv[1]);
    const [manifest, extensionPath, userConfig] = JSON.parse(process.argv[2]);
    const config = await getMcpConfigForManifest({manifest, extensionPath, systemDirs: {}, userConfig});
    console.log(JSON.stringify(config ?? null));
    """
    manifest = json.loads((bundle / "manifest.json").read_text())
    told = json.dumps([manifest, str(bundle), choices])
    module = (MCPB / "@anthropic-ai" / "mcpb" / "dist" / "index.js").as_uri()
    found = json.loads(run("node", "--input-type=module", "-e", script, module, told))
    return found if isinstance(found, dict) else {}


def test_an_app_asks_for_the_directories_before_it_starts_the_bundle(bundle: Path) -> None:
    assert expand(bundle, {}) == {}


async def test_the_bundle_serves_the_directories_that_its_user_chose(
    bundle: Path, tmp_path: Path, project: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    places = own_places(tmp_path)
    config = expand(bundle, {"directories": [str(other), str(project)], "store": places["SANDPOINT_STORE"]})
    assert "${" not in json.dumps(config)
    uv = str(Path(sys.executable).with_name("uv"))
    assert config["command"] == "uv"
    environment = {**os.environ, **config["env"], "SANDPOINT_STATE_DIR": places["SANDPOINT_STATE_DIR"]}
    environment |= {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}
    environment.pop("PYTHONPATH", None)
    run(uv, "sync", "--quiet", "--no-dev", "--directory", str(bundle), env=environment)
    await serves(StdioServerParameters(command=uv, args=config["args"], cwd=tmp_path, env=environment), str(project))
