"""Tokens of a file: which lines are good, and that no message tells one."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.tokens import StaticTokens

TOKEN = "good-0123456789abcdef"


def write(tmp_path: Path, content: str, *, mode: int = 0o600) -> str:
    path = tmp_path / "tokens"
    path.write_text(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("line", "name", "scopes"),
    [
        (TOKEN, "token-", ["sandpoint:read", "sandpoint:write"]),
        (f"{TOKEN} ann", "ann", ["sandpoint:read", "sandpoint:write"]),
        (f"\t{TOKEN}  ann@box  write ", "ann@box", ["sandpoint:read", "sandpoint:write"]),
        (f"{TOKEN} ann read", "ann", ["sandpoint:read"]),
        (f"{TOKEN} read", "token-", ["sandpoint:read"]),
    ],
)
def test_a_line_says_who_may_do_what(tmp_path: Path, line: str, name: str, scopes: list[str]) -> None:
    tokens = StaticTokens(None, write(tmp_path, f"# a comment\n\n{line}\nanother-0123456789abcdef bob\n"))
    found = tokens.find(TOKEN)
    assert found is not None
    assert found.scopes == scopes
    assert found.token == ""
    assert found.client_id.startswith(name)
    assert tokens.find(TOKEN[:-1]) is None
    assert tokens.find("") is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no token"),
        ("# only\n", "holds no token"),
        ("secret-short", "at least 16"),
        ("secret-0123456789-ü", "at least 16"),
        ("secret-0123456789abcdef a b c", "line 1"),
        ("\nsecret-0123456789abcdef in/valid", "line 2"),
        ("secret-0123456789abcdef ann\nsecret-0123456789abcdee ann", "a name twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_without_its_tokens(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=told) as error:
        StaticTokens(None, write(tmp_path, content))
    assert "secret-" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidBackupConfigError, match="cannot be read: No such file"):
        StaticTokens(None, str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidBackupConfigError, match="it is not text"):
        StaticTokens(None, str(tmp_path / "bytes"))


def test_a_token_of_the_environment_is_checked_too() -> None:
    assert StaticTokens(SecretStr(TOKEN), None).find(TOKEN) is not None
    with pytest.raises(InvalidBackupConfigError) as error:
        StaticTokens(SecretStr("hunter2"), None)
    assert "hunter2" not in str(error.value)


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    StaticTokens(None, write(tmp_path, TOKEN, mode=0o644))
    assert "others can read" in caplog.text
    assert TOKEN not in caplog.text
