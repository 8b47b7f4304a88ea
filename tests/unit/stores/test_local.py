"""The store in a folder: its place, dead writers, and damage."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from helpers.stores import LAYER, MANIFEST, describe, id_at, ids, put, read_file, upload_files
from sandpoint.errors import BackupIntegrityError, InvalidBackupConfigError, StoreUnavailableError
from sandpoint.stores import open_store
from sandpoint.stores.local import LocalStore, open_local_store

pytestmark = pytest.mark.anyio

FIRST, SECOND, THIRD = id_at(1), id_at(2), id_at(3)

WRITER = """
import sys, time, anyio
from sandpoint.stores.local import LocalStore
async def main():
    upload = await LocalStore(sys.argv[1]).begin(sys.argv[2])
    open(upload.staging + "/data.sqsh.partial", "wb").write(b"half")
    print("begun", flush=True)
    time.sleep(600)
anyio.run(main)
"""


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def dead_writer(path: Path, backup_id: str) -> None:
    """Let a process begin a backup, and kill it."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), backup_id], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"begun\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


def edit(path: Path, backup_id: str, **changes: Any) -> None:
    file = path / "store" / "backups" / backup_id / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def left_in(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.name != "lock")


# -- where it is --


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///srv/store", "/srv/store"),
        ("file://localhost/srv/store/", "/srv/store"),
        ("file:///srv/a%20b", "/srv/a b"),
        ("file:///srv/../srv/x", "/srv/x"),
    ],
)
def test_a_url_names_a_folder(url: str, path: str) -> None:
    assert open_store(url).local_path == path


@pytest.mark.parametrize("url", ["file://host/x", "file:relative", "file:", "file:///", "file:///a%00b"])
def test_a_url_that_names_none(url: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"store: .*three slashes"):
        open_store(url)


@pytest.mark.parametrize("url", ["", "/srv/store", "s3x://b", "ftp://x/y", "c:\\x"])
def test_a_url_of_no_store(url: str) -> None:
    assert open_local_store(url) is None
    with pytest.raises(InvalidBackupConfigError, match="is no URL of a store"):
        open_store(url)


@pytest.mark.parametrize(
    "url", ["S3://key:hush@b", "s3a://key:hush@b", "https://key:hush@host/b", "file://key:hush@b/x"]
)
def test_a_login_that_somebody_wrote_into_a_url_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidBackupConfigError) as raised:
        open_store(url)
    assert "hush" not in str(raised.value)


async def test_the_folder_is_made_when_it_is_written_to_and_is_the_users_own(local: LocalStore, tmp_path: Path) -> None:
    await ids(local)
    assert os.listdir(tmp_path) == []
    await put(local, FIRST)
    for folder in ("backups", "incoming", f"backups/{FIRST}"):
        assert (tmp_path / "store" / folder).stat().st_mode & 0o077 == 0


async def test_the_files_are_those_of_the_storage_format(local: LocalStore, tmp_path: Path) -> None:
    await put(local, FIRST, name="n")
    folder = tmp_path / "store" / "backups" / FIRST
    assert sorted(os.listdir(folder)) == ["data.sqsh", "manifest.zst", "meta.json"]
    written = json.loads((folder / "meta.json").read_text())
    assert {"id", "dir", "name", "sizeBytes", "ttl", "createdAt", "formatVersion", "expiresAt"} <= written.keys()


# -- writers --


async def test_a_dead_writers_parts_are_cleared_by_the_next(local: LocalStore, tmp_path: Path) -> None:
    dead_writer(tmp_path / "store", FIRST)
    assert await ids(local) == []
    await put(local, SECOND)
    assert not any(FIRST in name for name in left_in(tmp_path / "store"))


async def test_a_dead_writers_parts_are_reclaimed(local: LocalStore, tmp_path: Path) -> None:
    dead_writer(tmp_path / "store", FIRST)
    assert await local.reclaim() == ([FIRST], 4)
    assert left_in(tmp_path / "store") == ["backups", "incoming"]


async def test_a_living_writer_is_left_alone(local: LocalStore, tmp_path: Path) -> None:
    other = LocalStore(str(tmp_path / "store"))
    upload = await upload_files(other, FIRST)
    await put(local, SECOND)
    assert await local.reclaim() == ([], 0)
    await other.commit(describe(FIRST, upload))
    assert await ids(local) == [SECOND, FIRST]


async def test_a_writer_that_ends_while_another_looks_is_no_error(local: LocalStore, tmp_path: Path) -> None:
    await put(local, FIRST)
    (tmp_path / "store" / "incoming" / id_at(9)).symlink_to("gone")  # listed, and not there when it is opened
    await put(local, SECOND)
    await local.hide(FIRST)
    assert (await local.reclaim())[0] == [FIRST]


async def test_a_writer_that_died_after_its_commit_takes_nothing_with_it(local: LocalStore, tmp_path: Path) -> None:
    parent = await put(local, FIRST)
    (tmp_path / "store" / "incoming" / FIRST).touch()
    child = describe(SECOND, await upload_files(local, SECOND), layers=parent.layers)
    await local.commit(child)
    (tmp_path / "store" / "incoming" / FIRST).touch()
    await local.hide(FIRST)
    await put(local, id_at(3))
    assert read_file(local, child.layers) != []


