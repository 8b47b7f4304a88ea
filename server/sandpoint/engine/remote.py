"""Files to and from stores that are no folder: by presigned URLs, or through the server."""

import hashlib
import os
from collections.abc import Iterator

from sandpoint.engine import http
from sandpoint.engine.checked import altered, missing, other_size
from sandpoint.engine.relay import Relay
from sandpoint.engine.tools import Check
from sandpoint.models import CachedGrant, GetGrant, MultipartGrant, PathGrant, PutGrant, ReadGrant, RelayGrant

READS = 2
"""Of a file whose digest is not the one it should have: what came may have been damaged on its way."""


def upload(
    path: str, grant: PutGrant | MultipartGrant | RelayGrant, relay: Relay | None, check: Check
) -> tuple[str, ...]:
    """Send a file; return the ETags of its parts, none where it went whole.

    Raises:
        StoreUnavailableError: The store did not take it.
        OSError: The file cannot be read.
    """
    if isinstance(grant, RelayGrant):
        _there(relay).write(grant.key, path, check)
        return ()
    return http.upload(path, grant, check)


def download(grant: ReadGrant, size: int, relay: Relay | None, path: str, check: Check) -> str:
    """Fetch a file of a known size into a new one; return its SHA-256, which is yet to be compared.

    One that an earlier call had begun, and left when its process was killed, is gone on with where that is possible.

    Raises:
        BackupIntegrityError: It is missing, or has another size.
        StoreUnavailableError: It cannot be fetched.
        OSError: The new file cannot be written.
    """
    if isinstance(grant, GetGrant):
        return http.download(grant, size, path, check)
    total = hashlib.sha256()
    with open(path, "wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        for block in blocks(grant, size, relay, check):
            file.write(block)
            total.update(block)
        if file.tell() != size:
            raise other_size(name_of(grant), file.tell(), size)
    return total.hexdigest()


def blocks(grant: ReadGrant, size: int, relay: Relay | None, check: Check) -> Iterator[bytes]:
    """Yield a file in blocks; ends with an error where it is longer than it should be.

    Raises:
        BackupIntegrityError: It is missing, or too long.
        StoreUnavailableError: It cannot be read.
    """
    arrived = 0
    for block in _blocks(grant, relay, check):
        check()
        arrived += len(block)
        if arrived > size:
            raise altered(name_of(grant))
        yield block


def _blocks(grant: ReadGrant, relay: Relay | None, check: Check) -> Iterator[bytes]:
    if isinstance(grant, RelayGrant):
        return _there(relay).read(grant.key)
    if isinstance(grant, GetGrant):
        return http.stream(grant, check)
    raise missing(name_of(grant))


def name_of(grant: ReadGrant) -> str:
    """Return what messages call the file of a grant."""
    if isinstance(grant, PathGrant):
        return grant.path
    return "a file of the cache" if isinstance(grant, CachedGrant) else grant.key


def _there(relay: Relay | None) -> Relay:
    assert relay is not None, "a store that grants a relay has one"
    return relay
