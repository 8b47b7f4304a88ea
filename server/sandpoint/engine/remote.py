"""Files to and from stores that are no folder: by presigned URLs, or through the server."""

import os
from collections.abc import Iterator

from sandpoint.engine.checked import altered, missing
from sandpoint.engine.relay import Relay
from sandpoint.engine.tools import Check
from sandpoint.models import CachedGrant, GetGrant, MultipartGrant, PathGrant, PutGrant, RelayGrant, Source


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
    from sandpoint.engine import http  # not needed where the store is a folder

    return http.upload(path, grant, check)


def download(source: Source, relay: Relay | None, path: str, check: Check) -> None:
    """Fetch a file into a new one; its digest is yet to be compared.

    One that an earlier call had begun, and left when its process was killed, is gone on with where that is possible.

    Raises:
        BackupIntegrityError: It is missing, or has another size.
        StoreUnavailableError: It cannot be fetched.
        OSError: The new file cannot be written.
    """
    if isinstance(source.grant, GetGrant):
        from sandpoint.engine import http  # not needed where the store is a folder

        http.download(source.grant, source.size, path, check)
        return
    with open(path, "wb") as file:
        if source.size:
            os.posix_fallocate(file.fileno(), 0, source.size)
        size = 0
        for block in blocks(source, relay, check):
            size += file.write(block)
        if size != source.size:
            raise altered(name_of(source))


def blocks(source: Source, relay: Relay | None, check: Check) -> Iterator[bytes]:
    """Yield a file in blocks; ends with an error where it is longer than it should be.

    Raises:
        BackupIntegrityError: It is missing, or too long.
        StoreUnavailableError: It cannot be read.
    """
    size = 0
    for block in _blocks(source, relay, check):
        check()
        size += len(block)
        if size > source.size:
            raise altered(name_of(source))
        yield block


def _blocks(source: Source, relay: Relay | None, check: Check) -> Iterator[bytes]:
    if isinstance(source.grant, RelayGrant):
        return _there(relay).read(source.grant.key)
    if isinstance(source.grant, GetGrant):
        from sandpoint.engine import http  # not needed where the store is a folder

        return http.stream(source.grant, check)
    raise missing(name_of(source))


def name_of(source: Source) -> str:
    """Return what messages call a file."""
    if isinstance(source.grant, PathGrant):
        return source.grant.path
    return f"{source.sha256} in the cache" if isinstance(source.grant, CachedGrant) else source.grant.key


def _there(relay: Relay | None) -> Relay:
    assert relay is not None, "a store that grants a relay has one"
    return relay
