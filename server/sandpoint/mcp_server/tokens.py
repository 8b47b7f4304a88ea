"""Tokens that the person who runs a server has made: who has one may come in."""

import hashlib
import hmac
import logging
import os
import re
import stat
from dataclasses import dataclass
from typing import Literal

from mcp.server.auth.provider import AccessToken
from pydantic import SecretStr

from sandpoint.errors import InvalidBackupConfigError

logger = logging.getLogger(__name__)

READ = "sandpoint:read"
WRITE = "sandpoint:write"
SCOPES = (READ, WRITE)

MIN_LENGTH = 16
"""Characters of a token: what is shorter can be guessed."""

MAX_FILE_BYTES = 1 << 20

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAKE_ONE = """python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"""


@dataclass(frozen=True)
class _Known:
    digest: bytes
    name: str
    scopes: tuple[str, ...]


class StaticTokens:
    """Tokens of a file, which is read again when it changes, and one of the environment."""

    def __init__(self, token: SecretStr | None, path: str | None) -> None:
        """Read the file.

        Raises:
            InvalidBackupConfigError: It cannot be read, holds no token, or one that is too short. No token is told.
        """
        self._path = path
        self._single = () if token is None else (_known(token.get_secret_value(), "token", SCOPES, "the token"),)
        self._listed: tuple[_Known, ...] = ()
        self._seen: tuple[int, ...] | None = None
        if path is not None:
            self._listed, self._seen = _read(path), _state(path)

    def find(self, token: str) -> AccessToken | None:
        """Return whose token it is; None if it is nobody's. Takes as long for any."""
        self._read_again()
        digest = _digest(token)
        found: _Known | None = None
        for known in (*self._single, *self._listed):
            if hmac.compare_digest(known.digest, digest):
                found = known
        if found is None:
            return None
        return AccessToken(token="", client_id=found.name, scopes=[*found.scopes])

    def _read_again(self) -> None:
        if self._path is None:
            return
        try:
            seen = _state(self._path)
            if seen != self._seen:
                self._seen, self._listed = seen, ()
                self._listed = _read(self._path)
                logger.info("the tokens were read again")
        except (OSError, InvalidBackupConfigError) as error:
            if self._listed or self._seen is not None:
                logger.error("no token of the file is accepted until it is put right: %s", error)  # noqa: TRY400
            self._listed, self._seen = (), self._seen if isinstance(error, InvalidBackupConfigError) else None


def _state(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: str) -> tuple[_Known, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o044:
                logger.warning("SANDPOINT_HTTP_TOKENS_FILE: others can read %s; chmod 600 it", path)
            lines = file.read(MAX_FILE_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidBackupConfigError(f"SANDPOINT_HTTP_TOKENS_FILE: {path} cannot be read: {why}") from None
    known = tuple(
        _parse(line.split(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not known:
        raise InvalidBackupConfigError(f"SANDPOINT_HTTP_TOKENS_FILE: {path} holds no token; make one with: {_MAKE_ONE}")
    if len({each.name for each in known}) < len(known):
        raise InvalidBackupConfigError(f"SANDPOINT_HTTP_TOKENS_FILE: {path} has a name twice; names tell clients apart")
    return known


def _parse(words: list[str], where: str) -> _Known:
    token, *rest = words
    access: Literal["read", "write"] = "write"
    if rest and rest[-1] in {"read", "write"}:
        access = "read" if rest.pop() == "read" else "write"
    if len(rest) > 1 or (rest and not _NAME.fullmatch(rest[0])):
        raise InvalidBackupConfigError(
            f"SANDPOINT_HTTP_TOKENS_FILE: {where}: write a token, then if wanted a name and 'read' or 'write'"
        )
    name = rest[0] if rest else f"token-{_digest(token).hex()[:8]}"
    return _known(token, name, SCOPES if access == "write" else (READ,), f"SANDPOINT_HTTP_TOKENS_FILE: {where}")


def _known(token: str, name: str, scopes: tuple[str, ...], where: str) -> _Known:
    if len(token) < MIN_LENGTH or not _TOKEN.fullmatch(token):
        raise InvalidBackupConfigError(
            f"{where}: a token has at least {MIN_LENGTH} letters, digits and -._~+/ only; make one with: {_MAKE_ONE}"
        )
    return _Known(_digest(token), name, scopes)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
