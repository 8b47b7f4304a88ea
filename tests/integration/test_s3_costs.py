"""What operations cost in requests and bytes, on a machine whose cache is cold or warm."""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.bucket import BucketPlace
from helpers.changes import wait_until_settled
from helpers.place import unmount_all
from helpers.proxy import Proxy, Request
from helpers.s3 import S3Server
from helpers.trees import assert_same, list_tree, write

LAYER_BYTES = 8 << 20


@dataclass(frozen=True)
class Cost:
    """What went through the proxy."""

    requests: list[Request]
    sent: int
    received: int

    def of_files(self) -> list[str]:
        """Return the names of the files of backups that were read."""
        names = (each.path.rpartition("/")[2] for each in self.requests if each.method == "GET")
        return sorted({name for name in names if name in {"data.sqsh", "manifest.zst"}})


@pytest.fixture
def place(tmp_path: Path, s3_server: S3Server, s3_proxy: Proxy) -> Iterator[BucketPlace]:
    place = BucketPlace(tmp_path, s3_server, url=s3_proxy.url)
    chance = random.Random(1)
    write(place.tree / "large", chance.randbytes(LAYER_BYTES))
    for number in range(300):
        write(place.tree / f"dir{number % 7}" / f"file{number}", chance.randbytes(100).hex())
    wait_until_settled(place.tree)
    place.create()
    yield place
    unmount_all(tmp_path)


Measure = Callable[[Callable[[], object]], Cost]


@pytest.fixture
def cost(s3_proxy: Proxy) -> Measure:
    def measure(operation: Callable[[], object]) -> Cost:
        requests, sent, received = len(s3_proxy.requests), s3_proxy.sent, s3_proxy.received
        operation()
        return Cost(s3_proxy.requests[requests:], s3_proxy.sent - sent, s3_proxy.received - received)

    return measure


def empty_cache(place: BucketPlace) -> None:
    for path in place.state.glob("cache/*"):
        path.unlink()


def change_20(place: BucketPlace) -> None:
    """Change files without changing their sizes, so that nothing but their bytes can tell."""
    for number in range(20):
        path = place.tree / f"dir{number % 7}" / f"file{number}"
        write(path, path.read_text()[::-1])
    wait_until_settled(place.tree)


def test_a_backup_of_what_has_not_changed_reads_no_file_of_another(place: BucketPlace, cost: Measure) -> None:
    empty_cache(place)
    made = cost(place.create)
    assert made.of_files() == []
    assert len(made.requests) <= 9, made.requests
    assert (made.sent, made.received) < (8_000, 8_000)


def test_a_backup_of_a_few_changes_does_not_fetch_the_layer_that_it_is_built_on(
    place: BucketPlace, cost: Measure
) -> None:
    empty_cache(place)
    change_20(place)
    made = cost(place.create)
    assert made.of_files() == []
    assert len(made.requests) <= 14, made.requests
    assert made.sent < 60_000
    assert made.received < 20_000
    expected = list_tree(place.tree)
    place.restore(place.ids()[0], dir=place.base / "other")
    assert_same(expected, list_tree(place.base / "other"))


def test_without_an_index_it_fetches_the_manifest_alone(place: BucketPlace, cost: Measure) -> None:
    empty_cache(place)
    for path in place.state.glob("captures/*.index"):
        path.unlink()
    change_20(place)
    made = cost(place.create)
    assert made.of_files() == ["manifest.zst"]
    assert made.received < 60_000


def test_a_tree_of_which_nothing_proves_that_it_is_the_same_is_compared_with_the_layer(
    place: BucketPlace, cost: Measure
) -> None:
    empty_cache(place)
    for path in place.tree.rglob("*"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    wait_until_settled(place.tree)
    made = cost(place.create)
    assert made.of_files() == ["data.sqsh"]
    assert made.sent < 20_000


def test_what_was_written_to_all_over_is_not_compared_with_the_layer(place: BucketPlace, cost: Measure) -> None:
    empty_cache(place)
    for path in place.tree.rglob("*"):
        path.touch()
    wait_until_settled(place.tree)
    made = cost(place.create)
    assert made.of_files() == []
    assert made.received < 20_000


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_restore_of_what_is_cached_fetches_nothing(place: BucketPlace, cost: Measure, mode: str) -> None:
    backup_id = place.ids()[0]
    change_20(place)
    restored = cost(lambda: place.restore(backup_id, mode=mode, undo=False))
    assert restored.of_files() == []
    assert restored.sent == 0
    assert len(restored.requests) <= 2, restored.requests


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_cold_restore_fetches_each_file_once(place: BucketPlace, cost: Measure, mode: str) -> None:
    backup_id = place.ids()[0]
    empty_cache(place)
    restored = cost(lambda: place.restore(backup_id, dir=place.base / "other", mode=mode))
    assert restored.of_files() == ["data.sqsh", "manifest.zst"]
    assert restored.received < LAYER_BYTES * 1.05
    assert len(restored.requests) <= 6, restored.requests


def test_a_list_reads_the_metadata_of_what_it_shows(place: BucketPlace, cost: Measure) -> None:
    for _ in range(7):
        place.create()
    listed = cost(lambda: place.run(place.service.list, limit=5))
    assert sum(each.method == "GET" and each.path.endswith("meta.json") for each in listed.requests) <= 6
    assert len(listed.requests) <= 12, listed.requests
    assert listed.received < 40_000


def test_a_look_at_what_has_not_changed_writes_nothing(place: BucketPlace, cost: Measure) -> None:
    empty_cache(place)
    looked = cost(lambda: place.create(if_changed=True))
    assert {each.method for each in looked.requests} == {"GET", "HEAD"}
    assert len(looked.requests) <= 6, looked.requests
    assert looked.of_files() == []


def test_a_backup_that_lost_a_file_does_not_do_in_place_of_a_new_one(place: BucketPlace) -> None:
    (lost,) = place.ids()
    place.client.delete_object(Bucket=place.bucket, Key=f"some/prefix/backups/{lost}/data.sqsh")
    again = place.create(if_changed=True)
    assert (again.unchanged, again.kind) == (False, "full")
