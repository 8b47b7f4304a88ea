"""Files to and from a store by presigned URLs: in parts, side by side, each tried again when it fails."""

from collections.abc import Iterator

from sandpoint.engine.tools import Check
from sandpoint.models import GetGrant, MultipartGrant, PutGrant

# What does the work loads urllib3, which most runs do not need.


def upload(path: str, grant: PutGrant | MultipartGrant, check: Check) -> tuple[str, ...]:
    """Send a file; return the ETags of its parts, none where it went whole.

    When it returns or raises, nothing of it goes on. Parts that were sent stay with the store.

    Raises:
        StoreUnavailableError: The store did not take it; the message says whether to try again.
        InvalidBackupConfigError: The environment names a proxy or certificates that cannot be used.
        OSError: The file cannot be read.
    """
    from sandpoint.engine.http_upload import send_file

    return send_file(path, grant, check)


def download(grant: GetGrant, size: int, path: str, check: Check) -> str:
    """Fetch a file of a known size into `path`, going on where an earlier call left off; return its SHA-256.

    What is fetched may still be damaged: whoever calls compares the digest. On failure what has arrived stays, with a
    note beside it, `path` + `.ranges`, which the next call for the same size goes on from.

    Raises:
        StoreUnavailableError: The store did not give it; the message says whether to try again.
        BackupIntegrityError: It is not there, or has another size.
        InvalidBackupConfigError: The environment names a proxy or certificates that cannot be used.
        OSError: The file cannot be written: ENOSPC before anything is fetched.
    """
    from sandpoint.engine.http_download import fetch_file

    return fetch_file(grant, size, path, check)


def stream(grant: GetGrant, check: Check) -> Iterator[bytes]:
    """Yield a file in blocks, from its beginning to its end.

    Raises:
        StoreUnavailableError, BackupIntegrityError, InvalidBackupConfigError: As `download`.
    """
    from sandpoint.engine.http_download import fetch_blocks

    return fetch_blocks(grant, check)
