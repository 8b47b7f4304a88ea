"""Backups in a bucket, through the service: over HTTP, over HTTPS, and through the store's own client."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.bucket import BucketPlace
from helpers.place import unmount_all
from helpers.s3 import S3Server
from helpers.trees import assert_same, in_whole_seconds, list_tree
from sandpoint.errors import BackupIntegrityError, BackupNotFoundError, InvalidBackupConfigError

WAYS = ["http", "https", "direct"]
OpenPlace = Callable[[str], BucketPlace]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(tmp_path: Path, s3_server: S3Server, way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPlace]:
    """Machines with a tree and a state directory each, and one bucket between them."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(s3_server.ca_file))
    bucket = s3_server.make_bucket()
    url = s3_server.https_url if way == "https" else s3_server.http_url

    def place(name: str) -> BucketPlace:
        return BucketPlace(tmp_path / name, s3_server, bucket=bucket, url=url, direct=way == "direct")

    yield place
    unmount_all(tmp_path)


@pytest.fixture
def here(machine: OpenPlace) -> BucketPlace:
    place = machine("here")
    fill(place.tree)
    return place


def fill(tree: Path) -> None:
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "app.py").write_text("print(1)\n")
    (tree / "large").write_bytes(random.Random(1).randbytes(20 << 20))
    (tree / "link").symlink_to("src/app.py")
    os.link(tree / "src" / "app.py", tree / "hard")
    os.setxattr(tree / "src", "user.note", b"kept")


def spoil(tree: Path) -> None:
    (tree / "src" / "app.py").write_text("broken\n")
    (tree / "large").unlink()
    (tree / "new").mkdir()


def test_a_directory_comes_back_and_goes_again(here: BucketPlace) -> None:
    before = list_tree(here.tree)
    backup = here.create()
    assert backup.size_bytes > 16 << 20  # it goes in parts
    spoil(here.tree)
    spoiled = list_tree(here.tree)
    restored = here.restore(backup.id)
    assert restored.undo_id is not None
    assert_same(before, list_tree(here.tree))
    here.restore(restored.undo_id)
    assert_same(spoiled, list_tree(here.tree))
    for each in here.ids():
        assert here.run(here.service.verify, each).ok
    here.assert_clean()


def test_a_later_backup_holds_what_has_changed(here: BucketPlace) -> None:
    first = here.create()
    (here.tree / "src" / "app.py").write_text("print(2)\n")
    later = here.create()
    assert (later.kind, later.parent_id) == ("delta", first.id)
    assert later.size_bytes < 1 << 16
    assert here.diff(first.id).modified == ("hard", "src/app.py")
    same = here.create()
    assert same.size_bytes == 0
    here.run(here.service.delete, first.id)
    after = list_tree(here.tree)
    spoil(here.tree)
    here.restore(later.id)
    assert_same(after, list_tree(here.tree))
    here.assert_clean()


def test_what_one_machine_made_is_there_on_another(here: BucketPlace, machine: OpenPlace) -> None:
    first = here.create(name="shared")
    (here.tree / "src" / "app.py").write_text("print(2)\n")
    later = here.create()
    there = machine("there")
    assert there.ids() == [later.id, first.id]
    for backup_id in (later.id, first.id):
        there.restore(backup_id, dir=there.tree, undo=False)
    here.restore(first.id, undo=False)
    assert_same(list_tree(here.tree), list_tree(there.tree))
    made = there.create()
    assert made.kind == "full"  # built on nothing of another machine's
    page = there.run(there.service.list, sandbox_id=made.sandbox_id)
    assert [each.id for each in page.backups] == [made.id]
    assert there.ids() == here.ids() == [made.id, later.id, first.id]
    there.assert_clean()


def test_a_fork_downloads_once_and_its_trees_are_independent(here: BucketPlace, machine: OpenPlace) -> None:
    backup = here.create()
    (here.tree / "src" / "app.py").write_text("print(2)\n")
    delta = here.create()
    there = machine("there")
    there.tree.mkdir()
    dirs = [str(there.base / f"fork-{number}") for number in range(5)]
    forked = there.run(there.service.fork, delta.id, dirs, mode="overlay")
    assert [each.dir for each in forked.restores] == dirs
    expected = in_whole_seconds(list_tree(here.tree))
    for each in dirs:
        assert_same(expected, in_whole_seconds(list_tree(Path(each))))
    there.assert_loops(2)  # a device for each layer, whoever shows it
    Path(dirs[0], "src", "app.py").write_text("mine\n")
    assert_same(expected, in_whole_seconds(list_tree(Path(dirs[1]))))
    assert there.run(there.service.verify, backup.id).ok
    for each in dirs:
        there.unmount(Path(each), undo=False)
    there.assert_unmounted()


