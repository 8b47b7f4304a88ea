from pathlib import Path

import anyio
import pytest

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.opening import open_services, who_confirms
from sandpoint.mcp_server.where import describe_place
from sandpoint.models import Backup
from sandpoint.settings import Settings


@pytest.mark.parametrize("entrypoint", ["sdk-cli", "sdk-py"])
def test_headless_claude_code_is_not_asked_what_it_would_cancel(entrypoint: str) -> None:
    assert who_confirms(Settings(), {"CLAUDE_CODE_ENTRYPOINT": entrypoint}) == "never"


@pytest.mark.parametrize(
    "environment", [None, {}, {"CLAUDE_CODE_ENTRYPOINT": "cli"}, {"CLAUDE_CODE_ENTRYPOINT": "sdk-ts"}]
)
def test_others_are_asked(environment: dict[str, str] | None) -> None:
    assert who_confirms(Settings(), environment) == "auto"
    assert who_confirms(InvalidBackupConfigError("no"), environment) == "auto"
    assert who_confirms(Settings(confirm="never"), environment) == "never"


async def resolved(settings: Settings, directory: str) -> str:
    """Return what a server of such settings, started where this process is, makes of a directory that it is told."""
    services, _where = open_services(settings)
    async with services, services.use() as service:
        return (await service.create(directory)).dir


async def listed(settings: Settings) -> tuple[Backup, ...]:
    services, _where = open_services(settings)
    async with services, services.use_store() as service:
        return (await service.list()).backups


def made(tmp_path: Path) -> Settings:
    return Settings(state_dir=str(tmp_path / "state"), store=f"file://{tmp_path}/store")


@pytest.mark.parametrize("here", ["/", "/tmp", "/home", "/etc", "/usr/lib", "/usr/local", "/proc/self"])
def test_a_server_that_starts_where_the_system_is_may_touch_nothing_that_it_was_not_told(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(here)
    for directory in (str(project), "/etc/apt", "/usr/lib/new"):
        with pytest.raises(InvalidBackupConfigError, match="system; set SANDPOINT_ALLOWED_DIRS"):
            anyio.run(resolved, made(tmp_path), directory)
    with pytest.raises(InvalidBackupConfigError):
        anyio.run(resolved, made(tmp_path), here)
    where = open_services(made(tmp_path))[1]
    assert where.allowed_dirs == ()
    assert "none is allowed" in describe_place(where)
    assert anyio.run(listed, made(tmp_path)) == ()  # what is of the store alone goes on
    told = made(tmp_path).model_copy(update={"allowed_dirs": (str(project),)})
    assert anyio.run(resolved, told, str(project)) == str(project)


def test_a_server_that_starts_in_a_project_may_touch_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    assert open_services(made(tmp_path))[1].allowed_dirs == (str(project),)
    assert anyio.run(resolved, made(tmp_path), str(project)) == str(project)
    with pytest.raises(InvalidBackupConfigError, match="outside the allowed directories"):
        anyio.run(resolved, made(tmp_path), str(tmp_path / "other"))
