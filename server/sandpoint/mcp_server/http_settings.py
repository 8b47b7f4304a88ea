"""The settings of serving over HTTP, read only there: on stdio none of them can be wrong."""

import os
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.hosts import HostPort, is_loopback, parse_host
from sandpoint.models import describe_invalid
from sandpoint.settings import PREFIX

HTTP_PREFIX = f"{PREFIX}HTTP_"

MCP_PATH = "/mcp"
"""Where the server answers."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HttpSettings(BaseModel):
    """Where to listen, whom to let in, and how much of it; each field is the variable `SANDPOINT_HTTP_<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address or name to listen on. Beyond this machine only with tokens or an issuer."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8484
    """0: any that is free."""

    socket: str | None = None
    """Path of a Unix socket to listen on, instead of an address; only its owner can connect."""

    url: str | None = None
    """What clients call the server, as `https://backups.example.com/mcp`: where a proxy is in front. It is also what
    tokens of the issuer must be for. None: `http://HOST:PORT/mcp`."""

    token: SecretStr | None = None
    """A token that lets a client in. Better a file."""

    tokens_file: str | None = None
    """A file with a token a line, and after it, if wanted, a name for the log and `read`: that client may only look.
    It is read again when it changes."""

    issuer: str | None = None
    """URL of an OAuth authorisation server whose tokens (JWT) let clients in."""

    audience: str | None = None
    """What tokens of the issuer must be for, where that is not `url`."""

    jwks_url: str | None = None
    """Where the issuer's keys are, where its metadata do not say."""

    allowed_hosts: tuple[str, ...] = ()
    """Other names that clients reach the server by, as `backups.example.com` or `box:8484`, separated by commas."""

    allowed_origins: tuple[str, ...] = ()
    """Web pages of other servers that may call this one, as `https://tools.example.com`, separated by commas."""

    max_body: Annotated[int, Field(ge=1024)] = 1 << 20
    """Bytes of a request."""

    sessions: Annotated[int, Field(ge=1)] = 1000
    """Sessions that are open at once."""

    session_idle: Seconds = 1800.0
    """Seconds after which a session that nobody uses is closed."""

    connections: Annotated[int, Field(ge=1)] = 500
    """Connections that are open at once."""

    operations: Annotated[int, Field(ge=1)] = 8
    """Operations that run at once, listing apart."""

    queue: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 50.0
    """Seconds that an operation waits for others to end, before the client is told to try again; many clients give up
    after 60."""

    receive: Seconds = 30.0
    """Seconds that a client has for sending a request."""

    grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds that operations have to finish when the server is told to stop."""

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if parse_host(host) is None:
                raise ValueError(f"{host!r} is no host; write a name or an address, and if need be a port: box:8484")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in {"http", "https"} or parse_host(parts.netloc) is None or parts.path:
                raise ValueError(f"{origin!r} is no origin; write https://host or http://host:port, without a path")
        return tuple(map(str.lower, value))

    @field_validator("url", "issuer", "jwks_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        host = parse_host(parts.netloc)
        if parts.scheme not in {"http", "https"} or host is None or parts.query or parts.fragment:
            raise ValueError("it may hold a scheme, a host, a port and a path only; write https://host/path")
        return value

    @field_validator("issuer", "jwks_url")
    @classmethod
    def _check_secure(cls, value: str | None) -> str | None:
        if value is not None and not is_secure(value):
            raise ValueError("keys must come over https, unless the issuer is on this machine")
        return value

    @field_validator("url")
    @classmethod
    def _check_path(cls, value: str | None) -> str | None:
        if value is not None and not urlsplit(value).path.endswith(MCP_PATH):
            raise ValueError(f"it must end in {MCP_PATH}, as in https://host{MCP_PATH}")
        return value

    @field_validator("audience", "jwks_url")
    @classmethod
    def _check_issuer(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("issuer", "") is None:
            raise ValueError("this is of tokens of an issuer; set SANDPOINT_HTTP_ISSUER too")
        return value

    @property
    def needs_login(self) -> bool:
        """Whether clients must show a token."""
        return self.token is not None or self.tokens_file is not None or self.issuer is not None

    @property
    def public_host(self) -> HostPort | None:
        """The host in `url`, where that is set."""
        return None if self.url is None else parse_host(urlsplit(self.url).netloc)


def is_secure(url: str) -> bool:
    """Whether what comes from a URL cannot be altered on its way."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def read_http_settings(environment: Mapping[str, str] = os.environ, **overrides: object) -> HttpSettings:
    """Read the environment; overrides that are not None win, empty variables count as unset.

    Raises:
        InvalidBackupConfigError: A value does not meet its rule; the message names it, and no secret.
    """
    values: dict[str, object] = {
        name: environment[HTTP_PREFIX + name.upper()]
        for name in HttpSettings.model_fields
        if environment.get(HTTP_PREFIX + name.upper())
    }
    values |= {name: value for name, value in overrides.items() if value is not None}
    for name in ("url", "issuer", "jwks_url"):
        if "@" in str(values.get(name, "")):  # not shown: there may be a password in it
            raise InvalidBackupConfigError(f"{HTTP_PREFIX}{name.upper()}: a URL may hold no login here; leave it out")
    try:
        return HttpSettings.model_validate(values)
    except ValidationError as error:
        raise InvalidBackupConfigError(f"settings ({HTTP_PREFIX}...): {describe_invalid(error)}") from None
