import sys
from types import ModuleType

import pytest

from sandpoint.cli import main
from sandpoint.errors import InvalidBackupConfigError, SandboxUnavailableError, SandpointError
from sandpoint.settings import Settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings | SandpointError]:
    """A server that only keeps the settings it was started with."""
    settings: list[Settings | SandpointError] = []
    module = ModuleType("sandpoint.mcp_server")
    module.serve = settings.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sandpoint.mcp_server", module)
    return settings


def test_serve_hands_the_environments_settings_to_the_server(
    served: list[Settings | SandpointError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SANDPOINT_STORE", "file:///backups")
    assert main(["serve", "--transport", "stdio"]) == 0
    (settings,) = served
    assert isinstance(settings, Settings)
    assert settings.store == "file:///backups"
    assert capsys.readouterr() == ("", "")


def test_settings_that_cannot_be_read_are_the_servers_to_tell(
    served: list[Settings | SandpointError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDPOINT_STATE_DIR", "relative")
    assert main(["serve"]) == 0
    assert isinstance(served[0], InvalidBackupConfigError)


@pytest.mark.parametrize(
    ("error", "status"),
    [(SandboxUnavailableError("no tools"), SandboxUnavailableError.exit_status), (KeyboardInterrupt(), 130)],
)
def test_errors_keep_off_the_protocols_stdout(
    error: BaseException,
    status: int,
    served: list[Settings | SandpointError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(settings: Settings) -> None:
        raise error

    monkeypatch.setattr(sys.modules["sandpoint.mcp_server"], "serve", fail)
    assert main(["serve"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
