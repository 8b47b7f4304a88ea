"""The client of an S3 server, from settings, and what its errors mean."""

import base64
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sandpoint.errors import InvalidBackupConfigError, StoreUnavailableError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

WORKERS = 16
"""Requests at a time."""

ATTEMPTS = 5
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Connection:
    """Where a bucket is, and by whose leave it is used; what is None is left to AWS's own settings."""

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"the bucket {self.bucket}" + (f" at {self.endpoint_url}" if self.endpoint_url else "")


def connect(connection: Connection) -> "S3Client":
    """Return a client; nothing is asked of the server yet.

    Raises:
        InvalidBackupConfigError: AWS's own settings, or the endpoint, are none.
    """
    import boto3
    from botocore.config import Config

    # Path style: few servers but AWS have a host name for each bucket.
    is_aws = not (
        connection.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    # Some servers refuse the checksums that boto3 adds of itself (411 over HTTPS); digests are compared here anyway.
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "auto" if is_aws else "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=WORKERS,
    )
    with mapped(connection, "ask for anything"):
        try:
            session = boto3.session.Session(
                aws_access_key_id=connection.access_key_id,
                aws_secret_access_key=connection.secret_access_key,
                region_name=connection.region,
            )
            region = session.region_name or (None if is_aws else "us-east-1")
            client = session.client("s3", endpoint_url=connection.endpoint_url, region_name=region, config=config)
        except ValueError as error:
            raise InvalidBackupConfigError(
                f"SANDPOINT_S3_ENDPOINT_URL: {error}; write https://host or http://host:port"
            ) from None
    # MinIO and others refuse these without their MD5, and boto3 sends a CRC32 alone (from 1.36 on).
    for request in ("DeleteObjects", "PutBucketLifecycleConfiguration"):
        client.meta.events.register(f"before-sign.s3.{request}", _add_md5)
    _hush()  # now that all of it is loaded
    return client


def _add_md5(request: Any, **_event: object) -> None:
    request.headers["Content-MD5"] = md5_of(request.data)


def md5_of(content: bytes) -> str:
    """Return what goes with a request, so that the server refuses what is altered on its way."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


class _NoDebug(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG


_FILTER = _NoDebug()


def _hush() -> None:
    """Keep the debug messages of the client out of logs: they hold signatures, and headers with session tokens."""
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logger = logging.getLogger(name)
        if logger.level < logging.INFO:
            logger.setLevel(logging.INFO)
    # A logger below those may have a level of its own, now or later; filters are not handed down.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("botocore."):
            logging.getLogger(name).addFilter(_FILTER)


# -- what errors mean --


@dataclass(frozen=True)
class _Cause:
    says: str
    remedy: str
    again: bool = False
    """Whether the same may succeed later, without any remedy."""
    is_config: bool = False
    """Whether the settings are at fault by themselves, whatever the server says."""


_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the R2 variables"
_NO_SUCH_KEY_ID = _Cause("its access key is not known there", f"{_KEYS}, and see that they are that server's")
_WRONG_SECRET = _Cause("the secret access key is wrong", f"{_KEYS}, and see that the two belong together")
_ENDED = _Cause("the session's credentials have ended", "sign in again, or renew AWS_SESSION_TOKEN")
_DENIED = _Cause(
    "the credentials do not allow it",
    "they need s3:GetObject, PutObject, DeleteObject, ListBucket, AbortMultipartUpload and ListBucketMultipartUploads",
)
_SKEWED = _Cause("this machine's clock is wrong", "set it (by NTP): requests are signed with their time")
_ELSEWHERE = _Cause("the bucket is in another region", "set AWS_REGION to the bucket's own")
_FULL = _Cause("the storage is full", "make room ('sandpoint prune') or raise the quota")
_BUSY = _Cause("the server is busy or failing", "nothing is wrong with the settings", again=True)
_ALTERED = _Cause("the request was damaged on its way", "check the network", again=True)
_MISSING_BUCKET = _Cause("there is no such bucket", "make it, or put its name right in SANDPOINT_STORE")

_BY_CODE = {
    "InvalidAccessKeyId": _NO_SUCH_KEY_ID,
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "AuthFailure": _WRONG_SECRET,
    "ExpiredToken": _ENDED,
    "TokenRefreshRequired": _ENDED,
    "InvalidToken": _ENDED,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "403": _DENIED,
    "NoSuchBucket": _MISSING_BUCKET,
    "RequestTimeTooSkewed": _SKEWED,
    "RequestExpired": _SKEWED,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "PermanentRedirect": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "InsufficientStorage": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "EntityTooLarge": _Cause("the file is larger than the server takes", "exclude what is large from the backup"),
    "InvalidBucketName": _Cause("no bucket can have that name", "put it right in SANDPOINT_STORE", is_config=True),
    "NotImplemented": _Cause("the server cannot do that", "use another one, or go without it"),
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "RequestTimeout": _BUSY,
    "BadDigest": _ALTERED,
    "XAmzContentSHA256Mismatch": _ALTERED,
    "IncompleteBody": _ALTERED,
    "InvalidPart": _ALTERED,
    "InvalidPartOrder": _ALTERED,
    "MalformedXML": _ALTERED,
    "Throttling": _BUSY,
    "TooManyRequests": _BUSY,
}
"""By the code of the server's answer."""