async def test_a_dead_writer_that_is_hidden_while_another_clears_up_takes_nothing_with_it(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await put(local, FIRST)
    child = describe(SECOND, await upload_files(local, SECOND), layers=parent.layers)
    await local.commit(child)
    (tmp_path / "store" / "incoming" / FIRST).touch()
    find = local._dead_writers
    hiding = threading.Thread(target=LocalStore(str(tmp_path / "store"))._hide, args=(FIRST,))

    def hidden_meanwhile() -> list[str]:
        found = find()
        hiding.start()
        hiding.join(0.2)
        return found

    monkeypatch.setattr(local, "_dead_writers", hidden_meanwhile)
    await local.begin(id_at(3))
    hiding.join()
    assert await ids(local) == [SECOND]
    assert read_file(local, child.layers) == [LAYER]


async def test_what_a_dead_writer_needed_is_not_kept(local: LocalStore, tmp_path: Path) -> None:
    parent = await put(local, FIRST)
    dead_writer(tmp_path / "store", SECOND)
    (tmp_path / "store" / "incoming" / SECOND).write_text(parent.layers[0].key)
    await local.hide(FIRST)
    found, freed = await local.reclaimable()
    assert (sorted(found), freed) == ([FIRST, SECOND], len(LAYER + MANIFEST) + 4)
    assert sorted(left_in(tmp_path / "store" / "incoming")) == [SECOND]
    found, freed = await local.reclaim()
    assert (sorted(found), freed) == ([FIRST, SECOND], len(LAYER + MANIFEST) + 4)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["_markers", "_ids", "_awaited_keys", "_named_keys", "_read_strictly", "_remove"])
async def test_a_backup_that_ends_at_any_step_of_a_reclaim_keeps_what_it_needs(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    parent, gone = await put(local, FIRST), await put(local, THIRD)
    writer = LocalStore(str(tmp_path / "store"))
    upload = await upload_files(writer, SECOND, parent.layers)
    child = describe(SECOND, upload, layers=parent.layers)
    await local.hide(FIRST)
    await local.hide(THIRD)
    original = getattr(local, step)

    def with_a_commit(*args: Any) -> Any:
        result = original(*args) if after else None
        if SECOND in writer._writing:
            writer._commit(child)
        return result if after else original(*args)

    monkeypatch.setattr(local, step, with_a_commit)
    await local.reclaim()
    assert await ids(local) == [SECOND]
    assert read_file(local, child.files) == [MANIFEST, LAYER]
    assert not (tmp_path / "store" / gone.layers[0].key).exists()


async def test_a_full_disk_leaves_no_half_a_note_of_needs(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await put(local, FIRST)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("sandpoint.stores.local.open", fail, raising=False)
        with pytest.raises(StoreUnavailableError, match="No space left"):
            await local.begin(SECOND, parent.layers)
        await local.abandon(SECOND)
    assert os.listdir(tmp_path / "store" / "incoming") == []
    await put(local, SECOND)


async def test_marks_do_not_pile_up(local: LocalStore, tmp_path: Path) -> None:
    await put(local, FIRST)
    await upload_files(local, SECOND)
    await local.abandon(SECOND)
    assert os.listdir(tmp_path / "store" / "incoming") == []


# -- damage --

DAMAGE = [
    {"formatVersion": 2},
    {"id": id_at(7)},
    {"createdAt": "2026-01-01T00:00:00"},
    {"createdAt": "9999-12-31T00:00:00Z"},
    {"dir": "/" + "d" * 4096},
    {"expiresAt": 5e99},
    {"ttl": 10**400},
    {"layers": []},
    {"excludes": [""]},
    {"manifest": None},
]


@pytest.mark.parametrize("change", DAMAGE, ids=lambda change: repr(change)[:40])
async def test_damaged_metadata_is_said_and_passed_over_in_lists(
    local: LocalStore, tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await put(local, FIRST)
    await put(local, SECOND)
    edit(tmp_path, SECOND, **change)
    with pytest.raises(BackupIntegrityError, match=f"the metadata of backup {SECOND} is"):
        await local.read(SECOND)
    with caplog.at_level(logging.WARNING):
        assert await ids(local) == [FIRST]
    assert SECOND in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * (2 << 20)])
async def test_what_is_no_metadata(local: LocalStore, tmp_path: Path, content: bytes) -> None:
    await put(local, FIRST)
    (tmp_path / "store" / "backups" / FIRST / "meta.json").write_bytes(content)
    with pytest.raises(BackupIntegrityError):
        await local.read(FIRST)
    assert await ids(local) == []


async def test_nothing_is_reclaimed_while_metadata_is_damaged(local: LocalStore, tmp_path: Path) -> None:
    parent = await put(local, FIRST)
    await put(local, SECOND)
    edit(tmp_path, SECOND, formatVersion=9)
    await local.hide(FIRST)
    with pytest.raises(BackupIntegrityError):
        await local.reclaim()
    assert read_file(local, parent.layers) != []


async def test_a_folder_of_markers_that_is_not_there_is_no_error(local: LocalStore, tmp_path: Path) -> None:
    await put(local, FIRST)
    await local.hide(FIRST)
    (tmp_path / "store" / "incoming").rmdir()
    assert (await local.reclaim())[0] == [FIRST]


async def test_what_is_not_ours_is_neither_listed_nor_removed(local: LocalStore, tmp_path: Path) -> None:
    await put(local, FIRST)
    backups = tmp_path / "store" / "backups"
    (backups / "notes.txt").write_text("mine")
    (backups / FIRST.upper().replace("0", "A")).mkdir()
    (backups / SECOND).write_text("a file")
    assert await ids(local) == [FIRST]
    await put(local, id_at(5))
    assert (backups / "notes.txt").exists()


async def test_a_store_that_cannot_be_used_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LocalStore(str(tmp_path / "file" / "store"))
    for use in (store.begin, store.hide):
        with pytest.raises(StoreUnavailableError, match=r"the store in .* cannot be used: .* set SANDPOINT_STORE"):
            await use(FIRST)
