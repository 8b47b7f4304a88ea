"""Files to and from a store by presigned URLs: in parts, side by side, each tried again when it fails."""

from collections.abc import Iterator

from sandpoint.engine.tools import Check
from sandpoint.models import GetGrant, MultipartGrant, PutGrant


def upload(path: str, grant: PutGrant | MultipartGrant, check: Check) -> tuple[str, ...]:
    """Send a file; return the ETags of its parts, none where it went whole.

    Raises:
        StoreUnavailableError: The store did not take it; the message says whether to try again.
        OSError: The file cannot be read.
    """
    raise NotImplementedError


def download(grant: GetGrant, size: int, path: str, check: Check) -> None:
    """Fetch a file of a known size into `path`, going on where an earlier call left off.

    What is fetched may still be damaged: whoever calls compares the digest. On failure what has arrived stays.

    Raises:
        StoreUnavailableError: The store did not give it; the message says whether to try again.
        BackupIntegrityError: It is not there, or has another size.
        OSError: The file cannot be written: ENOSPC before anything is fetched.
    """
    raise NotImplementedError


def stream(grant: GetGrant, check: Check) -> Iterator[bytes]:
    """Yield a file in blocks, from its beginning to its end.

    Raises:
        StoreUnavailableError, BackupIntegrityError: As `download`.
    """
    raise NotImplementedError
