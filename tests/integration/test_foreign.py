"""Interchange with Cloudflare's Sandbox SDK: its backups here, and ours there."""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from uuid6 import uuid7

from helpers import ordinary
from helpers.bucket import BucketPlace
from helpers.cli import Program
from helpers.foreign import ID, archive_of, back_up, metadata_of, put, put_backup
from helpers.killer import KillerProcess, points
from helpers.mcp import text
from helpers.place import Place, message, tmpfs, unmount_all
from helpers.s3 import S3Server
from helpers.trees import (
    Listing,
    assert_same,
    build_small,
    build_zoo,
    in_whole_seconds,
    list_tree,
    write,
)
from sandpoint.engine import layers, linux, squashfs
from sandpoint.errors import (
    BackupExpiredError,
    BackupIntegrityError,
    BackupNotFoundError,
    BackupRestoreError,
    SandboxUnavailableError,
)
from sandpoint.mcp_server import build_server
from sandpoint.models import Progress


@pytest.fixture(params=["local", "http", "direct"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place with a small tree, whose store is a folder, a bucket, or one that files go to by the store's client."""
    if request.param == "local":
        place = Place(tmp_path)
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        place = BucketPlace(tmp_path, server, direct=request.param == "direct")
    build_small(place.tree)
    yield place
    unmount_all(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    build_small(place.tree)
    yield place
    unmount_all(tmp_path)


@dataclass
class Mounted:
    """The digests of all files that were mounted, by whatever means."""

    digests: list[str] = field(default_factory=list)

    def note(self, path: str | bytes) -> None:
        self.digests.append(hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest())


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Mounted:
    found = Mounted()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: str | bytes, *arguments: Any, **options: Any) -> Any:
            found.note(path)
            return function(path, *arguments, **options)

        return called

    monkeypatch.setattr(linux, "loop_device", noting(linux.loop_device))
    monkeypatch.setattr(layers, "fuse_mount_layer", noting(layers.fuse_mount_layer))
    return found


def archive_in(place: Place, backup_id: str) -> bytes:
    key = f"backups/{backup_id}/data.sqsh"
    return place.content(key) if isinstance(place, BucketPlace) else (place.store / key).read_bytes()


def cat(place: Place, backup_id: str, path: str) -> bytes:
    async def read() -> bytes:
        async with await place.service.open_file(backup_id, path) as stream:
            return b"".join([block async for block in stream])

    return anyio.run(read)


# -- theirs here --


@pytest.mark.parametrize("compression", ["lz4", "gzip", "zstd"])
def test_a_tree_comes_back_with_all_that_an_archive_holds(
    place: Place, tmp_path: Path, compression: str, mounted: Mounted
) -> None:
    zoo = tmp_path / "zoo"
    build_zoo(zoo)
    expected = in_whole_seconds(without_acls(list_tree(zoo)))
    backup_id = back_up(place, zoo, compression=compression)
    for mode in ("copy", "overlay"):
        to = tmp_path / mode
        assert place.restore(backup_id, dir=to, mode=mode).mode == mode
        assert_same(expected, in_whole_seconds(list_tree(to)))
    assert mounted.digests
    assert hashlib.sha256(archive_in(place, backup_id)).hexdigest() not in mounted.digests
    place.assert_clean()


def without_acls(listing: Listing) -> Listing:
    """Return what mksquashfs keeps of a tree."""
    kept = {}
    for path, item in listing.items():
        xattrs = tuple(each for each in item.xattrs if not each[0].startswith("system."))
        kept[path] = type(item)(**(vars(item) | {"xattrs": xattrs}))
    return kept


def test_it_is_used_like_any_other(store: Place) -> None:
    before = list_tree(store.tree)
    backup_id = back_up(store, store.tree)
    write(store.tree / "src" / "app.py", "broken\n")
    (store.tree / "run.sh").unlink()
    spoiled = list_tree(store.tree)

    changes = store.diff(backup_id)
    assert (changes.added, changes.modified, changes.removed) == ((), ("src/app.py",), ("run.sh",))
    contents = store.run(store.service.diff_contents, backup_id)
    assert [each.path for each in contents.files] == ["run.sh", "src/app.py"]
    assert "+broken" in str(contents.files[1].patch)
    assert cat(store, backup_id, "src/app.py") == b"print('hello')\n"
    planned = store.restore(backup_id, dry_run=True)
    assert planned.changes is not None
    assert (planned.changes.added, planned.changes.modified) == (("run.sh",), ("src/app.py",))
    assert_same(spoiled, list_tree(store.tree))

    restored = store.restore(backup_id)
    assert_same(in_whole_seconds(before), in_whole_seconds(list_tree(store.tree)))
    assert restored.undo_id is not None
    store.restore(restored.undo_id)
    assert_same(spoiled, list_tree(store.tree))

    verified = store.run(store.service.verify, backup_id)
    assert (verified.ok, verified.size_only) == (True, True)
    assert verified.checked_bytes == len(archive_in(store, backup_id))
    assert not store.run(store.service.verify, restored.undo_id).size_only

    store.run(store.service.delete, backup_id)
    for operation in (store.restore, store.diff):
        with pytest.raises(BackupNotFoundError):
            operation(backup_id)
    store.assert_clean()


def test_ids_of_every_version_are_listed_by_the_time_of_their_making(store: Place) -> None:
    archive = archive_of(store.tree)
    ours = store.create()
    now = datetime.now(UTC)
    made = {}
    for minutes, backup_id in ((30, uuid.uuid4()), (20, uuid.uuid1()), (10, uuid.uuid4())):
        created = (now - timedelta(minutes=minutes)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        made[minutes] = put_backup(
            store, archive, metadata_of(archive, dir="/workspace", id=str(backup_id), createdAt=created)
        )
    newest = put_backup(store, archive, metadata_of(archive, dir="/workspace", id=str(uuid7()), name="v7"))
    assert store.ids() == [newest, ours.id, made[10], made[20], made[30]]

    pages, cursor = [], None
    while True:
        page = store.run(store.service.list, limit=2, cursor=cursor)
        pages += [each.id for each in page.backups]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == store.ids()
    found = store.run(store.service.list, dir="/workspace", name="v7").backups
    assert [(each.id, each.size_bytes, each.sandbox_id) for each in found] == [(newest, len(archive), "cloudflare")]
    assert found[0].name == "v7"
    assert store.run(store.service.get, made[20]).name is None


def test_two_of_them_and_one_of_ours_are_compared(store: Place) -> None:
    first = back_up(store, store.tree, id=str(uuid.uuid4()))
    write(store.tree / "src" / "app.py", "print('later')\n")
    second = back_up(store, store.tree, id=str(uuid.uuid4()))
    ours = store.create()
    for older, newer in ((first, second), (first, ours.id)):
        assert store.diff(older, newer).modified == ("src/app.py",)
        assert store.diff(newer, older).modified == ("src/app.py",)
    same = store.diff(second, ours.id)
    assert (same.added, same.removed) == ((), ())
    contents = store.run(store.service.diff_contents, first, second)
    assert "+print('later')" in str(contents.files[0].patch)
    store.assert_clean()


def test_a_fork_unpacks_it_once(store: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = []

    def extract(layer: str, *arguments: Any, **options: Any) -> None:
        unpacked.append(hashlib.sha256(Path(layer).read_bytes()).hexdigest())
        original(layer, *arguments, **options)

    original = squashfs.extract
    monkeypatch.setattr(squashfs, "extract", extract)
    backup_id = back_up(store, store.tree)
    dirs = [str(store.base / f"fork-{number}") for number in range(3)]
    for mode in ("copy", "overlay"):
        unpacked.clear()
        store.run(store.service.fork, backup_id, dirs, mode=mode)
        assert unpacked.count(hashlib.sha256(archive_in(store, backup_id)).hexdigest()) == 1
        for each in dirs:
            assert_same(in_whole_seconds(list_tree(store.tree)), in_whole_seconds(list_tree(Path(each))))
    store.assert_loops(1)
    for each in dirs:
        store.unmount(Path(each), undo=False)
    store.assert_unmounted()
    store.assert_clean()


def test_nothing_of_ours_is_built_on_it(store: Place) -> None:
    backup_id = back_up(store, store.tree)
    write(store.tree / "src" / "app.py", "print('changed')\n")
    store.restore(backup_id, undo=False)
    made = store.create()
    assert (made.kind, made.parent_id) == ("full", None)
    store.restore(backup_id, mode="overlay")
    write(store.tree / "new", "new\n")
    on_overlay = store.create()
    assert (on_overlay.kind, on_overlay.parent_id) == ("full", None)
    changed = in_whole_seconds(list_tree(store.tree))
    undone = store.unmount()
    store.run(store.service.delete, backup_id)
    store.restore(on_overlay.id)
    assert_same(changed, in_whole_seconds(list_tree(store.tree)))
    assert undone.undo_id is None or store.run(store.service.verify, undone.undo_id).ok


def test_those_that_have_expired_are_pruned(store: Place) -> None:
    old = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    expired = back_up(store, store.tree, id=str(uuid.uuid4()), ttl=3600, createdAt=old)
    living = back_up(store, store.tree, id=str(uuid.uuid4()))
    ours = store.create()
    with pytest.raises(BackupExpiredError):
        store.restore(expired)
    assert store.run(store.service.prune).removed == (expired,)
    assert sorted(store.ids()) == sorted([living, ours.id])
    store.restore(living)
    ruled = store.run(store.service.prune, keep_last=1)
    assert living not in ruled.removed  # rules are for each sandbox and directory
    assert store.run(store.service.verify, living).ok


def test_what_is_being_written_is_not_pruned(store: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK leaves no marker: its archive is there before its metadata."""
    archive = archive_of(store.tree)
    put(store, f"backups/{ID}/data.sqsh", archive)
    store.create()
    assert ID not in store.run(store.service.prune).abandoned
    put_backup(store, archive, metadata_of(archive, dir=store.tree))
    write(store.tree / "src" / "app.py", "broken\n")
    store.restore(ID)
    assert (store.tree / "src" / "app.py").read_text() == "print('hello')\n"

    abandoned = str(uuid.uuid4())
    put(store, f"backups/{abandoned}/data.sqsh", archive)
    monkeypatch.setattr("sandpoint.stores.base.UNMARKED_S", -10)
    assert store.run(store.service.prune).abandoned == (abandoned,)
    assert store.run(store.service.verify, ID).ok
    store.assert_clean()


def test_progress_is_told(store: Place) -> None:
    backup_id = back_up(store, store.tree)
    phases: list[str] = []

    async def report(progress: Progress) -> None:
        phases.append(progress.phase)

    store.restore(backup_id, undo=False, report=report)
    assert list(dict.fromkeys(phases))[:4] == ["fetching", "extracting", "reading", "archiving"]


def test_that_its_size_alone_was_compared_is_said_in_plain_words(place: Place) -> None:
    backup_id = back_up(place, place.tree)
    sandpoint = Program(SANDPOINT_STORE=place.store.as_uri(), SANDPOINT_STATE_DIR=str(place.state))
    told = sandpoint("verify", backup_id)
    assert (told.status, told.err) == (0, "")
    assert "its size" in told.out
    assert "whole" not in told.out
    assert sandpoint("verify", backup_id, "--json").json["size_only"] is True


@pytest.mark.anyio
async def test_that_its_size_alone_was_compared_is_said_to_a_model(place: Place) -> None:
    backup_id = back_up(place, place.tree)
    async with Client(build_server(place.service)) as client:
        result = await client.call_tool("verify_backup", {"backup_id": backup_id})
        assert result.structured_content is not None
        assert result.structured_content["ok"] is True
        assert "size" in str(result.structured_content["note"])
        assert "size" in text(result)


# -- ours there --


def test_ours_when_full_are_what_the_sdk_reads(store: Place, tmp_path: Path) -> None:
    backup = store.create(name="ours")
    metadata = json.loads(
        store.content(f"backups/{backup.id}/meta.json")
        if isinstance(store, BucketPlace)
        else (store.store / f"backups/{backup.id}/meta.json").read_bytes()
    )
    archive = archive_in(store, backup.id)
    assert (metadata["id"], metadata["dir"], metadata["name"]) == (backup.id, str(store.tree), "ours")
    assert (metadata["sizeBytes"], type(metadata["ttl"])) == (len(archive), int)
    assert datetime.fromisoformat(metadata["createdAt"]) == backup.created_at
    assert metadata["createdAt"].endswith("Z")
    (tmp_path / "archive").write_bytes(archive)
    subprocess.run(
        ["unsquashfs", "-no-progress", "-quiet", "-dest", tmp_path / "there", tmp_path / "archive"],
        check=True,
        capture_output=True,
    )
    assert_same(in_whole_seconds(list_tree(store.tree)), in_whole_seconds(list_tree(tmp_path / "there")))


# -- damage --


def truncated(archive: bytes) -> bytes:
    return archive[: len(archive) // 2]


def longer(archive: bytes) -> bytes:
    return archive + b"more"


def garbage(archive: bytes) -> bytes:
    return os.urandom(len(archive))


def broken_inside(archive: bytes) -> bytes:
    return archive[:200] + b"\xff" * 4000 + archive[4200:]


def nothing(_archive: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, longer, nothing])
def test_one_of_another_size_changes_nothing(store: Place, damage: Callable[[bytes], bytes], mounted: Mounted) -> None:
    whole = archive_of(store.tree)
    backup_id = put_backup(store, damage(whole), metadata_of(whole, dir=store.tree))
    assert_refused(store, backup_id)
    assert not store.run(store.service.verify, backup_id).ok
    assert mounted.digests == []


@pytest.mark.parametrize("damage", [truncated, garbage, broken_inside, nothing])
def test_a_damaged_one_of_the_size_that_is_noted_changes_nothing(
    place: Place, damage: Callable[[bytes], bytes], mounted: Mounted
) -> None:
    write(place.tree / "text", "".join(f"{number}\n" for number in range(50_000)))
    damaged = damage(archive_of(place.tree, compression="zstd"))
    backup_id = put_backup(place, damaged, metadata_of(damaged, dir=place.tree))
    assert_refused(place, backup_id)
    assert mounted.digests == []


def assert_refused(place: Place, backup_id: str) -> None:
    before = list_tree(place.tree)
    for mode in ("copy", "overlay"):
        with pytest.raises(BackupIntegrityError, match=r"data\.sqsh"):
            place.restore(backup_id, mode=mode)
    with pytest.raises(BackupIntegrityError):
        place.run(place.service.fork, backup_id, [str(place.base / "fork")])
    assert not (place.base / "fork").exists()
    assert_same(before, list_tree(place.tree))
    assert place.ids() == [backup_id]
    place.assert_clean()


def test_a_missing_archive_is_said(store: Place) -> None:
    archive = archive_of(store.tree)
    put(store, f"backups/{ID}/meta.json", json.dumps(metadata_of(archive, dir=store.tree)).encode())
    for operation in (store.restore, store.diff):
        with pytest.raises(BackupIntegrityError, match=r"data\.sqsh is missing"):
            operation(ID)
    verified = store.run(store.service.verify, ID)
    assert not verified.ok
    assert "missing" in str(verified.problem)
    store.run(store.service.delete, ID)
    assert store.ids() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dir", 3),
        ("dir", None),
        ("sizeBytes", -1),
        ("sizeBytes", "many"),
        ("ttl", "long"),
        ("createdAt", "yesterday"),
        ("createdAt", 1e300),
        ("id", "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"),
        ("name", ["a"]),
    ],
)
def test_metadata_that_is_none_is_passed_over(place: Place, name: str, value: object) -> None:
    archive = archive_of(place.tree)
    put_backup(place, archive, metadata_of(archive, dir=place.tree) | {"id": ID})
    put(place, f"backups/{ID}/meta.json", json.dumps(metadata_of(archive, dir=place.tree) | {name: value}).encode())
    assert place.ids() == []
    with pytest.raises(BackupIntegrityError):
        place.restore(ID)


# -- malice --


def uncompressed(tree: Path) -> bytes:
    """Return an archive whose names can be found in its bytes."""
    return archive_of(tree, "-noI", "-noD", "-noF", "-noX")


@pytest.mark.parametrize(
    "name", [b"../../../../../escaped", b"/escaped-by-root-paths", b"up/../../../../escaped", b".."]
)
def test_names_that_lead_out_are_refused(place: Place, tmp_path: Path, name: bytes) -> None:
    tree = tmp_path / "theirs"
    placeholder = b"x" * len(name)
    write(tree / os.fsdecode(placeholder), "escaped\n")
    archive = uncompressed(tree)
    assert archive.count(placeholder) == 1
    backup_id = put_backup(place, *hostile(archive.replace(placeholder, name)))
    before = everything_in(tmp_path)
    with pytest.raises(BackupIntegrityError):
        place.restore(backup_id, dir=tmp_path / "to")
    assert everything_in(tmp_path) == before
    assert not os.path.lexists("/escaped-by-root-paths")
    place.assert_clean()


@pytest.mark.parametrize("first", ["link", "folder"])
def test_a_link_and_a_folder_of_one_name_lead_nowhere(place: Place, tmp_path: Path, first: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = tmp_path / "theirs"
    link, folder = ("name_a", "name_b") if first == "link" else ("name_b", "name_a")
    write(tree / folder / "file", "escaped\n")
    (tree / link).symlink_to(outside)
    archive = uncompressed(tree).replace(b"name_b", b"name_a")
    backup_id = put_backup(place, *hostile(archive))
    for mode in ("copy", "overlay"):
        with pytest.raises(BackupIntegrityError):
            place.restore(backup_id, dir=tmp_path / "to", mode=mode)
    assert list(outside.iterdir()) == []
    place.assert_clean()


def hostile(archive: bytes) -> tuple[bytes, dict[str, Any]]:
    return archive, metadata_of(archive, dir="/workspace")


def everything_in(folder: Path) -> set[str]:
    """Return all paths but those in the state directory."""
    found = {str(path) for path in folder.rglob("*")}
    return {path for path in found if not path.startswith(str(folder / "state"))}


def test_an_archive_that_fills_the_state_directory_leaves_nothing_there(tmp_path: Path) -> None:
    tree = tmp_path / "theirs"
    write(tree / "bomb", b"a" * (64 << 20))
    with tmpfs(tmp_path / "memory", size="16m") as memory:
        place = Place(tmp_path, state=memory / "state")
        build_small(place.tree)
        backup_id = back_up(place, tree, compression="zstd")
        before = list_tree(place.tree)
        for operation in (place.restore, place.diff):
            with pytest.raises(SandboxUnavailableError, match="No space left on device") as caught:
                operation(backup_id)
            assert "damaged" not in message(caught.value)
        assert_same(before, list_tree(place.tree))
        place.assert_clean()
        used = sum(path.lstat().st_size for path in place.state.rglob("*") if path.is_file())
        assert used < 1 << 20


def test_what_is_cached_gives_way_to_one_that_is_unpacked(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", size="24m") as memory:
        place = Place(tmp_path, state=memory / "state")
        write(place.tree / "large", os.urandom(4 << 20))
        backup_id = back_up(place, place.tree)
        cached = write(place.state / "cache" / hashlib.sha256(b"").hexdigest(), bytes(18 << 20))
        place.restore(backup_id, dir=tmp_path / "to")
        assert not cached.exists()
        assert (tmp_path / "to" / "large").read_bytes() == (place.tree / "large").read_bytes()
        place.assert_clean()


def test_a_state_directory_behind_a_link_serves_as_well(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    place = Place(tmp_path, state=tmp_path / "link" / "state")
    build_small(place.tree)
    backup_id = back_up(place, place.tree)
    write(place.tree / "src" / "app.py", "broken\n")
    place.restore(backup_id)
    assert (place.tree / "src" / "app.py").read_text() == "print('hello')\n"


# -- as an ordinary user --

_AS_USER = """
import sys
from pathlib import Path
from helpers.place import Place
from sandpoint.errors import SandpointError
place = Place(Path(sys.argv[1]))
try:
    place.restore(sys.argv[2], dir=place.base / "to", mode=sys.argv[3])
except SandpointError as error:
    print(error.code, error)
place.assert_clean()
"""


def as_user(base: Path, backup_id: str, mode: str = "copy") -> str:
    tests = Path(__file__).parents[1]
    done = ordinary.run(
        [sys.executable, "-c", _AS_USER, base, backup_id, mode],
        cwd=base,
        home=base / "home",
        reach=[tests],
        env={"PYTHONPATH": os.pathsep.join([str(tests), *filter(None, sys.path)])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def of_user(tmp_path: Path) -> Place:
    base = tmp_path / "user"
    base.mkdir()
    place = Place(base)
    place.store.mkdir()
    os.chown(base, ordinary.UID, ordinary.GID)
    return place


def test_an_ordinary_user_restores_it_too(of_user: Place, tmp_path: Path) -> None:
    tree = tmp_path / "theirs"
    build_small(tree)
    (tree / "closed").mkdir(mode=0o500)
    backup_id = back_up(of_user, tree, dir="/workspace")
    assert as_user(of_user.base, backup_id) == ""
    found = list_tree(of_user.base / "to")
    expected = list_tree(tree)
    assert {path: (item.kind, item.mode, item.sha256, item.target) for path, item in found.items()} == {
        path: (item.kind, item.mode, item.sha256, item.target) for path, item in expected.items()
    }
    assert {item.uid for item in found.values()} == {ordinary.UID}


def test_what_an_ordinary_user_may_not_read_is_said(of_user: Place, tmp_path: Path) -> None:
    tree = tmp_path / "theirs"
    build_small(tree)
    write(tree / "secret", "secret\n", mode=0)
    told = as_user(of_user.base, back_up(of_user, tree, dir="/workspace"))
    assert told.startswith(f"{BackupRestoreError.code} ")
    assert "secret" in told
    assert not (of_user.base / "to").exists()


# -- stopped and killed --


@pytest.mark.parametrize("phase", ["fetching", "extracting", "archiving"])
def test_one_that_is_cancelled_leaves_nothing(store: Place, phase: str) -> None:
    backup_id = back_up(store, store.tree)
    write(store.tree / "src" / "app.py", "mine\n")
    before = list_tree(store.tree)

    async def cancelled() -> bool:
        with anyio.CancelScope() as scope:

            async def report(progress: Progress) -> None:
                if progress.phase == phase:
                    scope.cancel()

            await store.service.restore(backup_id, report=report)
        return scope.cancelled_caught

    assert anyio.run(cancelled)
    assert_same(before, list_tree(store.tree))
    assert store.ids() == [backup_id]
    store.assert_clean()


def test_one_that_was_killed_in_the_middle_leaves_nothing(place: Place, tmp_path: Path, killer: KillerProcess) -> None:
    backup_id = back_up(place, place.tree)
    expected = in_whole_seconds(list_tree(place.tree))

    def killed_at(at: int) -> bool:
        killed = killer.run(tmp_path, place.state, "diff", backup_id, at=at, since="sandpoint.engine.foreign.adopt")
        place.run(place.service.prune)
        place.assert_clean()
        return killed

    assert points(killed_at) > 10
    place.restore(backup_id, dir=tmp_path / "to")
    assert_same(expected, in_whole_seconds(list_tree(tmp_path / "to")))
    place.assert_clean()
