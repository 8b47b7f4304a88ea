"""Files on their way to a store by presigned URLs."""

import base64
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping

from urllib3 import BaseHTTPResponse

from sandpoint.engine.http_answers import refusal, told, try_again
from sandpoint.engine.http_crew import work_off
from sandpoint.engine.http_line import LastingError, Line, PassingError
from sandpoint.engine.tools import Check
from sandpoint.errors import StoreUnavailableError
from sandpoint.models import MultipartGrant, PutGrant

LINES = 4

_BLOCK = 1 << 20
_SENT_AT_ONCE = 128 << 10
_MD5 = re.compile(r"[0-9a-f]{32}")


class _ShrunkError(Exception):
    pass


def send_file(path: str, grant: PutGrant | MultipartGrant, check: Check) -> tuple[str, ...]:
    """See `http.upload`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        urls, part_bytes, headers = _parts_of(grant, size)
        pieces = [
            _Piece(fd, grant.key, url, headers, start, min(start + part_bytes, size))
            for start, url in zip(range(0, max(size, 1), part_bytes), urls, strict=True)
        ]
        with told(grant.key, "written to"):
            etags = work_off(urls[0], [piece.send for piece in pieces], check, lines=LINES)
    except _ShrunkError:
        raise OSError(errno.EIO, "it became shorter while it was sent", path) from None
    finally:
        os.close(fd)
    return tuple(etags) if isinstance(grant, MultipartGrant) else ()


def _parts_of(grant: PutGrant | MultipartGrant, size: int) -> tuple[tuple[str, ...], int, Mapping[str, str]]:
    if isinstance(grant, PutGrant):
        return (grant.url,), max(size, 1), grant.headers
    if len(grant.urls) != max(1, -(-size // grant.part_bytes)):
        raise StoreUnavailableError(
            f"{grant.key} cannot be written to the store: the grant is for a file of another size"
        )
    return grant.urls, grant.part_bytes, {}


class _Piece:
    """A part of a file, or a whole one, on its way to a store."""

    def __init__(self, fd: int, key: str, url: str, headers: Mapping[str, str], start: int, end: int) -> None:
        self._fd = fd
        self._key = key
        self._url = url
        self._headers = headers
        self._start = start
        self._end = end

    def send(self, line: Line) -> str:
        """Send it, and return its ETag."""
        block = memoryview(bytearray(min(_BLOCK, max(self._end - self._start, 1))))
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self._read(block, line):
            digest.update(piece)
        headers = {
            "Content-Length": str(self._end - self._start),
            "Content-MD5": base64.b64encode(digest.digest()).decode(),
            **self._headers,
        }
        return try_again(line, lambda: self._send_once(line, block, headers, digest.hexdigest()))

    def _send_once(self, line: Line, block: memoryview, headers: Mapping[str, str], md5: str) -> str:
        with line.ask("PUT", self._url, headers, self._slices(block, line)) as answer:
            if answer.status not in {200, 201, 204}:
                raise refusal(answer, line)
            while line.read(answer, _BLOCK):
                pass
            etag = answer.headers.get("ETag", "")
            if not etag:
                raise LastingError("it answers without an ETag")
            if _is_md5(etag.strip('"'), answer) and etag.strip('"') != md5:
                raise PassingError("what arrived is not what was sent")
            return etag

    def _slices(self, block: memoryview, line: Line) -> Iterator[memoryview]:
        # Small ones: how far it has come is seen between them.
        for piece in self._read(block, line):
            for start in range(0, len(piece), _SENT_AT_ONCE):
                yield piece[start : start + _SENT_AT_ONCE]

    def _read(self, block: memoryview, line: Line) -> Iterator[memoryview]:
        """Yield it in blocks, all in the same memory."""
        at = self._start
        while at < self._end:
            line.go_on()
            length = os.preadv(self._fd, [block[: self._end - at]], at)
            if not length:
                raise _ShrunkError
            yield block[:length]
            at += length


def _is_md5(etag: str, answer: BaseHTTPResponse) -> bool:
    encrypted = answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    encrypted = encrypted or "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    return not encrypted and _MD5.fullmatch(etag) is not None