_BY_STATUS = {507: _FULL, 500: _BUSY, 502: _BUSY, 503: _BUSY, 504: _BUSY, 429: _BUSY, 403: _DENIED}
"""By its status, where the code is none of those above."""

_OFFLINE = _Cause("the server cannot be reached", "check the network and SANDPOINT_S3_ENDPOINT_URL", again=True)
_SILENT = _Cause("the server does not answer in time", "check the network", again=True)
_UNTRUSTED = _Cause(
    "its certificate is not trusted, or it speaks no TLS", "name the authority that signed it in AWS_CA_BUNDLE"
)
_NO_KEYS = _Cause("there are no credentials", _KEYS, is_config=True)
_NO_REGION = _Cause("no region is set", "set AWS_REGION", is_config=True)
_HALF_A_KEY = _Cause("one half of the credentials is missing", _KEYS, is_config=True)
_NO_PROFILE = _Cause("the settings of AWS's tools are not usable", "see AWS_PROFILE and ~/.aws/config", is_config=True)
_BAD_SETTING = _Cause("a setting of AWS's tools is not usable", "see AWS_CA_BUNDLE and ~/.aws/config", is_config=True)
_GARBLED = _Cause("its answer was damaged on its way", "check the network", again=True)

_BY_TYPE = {
    "NoCredentialsError": _NO_KEYS,
    "PartialCredentialsError": _HALF_A_KEY,
    "CredentialRetrievalError": _Cause("no credentials can be had", _KEYS, again=True),
    "MetadataRetrievalError": _Cause("no credentials can be had", _KEYS, again=True),
    "TokenRetrievalError": _ENDED,
    "UnauthorizedSSOTokenError": _ENDED,
    "SSOTokenLoadError": _ENDED,
    "NoRegionError": _NO_REGION,
    "InvalidRegionError": _NO_REGION,
    "ProfileNotFound": _NO_PROFILE,
    "ConfigParseError": _NO_PROFILE,
    "ConfigNotFound": _NO_PROFILE,
    "InvalidConfigError": _BAD_SETTING,
    "InvalidDefaultsMode": _NO_PROFILE,
    "InvalidRetryConfigurationError": _NO_PROFILE,
    "InvalidRetryModeError": _NO_PROFILE,
    "InvalidMaxRetryAttemptsError": _NO_PROFILE,
    "InvalidS3AddressingStyleError": _NO_PROFILE,
    "UnknownCredentialError": _NO_PROFILE,
    "InfiniteLoopConfigError": _NO_PROFILE,
    "ParamValidationError": _BY_CODE["InvalidBucketName"],
    "SSLError": _UNTRUSTED,
    "ConnectTimeoutError": _SILENT,
    "ReadTimeoutError": _SILENT,
    "ConnectionClosedError": _OFFLINE,
    "EndpointConnectionError": _OFFLINE,
    "ProxyConnectionError": _Cause("the proxy cannot be reached", "check HTTPS_PROXY", again=True),
    "ResponseStreamingError": _OFFLINE,
    "IncompleteReadError": _OFFLINE,
    "HTTPClientError": _OFFLINE,
    "HTTPError": _OFFLINE,
    "ResponseParserError": _GARBLED,
}
"""By the client's own error, or one that it is a kind of."""

_UNKNOWN = _Cause("it answered with an error", "see the code")


@contextmanager
def mapped(connection: Connection, action: str) -> Iterator[None]:
    """Raise the client's errors as ours.

    Args:
        connection: What the client was made of.
        action: What is tried, as in "write backups/.../meta.json".

    Raises:
        StoreUnavailableError: The server did not do it.
        InvalidBackupConfigError: It cannot even be asked, as things are configured.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError  # of an answer that tells an error, and breaks off

    try:
        yield
    except (BotoCoreError, ClientError, HTTPClientError, Boto3Error, ResponseParserError, HTTPError) as error:
        # Without the cause, whose text and request may hold a signature.
        raise _explained(error, connection, action) from None


def _explained(
    error: Exception, connection: Connection, action: str
) -> StoreUnavailableError | InvalidBackupConfigError:
    cause, name = _cause_of(error)
    message = f"{connection.place}: cannot {action}: {cause.says} ({name}); {cause.remedy}"
    if cause.is_config:
        return InvalidBackupConfigError(message)
    return StoreUnavailableError(f"{message}. {'Try again' if cause.again else 'To try again as it is will not help'}")


def _cause_of(error: Exception) -> tuple[_Cause, str]:
    code, status = code_of(error), status_of(error)
    if status is not None:
        return _BY_CODE.get(code) or _BY_STATUS.get(status) or _UNKNOWN, f"{code or 'no code'}, HTTP status {status}"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return next((_BY_TYPE[kind] for kind in kinds if kind in _BY_TYPE), _UNKNOWN), kinds[0]


def code_of(error: Exception) -> str:
    """Return the code of a server's answer, empty if it gave none."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of a server's answer, None if there was no answer."""
    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return int(status) if status is not None else None


Presigned = Literal["get_object", "put_object", "upload_part"]
"""The requests that others may make by a URL."""
