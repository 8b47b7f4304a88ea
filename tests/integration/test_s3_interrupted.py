"""Operations on a bucket that are killed or cancelled in the middle of a request."""

import os
import random
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from helpers.bucket import BucketPlace
from helpers.drill import PART_BYTES, Bucketful, hurry, left_here, prune_after_leases
from helpers.place import unmount_all
from helpers.proxy import Fault, Proxy, Request, Rule
from helpers.s3 import S3Server
from helpers.trees import assert_same, list_tree, write

QUICK_S = 10.0


@pytest.fixture
def place(
    tmp_path: Path, s3_server: S3Server, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BucketPlace]:
    hurry(monkeypatch)
    yield BucketPlace(tmp_path / "here", s3_server, url=s3_proxy.url)
    unmount_all(tmp_path)


def build(tree: Path) -> None:
    write(tree / "file", "content\n")
    write(tree / "large", random.Random(1).randbytes(2 * PART_BYTES))


def is_part(request: Request) -> bool:
    return "partNumber" in request.names


def is_range(request: Request) -> bool:
    return request.method == "GET" and request.range is not None


class Child:
    """A process that runs an operation until it is killed."""

    def __init__(self, operation: Callable[[], object]) -> None:
        self._pid = os.fork()
        if not self._pid:
            try:
                operation()
            finally:
                os._exit(1)

    def kill_when(self, holds: Callable[[], bool]) -> None:
        """Kill it once something holds."""
        deadline = time.monotonic() + 60
        try:
            while not holds():
                assert time.monotonic() < deadline
                assert os.waitpid(self._pid, os.WNOHANG) == (0, 0), "it has ended by itself"
                time.sleep(0.005)
        finally:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)


def test_a_killed_upload_goes_with_prune(place: BucketPlace, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place.tree)
    monkeypatch.setattr("sandpoint.engine.http_line.READ_TIMEOUT_S", 60.0)
    rule = s3_proxy.fail(Fault.STALL, when=is_part, after=1)
    Child(place.create).kill_when(lambda: rule.hits == 1)
    s3_proxy.heal()
    [marker] = place.keys()
    assert marker.startswith("incoming/")
    uploads = place.client.list_multipart_uploads(Bucket=place.bucket)["Uploads"]
    assert len(uploads) == 1
    made = place.create()
    place.run(place.service.prune)
    assert marker in {*place.keys()}, "its writer may still live"
    prune_after_leases(place)
    assert Bucketful(place).ids() == {made.id}
    place.assert_clean()


def test_a_killed_download_is_gone_on_with(
    place: BucketPlace, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    write(place.tree / "file", "broken\n")
    broken = list_tree(place.tree)
    shutil.rmtree(place.state / "cache")
    monkeypatch.setattr("sandpoint.engine.http_line.READ_TIMEOUT_S", 60.0)
    monkeypatch.setattr("sandpoint.engine.http_download.LINES", 1)
    started = len(s3_proxy.requests)
    rule = s3_proxy.fail(Fault.STALL, when=is_range, after=3)
    Child(partial(place.restore, backup.id, undo=False)).kill_when(lambda: rule.hits == 1)
    s3_proxy.heal()
    served = {request.range for request in s3_proxy.requests[started:] if is_range(request)}
    assert len(served) == 4
    assert_same(broken, list_tree(place.tree))
    again = len(s3_proxy.requests)
    place.restore(backup.id, undo=False)
    ranges = [request.range for request in s3_proxy.requests[again:] if is_range(request)]
    assert len(ranges) == len(set(ranges))
    assert len(served & {*ranges}) == 1  # the one that it was killed in
    assert len(served | {*ranges}) == -(-backup.size_bytes // (2 << 20))
    assert_same(before, list_tree(place.tree))
    place.assert_clean()


# -- cancelled --


async def until_stalled(rule: Rule, operation: Callable[[], Coroutine[Any, Any, Any]]) -> float:
    """Run an operation, cancel it when a request is stalled, and return how many seconds it took to end then."""
    ended = anyio.Event()

    async def work() -> None:
        try:
            await operation()
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        while not rule.hits and not ended.is_set():  # noqa: ASYNC110 - the proxy is in other threads
            await anyio.sleep(0.005)
        since = time.monotonic()
        group.cancel_scope.cancel()
    return time.monotonic() - since


def cancel_at(proxy: Proxy, number: int, operation: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Stall a request, then cancel the operation; return whether it came so far."""
    start = len(proxy.requests)
    rule = proxy.fail(Fault.STALL, when=lambda request: request.number == start + number)
    took = anyio.run(until_stalled, rule, operation)
    proxy.heal()
    assert took < QUICK_S, f"it took {took:.1f} s to end at request {number}"
    return rule.hits == 1


def test_a_request_is_not_tried_again_for_who_was_cancelled(
    place: BucketPlace, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandpoint.stores.s3_client.ATTEMPTS", 50)
    write(place.tree / "file", "content\n")
    rule = s3_proxy.fail(Fault.STALL, when=lambda request: request.method == "PUT", times=None)
    anyio.run(until_stalled, rule, partial(place.service.create, str(place.tree)))
    assert rule.hits == 1
    s3_proxy.heal()
    assert place.keys() == {}


def test_cancelled_create(place: BucketPlace, s3_proxy: Proxy) -> None:
    build(place.tree)
    listing = list_tree(place.tree)
    bucket = Bucketful(place)
    number = 1
    while cancel_at(s3_proxy, number, partial(place.service.create, str(place.tree), full=True)):
        assert_same(listing, list_tree(place.tree))
        assert left_here(place) == []
        bucket.ids()  # fails if anything but whole backups is there: the last requests come after meta.json
        bucket.bring_back()
        number += 1
    assert number > 9


def test_cancelled_restore(place: BucketPlace, s3_proxy: Proxy) -> None:
    write(place.tree / "file", "content\n")
    before = list_tree(place.tree)
    backup = place.create()
    bucket = Bucketful(place)
    number = 1
    while True:
        write(place.tree / "file", "broken\n")
        broken = list_tree(place.tree)
        shutil.rmtree(place.state / "cache", ignore_errors=True)
        if not cancel_at(s3_proxy, number, partial(place.service.restore, backup.id)):
            break
        found = list_tree(place.tree)
        assert found in (before, broken)
        assert left_here(place) == []
        assert backup.id in bucket.ids()
        bucket.bring_back()
        number += 1
    assert number > 9
    assert_same(before, list_tree(place.tree))
