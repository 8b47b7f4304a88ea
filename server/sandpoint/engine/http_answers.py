"""What the answers of a store mean: whether to try again, and what to say."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from urllib3 import BaseHTTPResponse

from sandpoint.engine.checked import REMEDY
from sandpoint.engine.http_line import LastingError, Line, PassingError
from sandpoint.errors import BackupIntegrityError, StoreUnavailableError

ATTEMPTS = 8
BACKOFF_S = 0.25
BACKOFF_MAX_S = 8.0
"""A wait is a random part of `BACKOFF_S`, doubled with each attempt, and of this at most."""

Result = TypeVar("Result")

_MAX_BODY = 64 << 10
_CODE = re.compile(rb"<Code>([A-Za-z.]{1,64})</Code>")
_EXPIRED_TEXT = re.compile(rb"request has expired", re.IGNORECASE)

_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset({"BadDigest", "RequestTimeout", "IncompleteBody", "InternalError", "SlowDown"})

_EXPIRED = "the grant has expired; try again"
_FULL = "the bucket is full; delete backups and prune, or give it more room, and try again"
_MEANING = {
    "AccessDenied": "the credentials that the grant was made with do not allow it",
    "EntityTooLarge": _FULL,
    "ExpiredToken": _EXPIRED,
    "InsufficientStorage": _FULL,
    "InvalidAccessKeyId": "it does not know the access key that the grant was made with",
    "NoSuchBucket": "the bucket is not there",
    "NoSuchKey": "it is not there",
    "NoSuchUpload": "its upload was given up meanwhile; try again",
    "QuotaExceeded": _FULL,
    "RequestExpired": _EXPIRED,
    "RequestTimeTooSkewed": "the clocks of the store and of the machine that made the grant differ; set them right",
    "SignatureDoesNotMatch": "it refuses the grant's signature: the secret key is wrong, or a proxy alters requests",
    "XMinioStorageFull": _FULL,
}
_AGAIN = frozenset({"ExpiredToken", "NoSuchUpload", "RequestExpired"})
"""Those that a new grant helps against."""

_MEANING_OF_STATUS = {404: "it is not there", 412: "there is such a file already", 507: _FULL}


class MissingError(LastingError):
    """The store has no such file."""


class OtherSizeError(Exception):
    """The store's file has another size; the message says which."""

    def __init__(self, found: str, wanted: int) -> None:
        super().__init__(found)
        self.wanted = wanted


def refusal(answer: BaseHTTPResponse, line: Line) -> Exception:
    """Return what an answer that is no success is to be raised as."""
    status = answer.status
    if 300 <= status < 400:
        return LastingError(
            f"it answers {status}, a redirect, which is not followed: set the store's endpoint and region right"
        )
    body = _read_body(answer, line)
    found = _CODE.search(body)
    code = found[1].decode() if found else ""
    said = f"it answers {status}{f' {code}' if code else ''}"
    if status in _PASSING_STATUSES or code in _PASSING_CODES:
        return PassingError(said)
    if code == "AccessDenied" and _EXPIRED_TEXT.search(body):
        code = "RequestExpired"
    meaning = _MEANING_OF_STATUS.get(status, "") if code not in _MEANING else _MEANING[code]
    kind = MissingError if status == 404 and code in {"", "NoSuchKey"} else LastingError
    return kind(f"{said}: {meaning}" if meaning else said, again=code in _AGAIN)


def _read_body(answer: BaseHTTPResponse, line: Line) -> bytes:
    body = b""
    try:
        while len(body) < _MAX_BODY and (block := line.read(answer, _MAX_BODY - len(body))):
            body += block
    except PassingError:
        return body  # the status says enough
    return body


def try_again(line: Line, work: Callable[[], Result]) -> Result:
    """Do something, again and again after a pause each time, as long as it fails by a `PassingError`.

    Raises:
        PassingError: It failed `ATTEMPTS` times.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    retrying = Retrying(
        sleep=line.rest,
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=BACKOFF_S, max=BACKOFF_MAX_S),
        retry=retry_if_exception_type(PassingError),
        reraise=True,
    )
    return retrying(work)


@contextmanager
def told(key: str, doing: Literal["read from", "written to"]) -> Iterator[None]:
    """Say in words for whoever called what went wrong with a file."""
    failed = f"{key} cannot be {doing} the store"
    try:
        yield
    except PassingError as error:
        raise StoreUnavailableError(f"{failed}, which was asked {ATTEMPTS} times: {error}; try again later") from None
    except OtherSizeError as error:
        raise BackupIntegrityError(
            f"{key} has {error} in the store where the backup has {error.wanted}. {REMEDY}"
        ) from None
    except LastingError as error:
        if isinstance(error, MissingError) and doing == "read from":
            raise BackupIntegrityError(f"{key} is missing in the store; the backup is damaged. {REMEDY}") from None
        raise StoreUnavailableError(f"{failed}: {error}") from None