def test_an_overlay_is_backed_up_as_what_changed_on_it(here: BucketPlace) -> None:
    backup = here.create()
    here.restore(backup.id, mode="overlay")
    (here.tree / "src" / "new").write_text("new\n")
    changed = in_whole_seconds(list_tree(here.tree))
    later = here.create()
    assert later.parent_id == backup.id
    here.unmount(undo=False)
    here.restore(later.id)
    assert_same(changed, in_whole_seconds(list_tree(here.tree)))
    here.assert_clean()


# -- the cache --


def test_what_was_made_here_is_not_downloaded_again(
    here: BucketPlace, machine: OpenPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = here.create()

    def refuse(*_: object) -> None:
        raise AssertionError("it was downloaded")

    monkeypatch.setattr("sandpoint.engine.remote.download", refuse)
    (here.tree / "src" / "app.py").write_text("print(2)\n")
    assert here.create().kind == "delta"
    spoil(here.tree)
    here.restore(backup.id)
    there = machine("there")
    with pytest.raises(AssertionError, match="downloaded"):
        there.restore(backup.id, dir=there.tree)


def test_an_altered_cache_is_fetched_anew(here: BucketPlace) -> None:
    backup = here.create()
    before = list_tree(here.tree)
    spoil(here.tree)
    for path in (here.state / "cache").iterdir():
        if not path.name.endswith(".lock"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    here.restore(backup.id)
    assert_same(before, list_tree(here.tree))


# -- damage in the store --


def cut(content: bytes) -> bytes:
    return content[:-1]


def flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def grow(content: bytes) -> bytes:
    return content + b"x"


@pytest.mark.parametrize("name", ["data.sqsh", "manifest.zst"])
@pytest.mark.parametrize("damage", [cut, flip, grow, None])
def test_damage_is_found_before_the_directory_is_touched(
    here: BucketPlace, machine: OpenPlace, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    backup = here.create()
    key = f"backups/{backup.id}/{name}"
    if damage is None:
        here.client.delete_object(Bucket=here.bucket, Key=f"some/prefix/{key}")
    else:
        here.replace(key, damage(here.content(key)))
    there = machine("there")
    fill(there.tree)
    spoil(there.tree)
    before = list_tree(there.tree)
    for mode in ("copy", "overlay"):
        with pytest.raises(BackupIntegrityError, match=name):
            there.restore(backup.id, dir=there.tree, mode=mode, undo=False)
    assert_same(before, list_tree(there.tree))
    verified = there.run(there.service.verify, backup.id)
    assert not verified.ok
    assert name in str(verified.problem)
    assert [path for path in (there.state / "cache").iterdir() if path.name.endswith((".partial", ".ranges"))] == []


def test_what_is_gone_is_said(here: BucketPlace, machine: OpenPlace) -> None:
    backup = here.create()
    there = machine("there")
    there.run(there.service.delete, backup.id)
    for operation in (here.restore, here.diff):
        with pytest.raises(BackupNotFoundError):
            operation(backup.id)
    assert here.keys() == {}


def test_directories_that_overlap_are_refused_before_anything_is_done(here: BucketPlace) -> None:
    backup = here.create()
    for dirs in (["a", "a"], ["a", "a/b"], ["b/c", "b"]):
        with pytest.raises(InvalidBackupConfigError, match="dirs: "):
            here.run(here.service.fork, backup.id, [str(here.base / each) for each in dirs])
        assert not (here.base / dirs[0]).exists()


def test_an_undo_lives_as_long_as_the_buckets_rules_let_it(here: BucketPlace) -> None:
    backup = here.create()
    here.client.put_bucket_lifecycle_configuration(
        Bucket=here.bucket,
        LifecycleConfiguration={
            "Rules": [
                {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 2}},
            ]
        },
    )
    another = BucketPlace(here.base, here.server, bucket=here.bucket)
    spoil(here.tree)
    restored = another.restore(backup.id)
    assert restored.undo_id is not None
    undo = another.run(another.service.get, restored.undo_id)
    assert (undo.expires_at - undo.created_at).days == 2
    with pytest.raises(InvalidBackupConfigError, match=r"^ttl: "):
        another.create()
