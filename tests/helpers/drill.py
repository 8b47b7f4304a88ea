"""An operation through a broken line to the store: each of its requests meets each fault once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.bucket import BucketPlace
from helpers.proxy import Fault, Proxy, Request
from helpers.trees import Listing, differences, list_tree
from sandpoint.errors import SandpointError, StoreUnavailableError

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import MultipartUploadTypeDef

PREFIX = "some/prefix/"

_TIMEOUT_S = 0.5
PART_BYTES = 5 << 20
"""The least that S3 takes."""

_RANGE_BYTES = 2 << 20


def hurry(monkeypatch: pytest.MonkeyPatch, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Wait for moments where the product waits for seconds, and send in parts what is only a little large.

    `timeout_s` is for tests in which nothing stalls: that a busy machine answers late is no fault of theirs.
    """
    monkeypatch.setattr("sandpoint.engine.http_line.READ_TIMEOUT_S", timeout_s)
    monkeypatch.setattr("sandpoint.engine.http_line.CONNECT_TIMEOUT_S", timeout_s)
    monkeypatch.setattr("sandpoint.engine.http_answers.BACKOFF_S", 0.001)
    monkeypatch.setattr("sandpoint.engine.http_answers.ATTEMPTS", 3)
    monkeypatch.setattr("sandpoint.engine.http_download.RANGE_BYTES", _RANGE_BYTES)
    monkeypatch.setattr("sandpoint.stores.s3_client.READ_TIMEOUT_S", timeout_s)
    monkeypatch.setattr("sandpoint.stores.s3_client.CONNECT_TIMEOUT_S", timeout_s)
    monkeypatch.setattr("sandpoint.stores.s3_client.ATTEMPTS", 2)
    monkeypatch.setattr("sandpoint.stores.s3_transfers.WHOLE_BYTES", PART_BYTES)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


def fits(fault: Fault, request: Request) -> bool:
    """Whether a request has what a fault breaks."""
    if fault in {Fault.CUT_REQUEST, Fault.FLIP_REQUEST}:
        return bool(request.length)
    if fault is Fault.REFUSE:
        return False
    if fault is Fault.FLIP_ANSWER:
        return request.method in {"GET", "POST"}
    return True


class Bucketful:
    """A bucket as it is now, to bring it back; sees that what is visible later is whole, without the product's help."""

    def __init__(self, place: BucketPlace) -> None:
        self._place = place
        self._held = {key: place.content(key) for key in sorted(place.keys())}
        self._seen = {key: hashlib.sha256(content).hexdigest() for key, content in self._held.items()}

    def bring_back(self) -> None:
        """Make it hold the same again."""
        there = self._place.keys()
        for key in there.keys() - self._held.keys():
            self._place.client.delete_object(Bucket=self._place.bucket, Key=PREFIX + key)
        for key in self._held.keys() - there.keys():
            self._place.replace(key, self._held[key])
        for upload in self._uploads():
            self._place.client.abort_multipart_upload(
                Bucket=self._place.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )

    def _uploads(self) -> "list[MultipartUploadTypeDef]":
        return self._place.client.list_multipart_uploads(Bucket=self._place.bucket).get("Uploads", [])

    def ids(self) -> set[str]:
        """Return the visible backups; fail unless each is whole, and nothing else is there but markers of removers."""
        there = self._place.keys()
        shown = {key for key in there if key.endswith("/meta.json")}
        needed = set(shown)
        for key in shown:
            metadata = json.loads(self._content(key))
            for file in (*metadata["layers"], metadata["manifest"], *metadata["parentManifests"]):
                needed.add(file["key"])
                assert file["key"] in there, f"{key} needs {file['key']}, which is gone"
                assert self._digest(file["key"]) == file["sha256"], f"{file['key']} is not what {key} says"
        left = sorted(there.keys() - needed)
        assert not left, f"left in the bucket: {left}"
        uploads = [upload["Key"] for upload in self._uploads()]
        assert not uploads, f"left uploads: {uploads}"
        return {key.split("/")[1] for key in shown}

    def _content(self, key: str) -> bytes:
        return self._held[key] if key in self._held else self._place.content(key)

    def _digest(self, key: str) -> str:
        if key not in self._seen:
            self._seen[key] = hashlib.sha256(self._place.content(key)).hexdigest()
        return self._seen[key]


def left_here(place: BucketPlace) -> list[str]:
    """Return what only a running operation may have, on this machine."""
    return super(BucketPlace, place).leftovers()


