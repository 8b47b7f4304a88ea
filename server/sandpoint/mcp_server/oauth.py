"""Tokens of an OAuth authorisation server: JWTs, checked by the keys that it publishes."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import jwt
import urllib3
from anyio.to_thread import run_sync
from mcp.server.auth.provider import AccessToken

from sandpoint.mcp_server.http_settings import is_secure
from sandpoint.mcp_server.login import IssuerUnavailableError
from sandpoint.mcp_server.tokens import READ, SCOPES, WRITE

logger = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""All with a pair of keys: whoever can read ours cannot make a token."""

KEYS_S = 300.0
"""How long keys are used without asking for them again."""

COOLDOWN_S = 10.0
"""The least time between two questions to the issuer, whatever tokens come in."""

STALE_S = 24 * 3600.0
"""How long keys are used while the issuer does not answer."""

FETCH_S = 5.0
MAX_ANSWER_BYTES = 1 << 18
LEEWAY_S = 10
"""How far the issuer's clock may be from ours."""

_KEY_TYPES = {"RSA", "EC", "OKP"}
_TYPES = {None, "jwt", "at+jwt", "application/at+jwt"}


@dataclass(frozen=True)
class _Key:
    id: str | None
    algorithm: str | None
    key: Any


class IssuerKeys:
    """The keys of an issuer: fetched when needed, kept, and fetched again when a token names another."""

    def __init__(
        self, issuer: str, jwks_url: str | None = None, *, fresh_s: float = KEYS_S, cooldown_s: float = COOLDOWN_S
    ) -> None:
        """Nothing is fetched yet."""
        self._fresh_s = fresh_s
        self._cooldown_s = cooldown_s
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._keys: tuple[_Key, ...] = ()
        self._fetched = self._tried = -STALE_S
        self._lock = anyio.Lock()

    async def find(self, key_id: str | None) -> _Key | None:
        """Return a key; of a token that names none, the only one there is. None if there is no such.

        Raises:
            IssuerUnavailableError: There are no keys.
        """
        found = self._pick(key_id)
        if found is not None and time.monotonic() - self._fetched < self._fresh_s:
            return found
        async with self._lock:
            now = time.monotonic()
            if now - self._fetched >= self._fresh_s or self._pick(key_id) is None:
                await self._refresh(now)
        return self._pick(key_id)

    def _pick(self, key_id: str | None) -> _Key | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.id == key_id), None)

    async def _refresh(self, now: float) -> None:
        if now - self._tried >= self._cooldown_s:
            self._tried = now
            try:
                self._keys = await run_sync(self._fetch)
                self._fetched = now
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                logger.warning("the keys of %s cannot be fetched: %s", self._issuer, error)
        if now - self._fetched >= STALE_S:
            self._keys = ()
        if not self._keys:
            raise IssuerUnavailableError

    def _fetch(self) -> tuple[_Key, ...]:
        if self._jwks_url is None:
            self._jwks_url = self._discover()
        answer = _get(self._jwks_url)
        raw = answer.get("keys")
        keys = [_parse(each) for each in raw if isinstance(each, dict)] if isinstance(raw, list) else []
        usable = tuple(key for key in keys if key is not None)
        if not usable:
            raise ValueError(f"{self._jwks_url} holds no key that could be used")
        return usable

    def _discover(self) -> str:
        """Return where the keys are, as RFC 8414 or OpenID Connect has it."""
        parts = urlsplit(self._issuer)
        path = parts.path.rstrip("/")
        origin = f"{parts.scheme}://{parts.netloc}"
        problem: Exception | None = None
        for url in (
            f"{origin}/.well-known/oauth-authorization-server{path}",
            f"{origin}{path}/.well-known/openid-configuration",
        ):
            try:
                metadata = _get(url)
            except ValueError as error:
                problem = error
                continue
            jwks_url = metadata.get("jwks_uri")
            if metadata.get("issuer") == self._issuer and isinstance(jwks_url, str) and is_secure(jwks_url):
                return jwks_url
            problem = ValueError(f"{url} is not of this issuer, or names no keys that come over https")
        raise problem or ValueError("there is no metadata")


def _get(url: str) -> dict[str, Any]:
    timeout = urllib3.Timeout(total=FETCH_S)
    with urllib3.PoolManager() as pool:
        answer = pool.request(
            "GET", url, headers={"Accept": "application/json"}, redirect=False, retries=False, timeout=timeout,
            preload_content=False,
        )  # fmt: skip
        content = answer.read(MAX_ANSWER_BYTES)
        answer.close()
    if answer.status != 200:
        raise ValueError(f"{url} answered {answer.status}")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"{url} answered no object")  # noqa: TRY004 - what came is at fault, not the caller
    return found


def _parse(raw: Mapping[str, Any]) -> _Key | None:
    if raw.get("kty") not in _KEY_TYPES or raw.get("use", "sig") != "sig":
        return None
    try:
        parsed = jwt.PyJWK(dict(raw))
    except jwt.PyJWTError:
        return None
    key_id, algorithm = raw.get("kid"), raw.get("alg")
    return _Key(key_id if isinstance(key_id, str) else None, algorithm, parsed.key)


class IssuedTokens:
    """Checks tokens of an issuer."""

    def __init__(self, keys: IssuerKeys, *, issuer: str, audience: str) -> None:
        """Take where keys come from, and what tokens must say.

        Args:
            keys: Of the issuer.
            issuer: Who must have made them.
            audience: Whom they must be for.
        """
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def find(self, token: str) -> AccessToken | None:
        """Return whose token it is, and what it lets its holder do; None if it is not good.

        Raises:
            IssuerUnavailableError: Nobody can tell.
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS or str(header.get("typ") or "jwt").lower() not in _TYPES:
                return None
            key = await self._keys.find(header.get("kid"))
            if key is None or key.algorithm not in {None, header["alg"]}:
                return None
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            logger.info("a token was refused: %s", type(error).__name__)
            return None
        return _access(claims, self._audience)


def _access(claims: Mapping[str, Any], audience: str) -> AccessToken | None:
    subject = claims.get("sub")
    client = claims.get("client_id") or claims.get("azp") or subject
    if not isinstance(client, str) or not client:
        return None
    return AccessToken(
        token="",
        client_id=client,
        scopes=_scopes(claims),
        expires_at=int(claims["exp"]) + LEEWAY_S,
        resource=audience,
        subject=subject if isinstance(subject, str) else None,
        claims={"iss": claims["iss"]},
    )


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    given = claims.get("scope", claims.get("scp", ""))
    words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    if WRITE in words:
        return [*SCOPES]
    return [READ] if READ in words else []
