"""One bucket, below one prefix: the few requests that the store makes, with errors that say what was tried."""

import hashlib
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.from_thread

from sandpoint.errors import StoreUnavailableError
from sandpoint.stores.s3_client import WORKERS, Connection, Presigned, code_of, connect, mapped, md5_of, status_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DELETED_AT_ONCE = 1000
"""As many as one request may name."""

_READS = 3
"""Of a small file that arrives damaged, or not to its end: the client itself tries again only before that."""

_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Found:
    """A file of the bucket; its age in seconds is by the server's own clock."""

    key: str
    size: int
    age: float


@dataclass(frozen=True)
class Head:
    """What the server says of a file; `digest` is the SHA-256 in base64 if it keeps one, `is_md5` of its ETag."""

    size: int
    etag: str
    digest: str | None
    is_md5: bool


class Bucket:
    """A bucket below a prefix; its keys are without it. To be used from several threads."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        """Name it; the client is made at the first request."""
        self.connection = connection
        self.prefix = prefix
        self._client: S3Client | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> "S3Client":
        """The client, made once."""
        with self._lock:
            if self._client is None:
                self._client = connect(self.connection)
                self._client.meta.events.register("before-send.s3", _go_on)
            return self._client

    def trying(self, action: str) -> AbstractContextManager[None]:
        """Raise the client's errors as ours; `action` is what is tried."""
        return mapped(self.connection, action)

    def at(self, key: str) -> dict[str, Any]:
        """Return the arguments that name a file."""
        return {"Bucket": self.connection.bucket, "Key": self.prefix + key}

    # -- one file --

    def get(self, key: str, limit: int) -> bytes | None:
        """Return the beginning of a file, None if it is not there."""
        from botocore.exceptions import ClientError

        with self.trying(f"read {key}"):
            for _ in range(_READS):
                try:
                    answer = self.client.get_object(**self.at(key))
                except ClientError as error:
                    if code_of(error) == "NoSuchKey":
                        return None
                    raise
                content = _arrived(answer, limit)
                if content is not None:
                    return content
        raise StoreUnavailableError(
            f"cannot read {key} in {self.connection.place}: it arrived damaged {_READS} times; check the network. "
            "Try again"
        )

    def head(self, key: str) -> Head | None:
        """Return what the server says of a file, None if it is not there."""
        from botocore.exceptions import ClientError

        with self.trying(f"look at {key}"):
            try:
                answer = self.client.head_object(**self.at(key), ChecksumMode="ENABLED")
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                if status_of(error) == 403:
                    # Such an answer has no body to say why: ask for one that has.
                    self.client.get_object(**self.at(key), Range="bytes=0-0")["Body"].close()
                raise
        digest = answer.get("ChecksumSHA256")
        return Head(
            size=answer["ContentLength"],
            etag=answer.get("ETag", "").strip('"'),
            digest=digest if digest and "-" not in digest else None,
            is_md5=_has_md5(answer),
        )

    def size(self, key: str) -> int | None:
        """Return a file's size, None if it is not there."""
        head = self.head(key)
        return None if head is None else head.size

    def put(self, key: str, content: bytes) -> None:
        """Write a small file, over what may be there."""
        with self.trying(f"write {key}"):
            self.client.put_object(**self.at(key), Body=content, ContentMD5=md5_of(content))

    def put_new(self, key: str, content: bytes) -> bool:
        """Write a small file unless it is there; return whether it was written.

        False too where the first answer was lost and the client tried again. Not every server knows the condition.
        """
        from botocore.exceptions import ClientError

        with self.trying(f"write {key}"):
            try:
                self.client.put_object(**self.at(key), Body=content, ContentMD5=md5_of(content), IfNoneMatch="*")
            except ClientError as error:
                # 409: somebody else writes it just now.
                if status_of(error) in {409, 412}:
                    return False
                raise
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files; those that are not there count as removed."""
        wanted = list(keys)
        for start in range(0, len(wanted), _DELETED_AT_ONCE):
            some = wanted[start : start + _DELETED_AT_ONCE]
            if len(some) == 1:
                with self.trying(f"delete {some[0]}"):
                    self.client.delete_object(**self.at(some[0]))
                continue
            with self.trying(f"delete {some[0]} and {len(some) - 1} others"):
                answer = self.client.delete_objects(
                    Bucket=self.connection.bucket,
                    Delete={"Objects": [{"Key": self.prefix + key} for key in some], "Quiet": True},
                )
            if failed := answer.get("Errors"):
                raise StoreUnavailableError(
                    f"cannot delete {len(failed)} files in {self.connection.place}, the first "
                    f"{failed[0].get('Key')}: {failed[0].get('Code')} {failed[0].get('Message')}; try again"
                )

    def presign(self, request: Presigned, key: str, expires_s: int, **more: Any) -> str:
        """Return a URL by which whoever has it may make one request, for some time."""
        with self.trying(f"sign a URL for {key}"):
            return self.client.generate_presigned_url(request, Params=self.at(key) | more, ExpiresIn=expires_s)

    # -- lists --

    def files(self, below: str, after: str = "") -> Iterator[Found]:
        """Yield the files below a prefix that come after a name, in ascending order."""
        pages = self.client.get_paginator("list_objects_v2")
        place: dict[str, Any] = {"Bucket": self.connection.bucket, "Prefix": self.prefix + below}
        with self.trying(f"list {below}"):
            for page in pages.paginate(**place, **self._start_after(below, after)):
                date = page["ResponseMetadata"]["HTTPHeaders"].get("date")
                now = parsedate_to_datetime(date) if date else datetime.now(UTC)
                for found in page.get("Contents", ()):
                    age = (now - found["LastModified"]).total_seconds()
                    yield Found(found["Key"].removeprefix(self.prefix), found["Size"], age)

    def folders(self, below: str, after: str) -> tuple[list[str], bool]:
        """Return up to 1000 names of folders below a prefix that come after a name, and whether there are more."""
        place: dict[str, Any] = {"Bucket": self.connection.bucket, "Prefix": self.prefix + below}
        with self.trying(f"list {below}"):
            answer = self.client.list_objects_v2(**place, Delimiter="/", **self._start_after(below, after))
        start = len(self.prefix + below)
        return [found["Prefix"][start:-1] for found in answer.get("CommonPrefixes", ())], answer["IsTruncated"]

    def _start_after(self, below: str, after: str) -> dict[str, Any]:
        return {"StartAfter": f"{self.prefix}{below}{after}"} if after else {}

    # -- uploads in parts --

    def begin_upload(self, key: str) -> str:
        """Begin to write a file in parts; return the upload's id."""
        with self.trying(f"begin to write {key}"):
            return self.client.create_multipart_upload(**self.at(key))["UploadId"]

    def complete_upload(self, key: str, upload_id: str, etags: Collection[str]) -> bool:
        """Put a file together from its parts; return False if there is no such upload any more."""
        from botocore.exceptions import ClientError

        parts: list[Any] = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        with self.trying(f"complete {key}"):
            try:
                self.client.complete_multipart_upload(
                    **self.at(key), UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            except ClientError as error:
                if code_of(error) == "NoSuchUpload":
                    return False
                raise
        # Where the answer to the request that began it was lost, the client began another one.
        for _, other in self.uploads(key):
            self.abort_upload(key, other)
        return True

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove the parts of a file, and end its upload; one that has ended is no error."""
        from botocore.exceptions import ClientError

        with self.trying(f"abort the upload of {key}"):
            try:
                self.client.abort_multipart_upload(**self.at(key), UploadId=upload_id)
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise

    def uploads(self, below: str) -> list[tuple[str, str]]:
        """Return the keys and ids of the uploads that have not ended."""
        from botocore.exceptions import ClientError

        pages = self.client.get_paginator("list_multipart_uploads")
        found = []
        with self.trying(f"list uploads below {below}"):
            try:
                for page in pages.paginate(Bucket=self.connection.bucket, Prefix=self.prefix + below):
                    found += [
                        (upload["Key"].removeprefix(self.prefix), upload["UploadId"])
                        for upload in page.get("Uploads", ())
                    ]
            except ClientError as error:
                if code_of(error) != "NotImplemented":  # then the server has a rule of its own for them
                    raise
        return found


def _go_on(**_: object) -> None:
    """Send no request, and try none again, for an operation that was cancelled."""
    with suppress(RuntimeError):  # this thread is one of a pool
        anyio.from_thread.check_cancelled()


def _has_md5(answer: Mapping[str, Any]) -> bool:
    """Whether the ETag of a file that was written as a whole is its MD5."""
    is_kms = answer.get("ServerSideEncryption", "").startswith("aws:kms")
    return not is_kms and "SSECustomerAlgorithm" not in answer


def _arrived(answer: Mapping[str, Any], limit: int) -> bytes | None:
    """Return the beginning of a file, None if it is not what the server sent."""
    from botocore.exceptions import BotoCoreError, HTTPClientError

    with closing(answer["Body"]) as body:
        try:
            content: bytes = body.read(limit)
        except (BotoCoreError, HTTPClientError):
            return None
    if len(content) != min(limit, answer["ContentLength"]):
        return None
    etag = answer.get("ETag", "").strip('"')
    is_whole = len(content) == answer["ContentLength"]
    if is_whole and _has_md5(answer) and _MD5.fullmatch(etag):
        return content if hashlib.md5(content, usedforsecurity=False).hexdigest() == etag else None
    return content


def side_by_side(function: Callable[[_Item], _Result], items: Collection[_Item]) -> list[_Result]:
    """Return the results for all items, asked for by several threads."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(WORKERS, len(items)), thread_name_prefix="sandpoint-s3") as pool:
        return list(pool.map(function, items))