@dataclass
class Drill:
    """One operation, and what must hold around it."""

    bucket: Bucketful
    place: BucketPlace
    proxy: Proxy
    run: Callable[[], Any]
    """The operation, through the proxy."""

    prepare: Callable[[], None]
    """Brings back what it starts from."""

    check: Callable[[Any], None]
    """Fails unless its result is right, and all is as it should be after it."""

    check_failed: Callable[[], None] = lambda: None
    """Fails unless all is as it should be after it failed."""

    may_show_one_more: bool = False
    """Whether a failure may leave a whole backup where the store could not be reached any more: nobody knows whether it
    did the last request, and what is visible cannot be hidden then."""

    trees: tuple[Path, ...] = ()
    """Directories that it may change; a failure leaves them as they were, or as a success does."""

    spared: Callable[[Request, Fault], bool] = lambda _request, _fault: False
    """Which faults do not meet which requests, besides those that do not fit."""

    problems: list[str] = field(default_factory=list)
    failed: int = 0

    def requests(self) -> list[Request]:
        """Do it unbroken, and return what it asks for."""
        self.prepare()
        start = len(self.proxy.requests)
        result = self.run()
        wanted = self.proxy.requests[start:]
        self._assert_clean()
        self.check(result)
        return wanted

    def once(self, *, share: int = 1) -> int:
        """Break each request once by every fault that fits, or by a part of them; return how often it was done."""
        count = 0
        for number, request in enumerate(self.requests(), 1):
            for turn, fault in enumerate(Fault):
                if self._meets(fault, request) and (number + turn) % share == 0:
                    count += 1
                    with self._told(f"{fault.name} at request {number}, {_name(request)}"):
                        self._break_once(number, fault)
        assert not self.problems, "\n".join([f"{len(self.problems)} of {count}:", *self.problems])
        return count

    def from_then_on(self, *faults: Fault, share: int = 1) -> int:
        """Break all requests from one on, by one of some faults in turn; return how often it was done.

        That is done for each request, or for one in so many.
        """
        wanted = self.requests()[::share]
        for turn, request in enumerate(wanted):
            fault, number = faults[turn % len(faults)], turn * share + 1
            with self._told(f"{fault.name} from request {number} on, {_name(request)}"):
                self._break_for_good(number, fault)
        assert not self.problems, "\n".join([f"{len(self.problems)} of {len(wanted)}:", *self.problems])
        return len(wanted)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - all are told in the end
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
        finally:
            self.proxy.heal()
        try:
            self.proxy.check()
        except AssertionError as error:
            self.problems.append(f"{what}: {error}")

    def _break_once(self, number: int, fault: Fault) -> None:
        before = self._begin()
        start = len(self.proxy.requests)
        self.proxy.fail(fault, when=lambda request: request.number >= start + number and self._meets(fault, request))
        try:
            result = self.run()
        except SandpointError as error:
            self.failed += 1
            self._judge(error)
            self.proxy.heal()
            self._assert_trees(before)
            self._assert_clean()
            self.check_failed()
            result = self.run()
        self.proxy.heal()
        self.check(result)
        self._assert_clean()

    def _break_for_good(self, number: int, fault: Fault) -> None:
        before = self._begin()
        shown = self.bucket.ids()
        start = len(self.proxy.requests)
        self.proxy.fail(
            fault, when=lambda request: request.number >= start + number and self._meets(fault, request), times=None
        )
        try:
            self.run()
        except SandpointError as error:
            self.failed += 1
            self._judge(error)
            self.proxy.heal()
            self._assert_trees(before)
            assert left_here(self.place) == []
            prune_after_leases(self.place)
            self._assert_clean()
            if not self.may_show_one_more:
                self.check_failed()
            assert len(self.bucket.ids() - shown) <= self.may_show_one_more
            self.prepare()
            self.check(self.run())
        self.proxy.heal()
        prune_after_leases(self.place)
        self._assert_clean()

    def _meets(self, fault: Fault, request: Request) -> bool:
        return fits(fault, request) and not self.spared(request, fault)

    def _begin(self) -> list[Listing]:
        self.prepare()
        return [list_tree(tree) for tree in self.trees]

    @staticmethod
    def _judge(error: SandpointError) -> None:
        text = str(error)
        assert isinstance(error, StoreUnavailableError), f"{type(error).__name__}: {text}"
        assert "try again" in text.lower(), text
        assert "will not help" not in text, text

    def _assert_trees(self, before: list[Listing]) -> None:
        for tree, listing in zip(self.trees, before, strict=True):
            found = differences(listing, list_tree(tree))
            assert not found, f"{tree} is not as before: {found[:5]}"

    def _assert_clean(self) -> None:
        left = left_here(self.place)
        assert not left, f"left over: {left}"
        self.bucket.ids()


def _name(request: Request) -> str:
    names = ",".join(sorted(name for name in request.names if not name.startswith("X-")))
    return f"{request.method} {request.path}?{names}"


def prune_after_leases(place: BucketPlace) -> None:
    """Prune as if all who were writing or removing had died long ago."""
    for key in sorted(place.keys()):
        if key.startswith("incoming/"):
            marker = json.loads(place.content(key)) | {"until": "2020-01-01T00:00:00Z"}
            place.replace(key, json.dumps(marker).encode())
    place.run(place.service.prune)
    if any(key.startswith("doomed/") for key in sorted(place.keys())):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sandpoint.stores.s3_markers.DOOM_S", -1.0)
            place.run(place.service.prune)
