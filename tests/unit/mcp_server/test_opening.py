import pytest

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.opening import who_confirms
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
