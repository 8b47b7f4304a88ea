"""Faults between the engine, the store and a real S3 server: at every request, of every kind."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import uuid6

from helpers.bucket import BucketPlace
from helpers.drill import PART_BYTES, Bucketful, Drill, hurry
from helpers.place import mounts_in, unmount_all
from helpers.proxy import Fault, Proxy, Request
from helpers.s3 import S3Server
from helpers.trees import assert_same, in_whole_seconds, list_tree, write
from sandpoint.models import Backup, Changes, DeleteResult, ForkResult, PruneResult, RestoreResult, VerifyResult

SHARE = 7
"""A request meets one in so many faults, others than the request before it; by 1 it meets all, which takes minutes."""

LASTING = (Fault.DROP, Fault.ERROR_503, Fault.STALL, Fault.LOSE_ANSWER, Fault.CUT_ANSWER, Fault.ERROR_500)


@pytest.fixture
def place(
    tmp_path: Path, s3_server: S3Server, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BucketPlace]:
    hurry(monkeypatch)
    yield BucketPlace(tmp_path / "here", s3_server, url=s3_proxy.url)
    unmount_all(tmp_path)


def build(tree: Path, *, large: int = 0) -> None:
    write(tree / "src" / "app.py", "print(1)\n")
    write(tree / "src" / "lib.py", "print(2)\n" * 100)
    (tree / "link").symlink_to("src/app.py")
    (tree / "empty").mkdir()
    if large:
        write(tree / "large", random.Random(1).randbytes(large).hex()[:large])


def spoil(tree: Path) -> None:
    write(tree / "src" / "app.py", "broken\n")
    (tree / "link").unlink(missing_ok=True)
    write(tree / "new" / "file", "new\n")


def forget(place: BucketPlace) -> None:
    """Fetch and check all anew: this machine has seen nothing of the store."""
    shutil.rmtree(place.state / "cache", ignore_errors=True)
    shutil.rmtree(place.state / "checked", ignore_errors=True)


class Kept:
    """A tree of which two backups were taken, the state directory after each, and the bucket."""

    def __init__(self, place: BucketPlace, *, large: int = 0) -> None:
        self.place = place
        build(place.tree, large=large)
        self.was = list_tree(place.tree)
        self.full = place.create()
        write(place.tree / "src" / "app.py", "print(3)\n")
        self.delta = place.create()
        assert self.delta.kind == "delta"
        self.now = list_tree(place.tree)
        self.bucket = Bucketful(place)
        shutil.copytree(place.state / "captures", place.base / "captures")

    def bring_back(self) -> None:
        """Make the store, and what the state directory knows of it, what they were."""
        self.bucket.bring_back()
        shutil.rmtree(self.place.state / "captures", ignore_errors=True)
        shutil.copytree(self.place.base / "captures", self.place.state / "captures")

    @property
    def ids(self) -> list[str]:
        return [self.delta.id, self.full.id]


def both(drill: Drill, share: int = SHARE) -> None:
    """Break it once at every request, and then for good."""
    assert drill.once(share=share) > 2
    assert drill.from_then_on(*LASTING, share=4) > 0


@pytest.mark.parametrize(
    ("large", "direct"),
    [(0, False), (12 << 20, False), (12 << 20, True)],
    ids=["whole", "in parts", "in parts, direct"],
)
def test_create(
    tmp_path: Path, s3_server: S3Server, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, large: int, direct: bool
) -> None:
    hurry(monkeypatch)
    place = BucketPlace(tmp_path / "here", s3_server, url=s3_proxy.url, direct=direct)
    build(place.tree, large=large)
    listing = list_tree(place.tree)
    bucket = Bucketful(place)

    def check(made: Backup) -> None:
        assert bucket.ids() == {made.id}
        if large:
            assert made.size_bytes > PART_BYTES
        assert_same(listing, list_tree(place.tree))

    def check_failed() -> None:
        assert place.keys() == {}

    both(
        Drill(
            bucket,
            place,
            s3_proxy,
            lambda: place.create(full=True),
            prepare=bucket.bring_back,
            check=check,
            check_failed=check_failed,
            may_show_one_more=True,
        )
    )


def test_create_of_a_delta(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)
    write(place.tree / "src" / "app.py", "print(4)\n")
    listing = list_tree(place.tree)

    def check(made: Backup) -> None:
        assert kept.bucket.ids() == {made.id, *kept.ids}
        assert_same(listing, list_tree(place.tree))

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            place.create,
            prepare=kept.bring_back,
            check=check,
            check_failed=lambda: assert_ids(kept),
            may_show_one_more=True,
        )
    )


def assert_ids(kept: Kept) -> None:
    assert kept.bucket.ids() == {*kept.ids}


def test_restore_of_a_copy(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place, large=3 << 20)
    spoil(place.tree)

    def prepare() -> None:
        kept.bring_back()
        spoil(place.tree)
        forget(place)

    def check(restored: RestoreResult) -> None:
        assert_same(kept.now, list_tree(place.tree))
        assert restored.undo_id is not None
        assert kept.bucket.ids() == {restored.undo_id, *kept.ids}

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            lambda: place.restore(kept.delta.id),
            prepare=prepare,
            check=check,
            check_failed=lambda: assert_ids(kept),
            may_show_one_more=True,
            trees=(place.tree,),
        )
    )


def test_restore_as_an_overlay(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)

    def prepare() -> None:
        kept.bring_back()
        if mounts_in(place.tree):
            place.unmount(undo=False)
        forget(place)

    def check(restored: RestoreResult) -> None:
        assert_same(in_whole_seconds(kept.was), in_whole_seconds(list_tree(place.tree)))
        assert kept.bucket.ids() == {*kept.ids}

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            lambda: place.restore(kept.full.id, mode="overlay", undo=False),
            prepare=prepare,
            check=check,
            check_failed=lambda: assert_ids(kept),
            trees=(place.tree,),
        )
    )


def test_fork(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)
    trees = tuple(place.base / f"fork-{number}" for number in range(2))

    def prepare() -> None:
        for tree in trees:
            shutil.rmtree(tree, ignore_errors=True)
        forget(place)

    def check(forked: ForkResult) -> None:
        for tree in trees:
            assert_same(kept.now, list_tree(tree))

    def check_failed() -> None:
        for tree in trees:
            assert not tree.exists()

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            lambda: place.run(place.service.fork, kept.delta.id, [str(tree) for tree in trees]),
            prepare=prepare,
            check=check,
            check_failed=check_failed,
        )
    )


# -- a list whose names were altered on their way --


@pytest.mark.parametrize("nth", range(5))
def test_what_a_visible_backup_needs_stays_though_its_name_is_misread(
    place: BucketPlace, s3_proxy: Proxy, nth: int
) -> None:
    kept = Kept(place)
    rule = s3_proxy.fail(Fault.FLIP_ANSWER, when=is_list, after=nth, text=f"{kept.delta.id}/meta.json".encode())
    place.run(place.service.delete, kept.full.id)
    assert rule.hits == 1
    s3_proxy.heal()
    assert kept.bucket.ids() == {kept.delta.id}


@pytest.mark.parametrize("nth", range(4))
def test_what_a_writer_needs_stays_though_its_marker_is_misread(place: BucketPlace, s3_proxy: Proxy, nth: int) -> None:
    kept = Kept(place)
    needed = place.run(place.backups.read, kept.full.id).layers
    writer = str(uuid6.uuid7())
    place.run(place.backups.begin, writer, needed)
    place.run(place.service.delete, kept.delta.id)
    rule = s3_proxy.fail(Fault.FLIP_ANSWER, when=is_list, after=nth, text=f"incoming/{writer}".encode())
    place.run(place.service.delete, kept.full.id)
    assert rule.hits == 1
    s3_proxy.heal()
    assert needed[0].key in {*place.keys()}
    place.run(place.backups.abandon, writer)
    place.run(place.service.prune)
    assert place.keys() == {}


def is_list(request: Request) -> bool:
    return "list-type" in request.names


def test_list(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)

    def check(ids: list[str]) -> None:
        assert ids == kept.ids

    drill = Drill(kept.bucket, place, s3_proxy, place.ids, prepare=lambda: None, check=check)
    # Lists have no digest: a backup whose name is altered on its way is not shown. See below for what is removed.
    drill.spared = lambda request, fault: fault is Fault.FLIP_ANSWER and is_list(request)
    both(drill)


def test_verify(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)

    def check(found: VerifyResult) -> None:
        assert found.ok, found.problem

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            lambda: place.run(place.service.verify, kept.delta.id),
            prepare=lambda: None,
            check=check,
        )
    )


def test_diff(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)

    def check(changes: Changes) -> None:
        assert changes == Changes(added=(), modified=("src/app.py",), removed=())

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            lambda: place.diff(kept.full.id, kept.delta.id),
            prepare=lambda: forget(place),
            check=check,
            trees=(place.tree,),
        )
    )


def test_delete_of_what_others_need(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)

    def run() -> DeleteResult | None:
        return place.run(place.service.delete, kept.full.id) if kept.full.id in place_ids(place) else None

    def check(deleted: DeleteResult | None) -> None:
        assert kept.bucket.ids() == {kept.delta.id}

    def check_failed() -> None:
        assert kept.delta.id in kept.bucket.ids()

    both(Drill(kept.bucket, place, s3_proxy, run, prepare=kept.bring_back, check=check, check_failed=check_failed))


def place_ids(place: BucketPlace) -> set[str]:
    """Return whose metadata is there, without a word to the proxy."""
    return {key.split("/")[1] for key in sorted(place.keys()) if key.endswith("meta.json")}


def test_prune(place: BucketPlace, s3_proxy: Proxy) -> None:
    kept = Kept(place)
    write(place.tree / "src" / "app.py", "print(4)\n")
    last = place.create()
    kept = kept_again(kept)

    def check(_: PruneResult) -> None:
        assert kept.bucket.ids() == {last.id}

    def check_failed() -> None:
        assert last.id in kept.bucket.ids()

    both(
        Drill(
            kept.bucket,
            place,
            s3_proxy,
            lambda: place.run(place.service.prune, keep_last=1),
            prepare=kept.bring_back,
            check=check,
            check_failed=check_failed,
        )
    )


def kept_again(kept: Kept) -> Kept:
    kept.bucket = Bucketful(kept.place)
    return kept
