"""The settings of serving over HTTP, and hosts in URLs and headers."""

import pytest

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.hosts import HostPort, is_loopback, parse_host
from sandpoint.mcp_server.http_settings import read_http_settings


def test_what_is_given_wins_over_the_environment() -> None:
    settings = read_http_settings({"SANDPOINT_HTTP_PORT": "1", "SANDPOINT_HTTP_HOST": ""}, port=2, host=None)
    assert (settings.host, settings.port) == ("127.0.0.1", 2)


def test_a_token_is_never_shown() -> None:
    settings = read_http_settings({"SANDPOINT_HTTP_TOKEN": "hunter2"})
    assert settings.needs_login
    assert "hunter2" not in repr(settings)
    with pytest.raises(InvalidBackupConfigError) as error:
        read_http_settings({"SANDPOINT_HTTP_TOKEN": "hunter2", "SANDPOINT_HTTP_PORT": "no"})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PORT", "65536", "port"),
        ("ALLOWED_HOSTS", "a b", "is no host"),
        ("ALLOWED_HOSTS", "*", "is no host"),
        ("ALLOWED_ORIGINS", "example.com", "is no origin"),
        ("ALLOWED_ORIGINS", "https://example.com/", "is no origin"),
        ("ALLOWED_ORIGINS", "null", "is no origin"),
        ("URL", "ftp://example.com/mcp", "https://host/path"),
        ("URL", "https://example.com", "must end in /mcp"),
        ("URL", "https://user:hunter2@example.com/mcp", "no login"),
        ("ISSUER", "http://example.com", "https"),
        ("ISSUER", "https://example.com?x=hunter2", "https://host/path"),
        ("AUDIENCE", "x", "SANDPOINT_HTTP_ISSUER"),
        ("GRACE", "-1", "grace"),
        ("QUEUE", "inf", "queue"),
        ("OPERATIONS", "0", "operations"),
    ],
)
def test_a_setting_that_is_wrong_is_named(name: str, value: str, told: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=told):
        read_http_settings({f"SANDPOINT_HTTP_{name}": value})


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.COM:80", HostPort("example.com", 80)),
        ("example.com.", HostPort("example.com", None)),
        ("[::1]:80", HostPort("::1", 80)),
        ("[0:0:0::1]", HostPort("::1", None)),
        ("[::ffff:127.0.0.1]", HostPort("127.0.0.1", None)),
        ("127.0.0.1", HostPort("127.0.0.1", None)),
        ("::1", None),
        ("[::1", None),
        ("[::g]", None),
        ("a:65536", None),
        ("a:٣", None),
        ("a b", None),
        ("a@b", None),
        ("-a", None),
        ("", None),
    ],
)
def test_a_host_has_one_form(text: str, host: HostPort | None) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.com", False),
        ("127.1", False),
        ("2130706433", False),
    ],
)
def test_what_is_this_machine(name: str, local: bool) -> None:
    assert is_loopback(name) is local
