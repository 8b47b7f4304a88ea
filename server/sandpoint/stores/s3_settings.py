"""Which bucket a URL and the settings name."""

from urllib.parse import unquote, urlsplit

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.settings import R2_VARIABLES, R2Settings, Settings
from sandpoint.stores.s3 import S3Store
from sandpoint.stores.s3_client import Connection


def open_s3_store(url: str, settings: Settings) -> S3Store:
    """Return the store of an `s3:` URL; nothing is asked of it yet.

    Raises:
        InvalidBackupConfigError: There is no bucket in it, or no endpoint or key for it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc:
        # Not the URL itself: somebody may have written a key into it.
        raise InvalidBackupConfigError(
            "store: the URL may hold a bucket and a prefix only; write s3://bucket or s3://bucket/prefix, and set "
            "SANDPOINT_S3_ENDPOINT_URL and the credentials apart from it"
        )
    prefix = unquote(parts.path).strip("/")
    if not prefix.isprintable() or (prefix and {"", ".", ".."} & {*prefix.split("/")}):
        raise InvalidBackupConfigError(f"store: {url!r} has no usable prefix; write s3://bucket/prefix")
    _check_endpoint(settings.s3_endpoint_url)
    connection = _connection(url, parts.netloc, settings)
    return S3Store(connection, f"{prefix}/" if prefix else "", direct=settings.s3_direct)


def _check_endpoint(url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.query and not parts.fragment
        usable = usable and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # Not the URL itself, as above.
        raise InvalidBackupConfigError(
            "SANDPOINT_S3_ENDPOINT_URL: it may hold a scheme, a host, a port and a path only; write https://host or "
            "http://host:port, and set the credentials apart from it"
        )


def _connection(url: str, bucket: str, settings: Settings) -> Connection:
    if settings.r2 is not None:
        return _r2_connection(bucket, settings.r2)
    if not bucket:
        raise InvalidBackupConfigError(
            f"store: {url!r} names no bucket; write s3://bucket or s3://bucket/prefix, or set what Cloudflare R2 "
            f"needs: {', '.join(R2_VARIABLES.values())}"
        )
    return Connection(bucket, endpoint_url=settings.s3_endpoint_url)


def _r2_connection(bucket: str, r2: R2Settings) -> Connection:
    wanted = {**dict(r2), "bucket": bucket or r2.bucket}
    missing = [R2_VARIABLES[name] for name, value in wanted.items() if not value]
    if missing or r2.access_key_id is None or r2.secret_access_key is None:
        raise InvalidBackupConfigError(
            f"store: Cloudflare R2 needs {', '.join(missing)} too; set what is missing, or SANDPOINT_S3_ENDPOINT_URL "
            "for another server"
        )
    return Connection(
        wanted["bucket"],
        endpoint_url=f"https://{r2.account_id}.r2.cloudflarestorage.com",
        region="auto",
        access_key_id=r2.access_key_id.get_secret_value(),
        secret_access_key=r2.secret_access_key.get_secret_value(),
    )
