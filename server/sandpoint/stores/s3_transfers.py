"""Files to and from a bucket: by URLs that others are granted, or through the server's own client."""

import base64
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from typing import IO, Any

from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError, StoreUnavailableError
from sandpoint.models import GetGrant, MultipartGrant, PutGrant, SentFile, StoredFile
from sandpoint.stores.s3_bucket import Bucket, Head
from sandpoint.stores.s3_client import ATTEMPTS, code_of, md5_of

WHOLE_BYTES = 16 << 20
"""Files below this size go in one request."""

_MAX_PARTS = 10_000
_GRANTED_S = 900
_SLOWEST_BYTES_PER_S = 256 << 10
_MAX_GRANTED_S = 7 * 86_400
"""More than this no signature holds."""

_BLOCK = 1 << 20
_RELAYED_AT_ONCE = 4
"""Parts, which are held in memory."""


def granted_s(size: int) -> int:
    """Return for how many seconds a file of a size may take: on a slow line, and at most 7 days."""
    return min(_GRANTED_S + size // _SLOWEST_BYTES_PER_S, _MAX_GRANTED_S)


def part_bytes(size: int) -> int:
    """Return the size of the parts of a file: 16 MiB, or more where that were too many of them, in whole MiB."""
    least = -(-size // _MAX_PARTS)
    return max(WHOLE_BYTES, -(-least // _BLOCK) * _BLOCK)


class Grants:
    """Leave to read and write files by URLs, which end with `granted_s`, or with the credentials that signed them."""

    def __init__(self, bucket: Bucket) -> None:
        """Take the bucket that the files lie in."""
        self._bucket = bucket
        self._uploads: dict[str, str] = {}

    def get(self, key: str, size: int) -> GetGrant:
        """Grant leave to read a file."""
        return GetGrant(key=key, url=self._bucket.presign("get_object", key, granted_s(size)))

    def put(self, key: str, file: StoredFile) -> PutGrant | MultipartGrant:
        """Grant leave to write a file of this size and no other, and where the server can tell, of this content."""
        expires = granted_s(file.size)
        if file.size < WHOLE_BYTES:
            digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
            url = self._bucket.presign("put_object", key, expires, ContentLength=file.size, ChecksumSHA256=digest)
            headers = {"Content-Length": str(file.size), "x-amz-checksum-sha256": digest}
            return PutGrant(key=key, url=url, headers=headers)
        upload_id = self._uploads[key] = self._bucket.begin_upload(key)
        length = part_bytes(file.size)
        urls = tuple(
            self._bucket.presign("upload_part", key, expires, UploadId=upload_id, PartNumber=number)
            for number in range(1, -(-file.size // length) + 1)
        )
        return MultipartGrant(key=key, part_bytes=length, urls=urls)

    def accept(self, key: str, file: SentFile) -> None:
        """Put a file together that was sent in parts, and see that the server has what was sent."""
        upload_id = self._uploads.get(key)
        if upload_id is not None:
            count = -(-file.size // part_bytes(file.size))
            if len(file.parts) != count:
                raise StoreUnavailableError(f"{key} was sent in {len(file.parts)} parts where {count} were to be")
            # Of an upload that is gone the answer was lost, if the file is there.
            self._bucket.complete_upload(key, upload_id, file.parts)
        compare(self._bucket.head(key), key, file)
        self._uploads.pop(key, None)

    def forget(self, below: str) -> list[tuple[str, str]]:
        """Know nothing more of the uploads below a key; return the keys and ids of those that have not ended."""
        return [(key, self._uploads.pop(key)) for key in list(self._uploads) if key.startswith(below)]


def compare(head: Head | None, key: str, file: SentFile) -> None:
    """See that a file arrived as it was sent, as far as the server tells.

    Raises:
        StoreUnavailableError: It did not.
    """
    if head is None:
        raise StoreUnavailableError(f"{key} was sent, and is not in the store; try again")
    if head.size != file.size:
        raise StoreUnavailableError(f"{key} has {head.size} bytes in the store where {file.size} were sent; try again")
    if head.digest is not None and base64.b64decode(head.digest).hex() != file.sha256:
        raise StoreUnavailableError(f"{key} was altered on its way to the store: its SHA-256 is another; try again")
    expected = _etag_of(file.parts)
    if expected and head.is_md5 and re.fullmatch(r"[0-9a-f]{32}-\d+", head.etag) and head.etag != expected:
        raise StoreUnavailableError(f"{key} was put together from other parts than those that were sent; try again")


def _etag_of(parts: Collection[str]) -> str | None:
    """Return the ETag of a file by those of its parts, None where they are no digests."""
    digests = [part.strip('"') for part in parts]
    if not digests or not all(re.fullmatch(r"[0-9a-f]{32}", digest) for digest in digests):
        return None
    total = hashlib.md5(b"".join(map(bytes.fromhex, digests)), usedforsecurity=False)
    return f"{total.hexdigest()}-{len(digests)}"


class S3Relay:
    """Files through the server's own client. Implements `Relay`."""

    def __init__(self, bucket: Bucket) -> None:
        """Take the bucket that the files lie in."""
        self._bucket = bucket

    def read(self, key: str) -> Iterator[bytes]:
        """Yield a file in blocks of 1 MiB; where it breaks off, it is asked for the rest."""
        done, left = 0, ATTEMPTS
        while True:
            before = done
            try:
                for block in self._read_from(key, done):
                    done += len(block)
                    yield block
                return
            except StoreUnavailableError:
                left = ATTEMPTS if done > before else left - 1
                if not left:
                    raise

    def _read_from(self, key: str, start: int) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        rest: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        with self._bucket.trying(f"read {key}"):
            try:
                answer = self._bucket.client.get_object(**self._bucket.at(key), **rest)
            except ClientError as error:
                if code_of(error) == "NoSuchKey":
                    raise BackupIntegrityError(f"{key} is missing in the store; the backup is damaged") from None
                if code_of(error) == "InvalidRange":
                    return  # it broke off just after the end
                raise
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(_BLOCK)

    def write(self, key: str, path: str, check: Check) -> None:
        """Write a file, each request with its MD5, which every server compares; whole or not at all."""
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            if size < WHOLE_BYTES:
                check()
                self._put(key, file.read())
                return
            upload_id = self._bucket.begin_upload(key)
            try:
                etags = self._put_parts(key, upload_id, file, size, check)
                check()
                self._bucket.complete_upload(key, upload_id, etags)
                compare(self._bucket.head(key), key, SentFile(size=size, sha256="0" * 64, parts=tuple(etags)))
            except BaseException:
                with suppress(StoreUnavailableError):  # what failed first is told; `abandon` and `reclaim` abort too
                    self._bucket.abort_upload(key, upload_id)
                raise

    def _put(self, key: str, content: bytes) -> None:
        with self._bucket.trying(f"write {key}"):
            self._bucket.client.put_object(**self._bucket.at(key), Body=content, ContentMD5=md5_of(content))

    def _put_parts(self, key: str, upload_id: str, file: IO[bytes], size: int, check: Check) -> list[str]:
        length = part_bytes(size)
        etags: dict[int, str] = {}

        def put_part(number: int, content: bytes) -> None:
            with self._bucket.trying(f"write part {number} of {key}"):
                answer = self._bucket.client.upload_part(
                    **self._bucket.at(key),
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=content,
                    ContentMD5=md5_of(content),
                )
            etags[number] = answer["ETag"]

        running: set[Future[None]] = set()
        with ThreadPoolExecutor(_RELAYED_AT_ONCE, thread_name_prefix="sandpoint-relay") as pool:
            for number in range(1, -(-size // length) + 1):
                while len(running) == _RELAYED_AT_ONCE:
                    running = _await(running, check)
                running.add(pool.submit(put_part, number, file.read(length)))
            while running:
                running = _await(running, check)
        return [etags[number] for number in sorted(etags)]


def _await(running: set[Future[None]], check: Check) -> set[Future[None]]:
    """Wait until a part is written, or some moments; return those that are not."""
    check()
    done, left = wait(running, timeout=0.05, return_when=FIRST_COMPLETED)
    for part in done:
        part.result()
    return left
