"""Environment and defaults, in one place.

Read by hand and not with pydantic-settings, whose import alone takes longer than `sandpoint list`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.models import Compression, KeepRules, describe_invalid

PREFIX = "SANDPOINT_"

LOCAL = "local"
"""The sandbox that is this machine."""

DOCKER_PREFIX = "docker:"
"""Of the names of sandboxes that are containers."""

MAX_SANDBOX_NAME = 256


class R2Settings(BaseModel):
    """Cloudflare R2, by the names that its users already set; which of them are missing says who opens the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account_id: str | None = None
    """`CLOUDFLARE_ACCOUNT_ID`."""

    access_key_id: SecretStr | None = None
    """`R2_ACCESS_KEY_ID`."""

    secret_access_key: SecretStr | None = None
    """`R2_SECRET_ACCESS_KEY`."""

    bucket: str | None = None
    """`BACKUP_BUCKET_NAME`: of a store that names none."""


R2_VARIABLES = {
    "account_id": "CLOUDFLARE_ACCOUNT_ID",
    "access_key_id": "R2_ACCESS_KEY_ID",
    "secret_access_key": "R2_SECRET_ACCESS_KEY",
    "bucket": "BACKUP_BUCKET_NAME",
}


class Settings(BaseModel):
    """Where backups are kept, of what, and by which rules; each field is the variable `SANDPOINT_<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    store: str = Field(default_factory=lambda: Path(platformdirs.user_data_dir("sandpoint"), "store").as_uri())
    """`file:///path`, or `s3://bucket/prefix`."""

    s3_endpoint_url: str | None = None
    """Of a server that speaks S3; None leaves it to AWS's own settings, as region and credentials."""

    s3_direct: bool = False
    """Files go through the server, for sandboxes that cannot reach the bucket."""

    r2: R2Settings | None = None
    """Cloudflare R2; not from `SANDPOINT_R2`."""

    sandbox: str = "local"
    """`local`, or `docker:` and a container's name, id, or `label=KEY=VALUE`."""

    sandboxes: tuple[str, ...] | None = None
    """Those that clients of a server may name, as shell patterns over whole names, separated by commas:
    `docker:agent-*,docker:web`. A container counts by its name, however it was asked for. None: they may name none."""

    docker_way: Literal["auto", "direct", "helper", "archive"] = "auto"
    """The way into containers; `auto` is the first of these that is open."""

    docker_helper_image: str = "sandpoint-helper"
    """Of the containers that the helper way starts beside those that it works in: with a tag, just that image; without
    one, an image that is built from this installation where it is missing."""

    docker_helper_base: str = ""
    """The image that the helper's is built upon: with Python 3.11 or later. Empty: the `slim` one of Docker's for this
    Python."""

    docker_helper_idle: Annotated[int, Field(ge=1)] = 600
    """Seconds that a helper waits for another operation before it ends."""

    confirm: Literal["auto", "never"] = "auto"
    """Whether an MCP client's user is asked before a tool changes files or deletes a backup: wherever the client can
    ask, or never. The person who sets up the server says so; a model cannot."""

    log_format: Literal["plain", "json"] | None = None
    """Of what a server writes to stderr. None: plain on stdio, where a person reads it in a client's log; JSON lines
    over HTTP."""

    log_level: Literal["debug", "info", "warning", "error"] | None = None
    """What a server writes to stderr at least. None: warnings on stdio; over HTTP also each request."""

    allowed_dirs: tuple[str, ...] | None = None
    """Directories that may be backed up or restored, `:`-separated; None leaves it to the door. Where they are of this
    machine only, links in them are followed once, here."""

    state_dir: str = Field(default_factory=lambda: platformdirs.user_state_dir("sandpoint"))
    """Queue, staging, overlays' upper layers, and notes of checked layers. On a filesystem that can hold an
    overlay's upper layer (not itself an overlay), best the one that the directories are on."""

    cache_bytes: Annotated[int, Field(ge=0)] = 10 << 30
    """What the state directory keeps of a remote store's files, between operations."""

    compression: Compression = "zstd"
    """Of new layers."""

    chain_layers: Annotated[int, Field(ge=1, le=500)] = 16
    """Layers that a backup may consist of: where one more would be needed, the newest are written anew as one."""

    chain_hours: Annotated[float, Field(gt=0)] = 24.0
    """Age of a full layer that deltas may still be built on."""

    chain_share: Annotated[float, Field(gt=0)] = 0.5
    """Size of all deltas together, as a share of the full layer's."""

    prune_every: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Hours between the prunes of a server, the first at its start; None: it does not prune."""

    keep: KeepRules = KeepRules()
    """What a server's prunes keep of each directory, as `last=5,hourly=24,daily=7,weekly=4,name=release-*`: `name` as
    often as needed, its pattern without commas. Without it only expired backups go."""

    @field_validator("keep", mode="before")
    @classmethod
    def _parse_keep(cls, value: object) -> object:
        return _parse_rules(value) if isinstance(value, str) else value

    @field_validator("allowed_dirs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("sandbox")
    @classmethod
    def _check_sandbox(cls, value: str) -> str:
        return check_sandbox_name(value)

    @field_validator("sandboxes", mode="before")
    @classmethod
    def _split_patterns(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("sandboxes")
    @classmethod
    def _check_patterns(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(map(check_sandbox_name, value))

    @field_validator("allowed_dirs")
    @classmethod
    def _resolve_all(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        # In a container the links of this machine mean nothing.
        is_local = info.data.get("sandbox") == LOCAL and not info.data.get("sandboxes")
        return None if value is None else tuple(resolve(path) if is_local else normal(path) for path in value)

    @field_validator("state_dir")
    @classmethod
    def _resolve(cls, value: str) -> str:
        return resolve(value)


def _read_r2(environment: Mapping[str, str]) -> R2Settings | None:
    found = {name: environment.get(variable) or None for name, variable in R2_VARIABLES.items()}
    if environment.get(f"{PREFIX}S3_ENDPOINT_URL") or not (found["access_key_id"] or found["secret_access_key"]):
        return None
    return R2Settings.model_validate(found)


def _parse_rules(text: str) -> dict[str, object]:
    rules: dict[str, object] = {}
    names: list[str] = []
    for part in text.split(","):
        word, _, value = (each.strip() for each in part.partition("="))
        field = f"keep_{word}"
        if word == "name":
            names.append(value)
        elif field in KeepRules.model_fields and field not in rules and value.isascii() and value.isdigit():
            rules[field] = int(value)
        else:
            raise ValueError(
                f"{part!r} is no rule, or the second of its kind; write last=N, hourly=N, daily=N, weekly=N and "
                "name=PATTERN, separated by commas"
            )
    return rules | {"keep_names": names}


def check_sandbox_name(value: str) -> str:
    """Return what may be the name of a sandbox, or a pattern of such.

    Raises:
        ValueError: It can be none; the message says why.
    """
    if len(value) > MAX_SANDBOX_NAME:
        raise ValueError(f"the name of a sandbox has at most {MAX_SANDBOX_NAME} characters, this one has {len(value)}")
    if not value.isprintable():
        raise ValueError(f"{value!r} holds control characters; use 'local', or 'docker:NAME'")
    if value != LOCAL and (not value.startswith(DOCKER_PREFIX) or value == DOCKER_PREFIX):
        raise ValueError(f"{value!r} is unknown; use 'local', or 'docker:NAME' for a directory in a container")
    return value


def resolve(path: str) -> str:
    """Return where a configured path really is: directories are opened without following links.

    Raises:
        ValueError: It is relative.
    """
    return os.path.realpath(_absolute(path))


def normal(path: str) -> str:
    """Return an absolute path without `..` and the like; its links are not looked at.

    Raises:
        ValueError: It is relative.
    """
    return "/" + os.path.normpath(_absolute(path)).lstrip("/")


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is relative, and must be an absolute path")
    return path


def read_settings(environment: Mapping[str, str] = os.environ, **overrides: object) -> Settings:
    """Read the environment; overrides that are not None win, empty variables count as unset.

    Raises:
        InvalidBackupConfigError: A value does not meet its rule; the message names it.
    """
    values: dict[str, object] = {
        name: environment[PREFIX + name.upper()]
        for name in Settings.model_fields
        if name != "r2" and environment.get(PREFIX + name.upper())
    }
    values["r2"] = _read_r2(environment)
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InvalidBackupConfigError(f"settings ({PREFIX}...): {describe_invalid(error)}") from None
