"""Tokens of an issuer: which are good, and what is done where its keys change or cannot be had."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.issuer import Issuer
from sandpoint.mcp_server.login import IssuerUnavailableError
from sandpoint.mcp_server.oauth import IssuedTokens, IssuerKeys

pytestmark = pytest.mark.anyio

URL = "https://backups.example.com/mcp"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        issuer.add_key()
        yield issuer


@pytest.fixture
def tokens(issuer: Issuer) -> IssuedTokens:
    return IssuedTokens(IssuerKeys(issuer.url), issuer=issuer.url, audience=URL)


async def test_a_token_says_who_may_do_what(issuer: Issuer, tokens: IssuedTokens) -> None:
    found = await tokens.find(issuer.token(URL))
    assert found is not None
    assert (found.client_id, found.subject, found.scopes) == ("client", "user", ["sandpoint:read", "sandpoint:write"])
    assert found.claims == {"iss": issuer.url}
    assert found.token == ""


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "sandpoint:read"}, ["sandpoint:read"]),
        ({"scope": "sandpoint:write"}, ["sandpoint:read", "sandpoint:write"]),
        ({"scope": None, "scp": ["other", "sandpoint:read"]}, ["sandpoint:read"]),
        ({"scope": "sandpoint:readall xsandpoint:write"}, []),
        ({"scope": None}, []),
        ({"scope": {"sandpoint:write": 1}}, []),
    ],
)
async def test_scopes_are_whole_words(
    issuer: Issuer, tokens: IssuedTokens, claims: dict[str, Any], scopes: list[str]
) -> None:
    found = await tokens.find(issuer.token(URL, **claims))
    assert found is not None
    assert found.scopes == scopes


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://elsewhere.example.com/mcp"},
        {"aud": None},
        {"aud": []},
        {"iss": "https://elsewhere.example.com"},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "never"},
        {"nbf": 1 << 40},
        {"iat": 1 << 40},
        {"sub": None, "client_id": None},
    ],
)
async def test_a_token_that_is_not_for_us_or_over_is_refused(
    issuer: Issuer, tokens: IssuedTokens, claims: dict[str, Any]
) -> None:
    assert await tokens.find(issuer.token(URL, **claims)) is None


def encode(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(issuer: Issuer, algorithm: str) -> str:
    claims = {"iss": issuer.url, "aud": URL, "sub": "user", "exp": int(time.time()) + 60, "scope": "sandpoint:write"}
    return f"{encode({'alg': algorithm, 'kid': 'one'})}.{encode(claims)}"


def signed_with_public_key(issuer: Issuer) -> str:
    said = unsigned(issuer, "HS256")
    mac = hmac.new(issuer.public_pem(), said.encode(), hashlib.sha256).digest()
    return f"{said}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def of_another_key(issuer: Issuer) -> str:
    issuer.add_key("secret", publish=False)
    return issuer.token(URL, key_id="secret", headers={"kid": "one"})


FORGED: dict[str, Callable[[Issuer], str]] = {
    "no signature": lambda issuer: unsigned(issuer, "none") + ".",
    "no signature, oddly written": lambda issuer: unsigned(issuer, "nOnE") + ".",
    "claims a good algorithm, has no signature": lambda issuer: unsigned(issuer, "RS256") + ".",
    "signed with the public key as a secret": signed_with_public_key,
    "of a key that is not the issuer's": of_another_key,
    "names a key elsewhere": lambda issuer: issuer.token(URL, headers={"kid": "two", "jku": f"{issuer.url}/keys"}),
    "asks for what is not known": lambda issuer: issuer.token(URL, headers={"crit": ["x"], "x": 1}),
    "of another type": lambda issuer: issuer.token(URL, headers={"typ": "logout+jwt"}),
    "changed": lambda issuer: issuer.token(URL)[:-8] + "AAAAAAAA",
    "no JWT": lambda _: "x" * 40,
    "deeply nested": lambda _: base64.urlsafe_b64encode(b"[" * 6000).decode() + ".e30.AA",
}


@pytest.mark.parametrize("kind", FORGED)
async def test_a_forged_token_is_refused(issuer: Issuer, tokens: IssuedTokens, kind: str) -> None:
    assert await tokens.find(FORGED[kind](issuer)) is None


async def test_a_key_is_used_with_its_own_algorithm_only(issuer: Issuer, tokens: IssuedTokens) -> None:
    issuer.published[0]["alg"] = "RS512"
    assert await tokens.find(issuer.token(URL, algorithm="RS256")) is None
    assert await tokens.find(issuer.token(URL, algorithm="RS512")) is not None


async def test_keys_of_other_uses_are_not_used(issuer: Issuer) -> None:
    issuer.published[0]["use"] = "enc"
    issuer.published.append({"kty": "oct", "kid": "oct", "k": "c2VjcmV0"})
    issuer.add_key("two", kind="EC")
    tokens = IssuedTokens(IssuerKeys(issuer.url), issuer=issuer.url, audience=URL)
    assert await tokens.find(issuer.token(URL)) is None
    assert await tokens.find(issuer.token(URL, key_id="two", algorithm="ES256")) is not None


async def test_keys_are_asked_for_once(issuer: Issuer, tokens: IssuedTokens) -> None:
    for _ in range(3):
        assert await tokens.find(issuer.token(URL)) is not None
    assert issuer.asked["/tenant/keys"] == 1


async def test_a_new_key_is_fetched_when_a_token_names_it(issuer: Issuer) -> None:
    tokens = IssuedTokens(IssuerKeys(issuer.url, cooldown_s=0), issuer=issuer.url, audience=URL)
    assert await tokens.find(issuer.token(URL)) is not None
    issuer.published.clear()
    issuer.add_key("two")
    assert await tokens.find(issuer.token(URL, key_id="two")) is not None
    assert await tokens.find(issuer.token(URL)) is None, "its key was withdrawn"


async def test_unknown_keys_do_not_make_us_ask_again_and_again(issuer: Issuer, tokens: IssuedTokens) -> None:
    assert await tokens.find(issuer.token(URL)) is not None
    for number in range(20):
        assert await tokens.find(issuer.token(URL, headers={"kid": f"made up {number}"})) is None
    assert issuer.asked["/tenant/keys"] == 1


async def test_an_issuer_that_is_down_refuses_nobody_whose_key_is_known(issuer: Issuer) -> None:
    keys = IssuerKeys(issuer.url, cooldown_s=0, fresh_s=0)
    tokens = IssuedTokens(keys, issuer=issuer.url, audience=URL)
    assert await tokens.find(issuer.token(URL)) is not None
    issuer.is_down = True
    assert await tokens.find(issuer.token(URL)) is not None
    assert issuer.asked["/tenant/keys"] == 2


async def test_without_keys_nobody_can_tell(issuer: Issuer, tokens: IssuedTokens) -> None:
    issuer.is_down = True
    with pytest.raises(IssuerUnavailableError):
        await tokens.find(issuer.token(URL))


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://elsewhere.example.com"},
        {"jwks_uri": "http://elsewhere.example.com/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
    ],
)
async def test_metadata_that_are_not_the_issuers_are_not_believed(
    issuer: Issuer, tokens: IssuedTokens, metadata: dict[str, Any]
) -> None:
    issuer.metadata = metadata
    with pytest.raises(IssuerUnavailableError):
        await tokens.find(issuer.token(URL))


async def test_a_named_place_of_the_keys_needs_no_metadata(issuer: Issuer) -> None:
    keys = IssuerKeys(issuer.url, f"{issuer.url}/keys")
    tokens = IssuedTokens(keys, issuer=issuer.url, audience=URL)
    assert await tokens.find(issuer.token(URL)) is not None
    assert issuer.asked == {"/tenant/keys": 1}
