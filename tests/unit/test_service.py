"""What the service decides without a tree: lists, cursors, expiry, arguments, and what a failure hides."""

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from helpers.stores import describe, id_at, put, upload_files
from sandpoint import BackupService
from sandpoint.errors import (
    BackupExpiredError,
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    SandpointError,
)
from sandpoint.models import Backup, PruneResult
from sandpoint.sandboxes.local import LocalSandbox
from sandpoint.stores.local import LocalStore

pytestmark = pytest.mark.anyio

FIRST, SECOND, THIRD = id_at(1), id_at(2), id_at(3)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


@pytest.fixture
def service(tmp_path: Path, store: LocalStore) -> BackupService:
    return BackupService(LocalSandbox(str(tmp_path / "state")), store)


def age(tmp_path: Path, backup_id: str, *, seconds: float, ttl: float) -> None:
    """Make a backup as old as if it had been created so many seconds ago."""
    file = tmp_path / "store" / "backups" / backup_id / "meta.json"
    created = datetime.now(UTC) - timedelta(seconds=seconds)
    expires = created + timedelta(seconds=ttl)
    changes = {"createdAt": created.isoformat(), "expiresAt": expires.isoformat(), "ttl": ttl}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def listed(backups: tuple[Backup, ...]) -> list[str]:
    return [backup.id for backup in backups]


# -- lists --


async def test_an_empty_list(service: BackupService) -> None:
    page = await service.list()
    assert (page.backups, page.next_cursor) == ((), None)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [THIRD, SECOND, FIRST]),
        ({"dir": "/a"}, [THIRD, FIRST]),
        ({"dir": "/a/"}, [THIRD, FIRST]),
        ({"dir": "/a/b"}, []),
        ({"dir": "/"}, []),
        ({"name": "n"}, [SECOND, FIRST]),
        ({"name": "N"}, []),
        ({"dir": "/a", "name": "n"}, [FIRST]),
        ({"limit": 1}, [THIRD]),
    ],
)
async def test_filters(service: BackupService, store: LocalStore, filters: dict[str, Any], expected: list[str]) -> None:
    await put(store, FIRST, dir="/a", name="n")
    await put(store, SECOND, dir="/ab", name="n")
    await put(store, THIRD, dir="/a")
    assert listed((await service.list(**filters)).backups) == expected


async def test_pages_hold_every_backup_once_while_others_come_and_go(service: BackupService, store: LocalStore) -> None:
    for number in range(7):
        await put(store, id_at(number), name="even" if number % 2 == 0 else "odd")
    first = await service.list(limit=2, name="even")
    await put(store, id_at(20), name="even")
    await store.hide(id_at(4))
    second = await service.list(limit=2, name="even", cursor=first.next_cursor)
    assert (listed(first.backups), listed(second.backups)) == ([id_at(6), id_at(4)], [id_at(2), id_at(0)])
    assert second.next_cursor is None


async def test_a_full_last_page_has_no_cursor(service: BackupService, store: LocalStore) -> None:
    await put(store, FIRST)
    await put(store, SECOND)
    assert (await service.list(limit=2)).next_cursor is None
    assert (await service.list(limit=1)).next_cursor is not None


@pytest.mark.parametrize(
    "arguments",
    [{"cursor": "x"}, {"cursor": ""}, {"limit": 0}, {"limit": 1001}, {"limit": True}, {"dir": 5}, {"name": ""}],
)
async def test_a_bad_list(service: BackupService, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidBackupConfigError, match=next(iter(arguments))):
        await service.list(**arguments)


async def test_the_expired_are_listed_when_asked_for(service: BackupService, store: LocalStore, tmp_path: Path) -> None:
    await put(store, FIRST)
    await put(store, SECOND)
    age(tmp_path, FIRST, seconds=100, ttl=150)
    assert listed((await service.list()).backups) == [SECOND]
    assert listed((await service.list(include_expired=True)).backups) == [SECOND, FIRST]


async def test_damage_does_not_hide_the_others(service: BackupService, store: LocalStore, tmp_path: Path) -> None:
    await put(store, FIRST)
    await put(store, SECOND)
    (tmp_path / "store" / "backups" / SECOND / "meta.json").write_text("{")
    assert listed((await service.list()).backups) == [FIRST]


# -- expiry --


@pytest.mark.parametrize(
    ("ttl", "seconds", "expired"),
    [
        (60, 50, False),
        (60, 61, True),
        (100, 50, False),
        (100, 61, True),
        (1000, 930, False),
        (1000, 945, True),
        (5, 3, False),
    ],
)
async def test_expiry_at_restore(
    service: BackupService, store: LocalStore, tmp_path: Path, ttl: float, seconds: float, expired: bool
) -> None:
    await put(store, FIRST, dir=str(tmp_path / "tree"))
    age(tmp_path, FIRST, seconds=seconds, ttl=ttl)
    with pytest.raises(SandpointError) as caught:
        await service.restore(FIRST, dry_run=True)
    assert isinstance(caught.value, BackupExpiredError) is expired, caught.value


async def test_prune_takes_what_is_over_and_not_what_is_in_its_buffer(
    service: BackupService, store: LocalStore, tmp_path: Path
) -> None:
    for backup_id in (FIRST, SECOND, THIRD):
        await put(store, backup_id)
    age(tmp_path, FIRST, seconds=1001, ttl=1000)
    age(tmp_path, SECOND, seconds=990, ttl=1000)
    result = await service.prune()
    assert (result.removed, result.abandoned) == ((FIRST,), ())
    assert result.freed_bytes > 0
    assert listed((await service.list(include_expired=True)).backups) == [THIRD, SECOND]


# -- prune --


def kept(result: PruneResult) -> dict[str, bool]:
    return {decision.id: decision.keep for decision in result.decisions}


async def test_prune_by_rules(service: BackupService, store: LocalStore) -> None:
    await put(store, FIRST, name="release-1")
    await put(store, SECOND)
    await put(store, THIRD)
    result = await service.prune(keep_last=1, keep_names=["release-*"])
    assert kept(result) == {THIRD: True, SECOND: False, FIRST: True}
    assert [decision.reason for decision in result.decisions] == [
        "1st of the newest 1",
        "no rule keeps it",
        "name 'release-*'",
    ]
    assert (result.removed, result.abandoned, result.freed_bytes, result.dry_run) == ((SECOND,), (), 17, False)
    assert listed((await service.list()).backups) == [THIRD, FIRST]
    assert sorted(os.listdir(Path(str(store.local_path), "backups"))) == [FIRST, THIRD]


async def test_prune_of_one_directory(service: BackupService, store: LocalStore, tmp_path: Path) -> None:
    for number, dir in enumerate(["/a", "/a", "/b", "/b"]):
        await put(store, id_at(number), dir=dir)
    age(tmp_path, id_at(2), seconds=2, ttl=1)
    result = await service.prune(keep_last=1, dir="/a/")
    assert kept(result) == {id_at(1): True, id_at(0): False}
    assert listed((await service.list(include_expired=True)).backups) == [id_at(3), id_at(2), id_at(1)]


async def test_a_dry_run_changes_nothing_and_foresees_all(
    service: BackupService, store: LocalStore, tmp_path: Path
) -> None:
    parent = await put(store, FIRST)
    child = await upload_files(store, SECOND)
    await store.commit(describe(SECOND, child, layers=(*parent.layers, *describe(SECOND, child).layers)))
    await put(store, THIRD)
    age(tmp_path, THIRD, seconds=2, ttl=1)
    await put(store, id_at(4), dir="/other")
    await store.hide(id_at(4))
    files = sorted(Path(str(store.local_path)).rglob("*"))  # noqa: ASYNC240 - a test may wait
    foreseen = await service.prune(keep_last=1, dry_run=True)
    assert foreseen.dry_run
    assert (foreseen.removed, foreseen.abandoned) == ((FIRST, THIRD), (id_at(4),))
    assert foreseen.freed_bytes == 17 + 17 + 10  # the first one's layer is needed by the second
    assert sorted(Path(str(store.local_path)).rglob("*")) == files  # noqa: ASYNC240
    done = await service.prune(keep_last=1)
    assert done == foreseen.model_copy(update={"dry_run": False})


async def test_a_store_that_is_not_there_has_nothing_to_prune(service: BackupService, tmp_path: Path) -> None:
    for dry_run in (True, False):
        result = await service.prune(keep_last=1, dry_run=dry_run)
        assert (result.removed, result.abandoned, result.freed_bytes, result.decisions) == ((), (), 0, ())
    assert not (tmp_path / "store").exists()


async def test_prune_says_what_damage_keeps_it_from_freeing(
    service: BackupService, store: LocalStore, tmp_path: Path
) -> None:
    for backup_id in (FIRST, SECOND, THIRD):
        await put(store, backup_id)
    (tmp_path / "store" / "backups" / SECOND / "meta.json").write_text("{")
    with pytest.raises(BackupIntegrityError, match=f"backup {SECOND} is damaged"):
        await service.prune(keep_last=1, dry_run=True)
    assert listed((await service.list()).backups) == [THIRD, FIRST]
    with pytest.raises(BackupIntegrityError, match=rf"^1 backups were deleted, .* no space .* {SECOND} .*delete that"):
        await service.prune(keep_last=1)
    assert listed((await service.list()).backups) == [THIRD]
    await service.delete(SECOND)
    assert os.listdir(tmp_path / "store" / "backups") == [THIRD]


async def test_prune_waits_for_its_turn(service: BackupService, store: LocalStore, tmp_path: Path) -> None:
    await put(store, FIRST)
    await put(store, SECOND)
    async with LocalSandbox(str(tmp_path / "state")).turn():
        with anyio.move_on_after(0.1):
            await service.prune(keep_last=1)
        assert listed((await service.list()).backups) == [SECOND, FIRST]


async def test_prune_forgets_old_notes_of_captures(service: BackupService, tmp_path: Path) -> None:
    sandbox = LocalSandbox(str(tmp_path / "state"))
    for dir in ("/old", "/new"):
        await sandbox.note_capture(dir, FIRST)
    old = next(iter((tmp_path / "state" / "captures").iterdir()))
    os.utime(old, (0, 0))
    await service.prune(dry_run=True)
    assert old.exists()
    await service.prune()
    assert not old.exists()
    assert len(os.listdir(tmp_path / "state" / "captures")) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"keep_last": 0}, "keep_last: must be at least 1 (got 0)"),
        ({"keep_hourly": True}, "keep_hourly: must be a whole number (got True)"),
        ({"keep_daily": "3"}, "keep_daily: must be a whole number (got '3')"),
        ({"keep_weekly": 1.0}, "keep_weekly: "),
        ({"keep_names": "release-*"}, "keep_names: "),
        ({"keep_names": [""]}, "keep_names.0: "),
        ({"keep_names": ["a\n"]}, "keep_names.0: a pattern may not hold control characters"),
        ({"dir": 5}, "dir: "),
        ({"dir": "work"}, "dir: 'work' is relative"),
        ({"dry_run": 1}, "dry_run: "),
    ],
)
async def test_a_bad_prune_removes_nothing(
    service: BackupService, store: LocalStore, options: dict[str, Any], why: str
) -> None:
    await put(store, FIRST)
    with pytest.raises(InvalidBackupConfigError) as caught:
        await service.prune(**options)
    assert str(caught.value).startswith(why)
    assert listed((await service.list()).backups) == [FIRST]


# -- delete --


async def test_delete(service: BackupService, store: LocalStore) -> None:
    await put(store, FIRST)
    result = await service.delete(FIRST.upper())
    assert (result.id, result.deleted, result.freed_bytes) == (FIRST, True, 17)
    with pytest.raises(BackupNotFoundError):
        await service.delete(FIRST)


async def test_a_backup_with_damaged_metadata_can_be_deleted(
    service: BackupService, store: LocalStore, tmp_path: Path
) -> None:
    await put(store, FIRST)
    (tmp_path / "store" / "backups" / FIRST / "meta.json").write_text("{")
    assert (await service.delete(FIRST)).freed_bytes > 0
    assert not (tmp_path / "store" / "backups" / FIRST).exists()


async def test_anothers_damage_does_not_make_a_delete_fail(
    service: BackupService, store: LocalStore, tmp_path: Path
) -> None:
    await put(store, FIRST)
    await put(store, SECOND)
    (tmp_path / "store" / "backups" / SECOND / "meta.json").write_text("{")
    result = await service.delete(FIRST)
    assert (result.deleted, result.freed_bytes) == (True, 0)
    with pytest.raises(BackupNotFoundError):
        await store.read(FIRST)


async def test_a_backup_that_is_deleted_while_prune_looks_is_no_error(
    service: BackupService, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, FIRST)
    age(tmp_path, FIRST, seconds=2, ttl=1)
    hide = store.hide

    async def hide_late(backup_id: str) -> None:
        with suppress(BackupNotFoundError):
            await hide(backup_id)
        await hide(backup_id)

    monkeypatch.setattr(store, "hide", hide_late)
    await service.prune()
    assert listed((await service.list(include_expired=True)).backups) == []


# -- verify --


async def test_verify(service: BackupService, store: LocalStore, tmp_path: Path) -> None:
    await put(store, FIRST)
    (tmp_path / "store" / "backups" / FIRST / "data.sqsh").write_bytes(b"a LAYER")
    result = await service.verify(FIRST)
    assert not result.ok
    assert result.problem is not None
    with pytest.raises(BackupNotFoundError):
        await service.verify(SECOND)


# -- arguments --

CALLS: dict[str, Callable[[BackupService, str], Awaitable[object]]] = {
    "restore": lambda service, backup_id: service.restore(backup_id),
    "diff": lambda service, backup_id: service.diff(backup_id),
    "tree": lambda service, backup_id: service.tree(backup_id),
    "verify": lambda service, backup_id: service.verify(backup_id),
    "delete": lambda service, backup_id: service.delete(backup_id),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backup_id", ["", "latest", "../../etc", FIRST + "/.."])
async def test_every_operation_refuses_what_is_no_id(service: BackupService, call: str, backup_id: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match="backup_id"):
        await CALLS[call](service, backup_id)


@pytest.mark.parametrize("call", CALLS)
async def test_every_operation_says_that_a_backup_is_not_there(service: BackupService, call: str) -> None:
    with pytest.raises(BackupNotFoundError, match=FIRST):
        await CALLS[call](service, FIRST)


@pytest.mark.parametrize("dir", ["", "relative", "/", "/proc", "/etc", "/tmp", "/a/../b", "/a\0b"])
async def test_create_refuses_a_directory_before_it_does_anything(
    service: BackupService, tmp_path: Path, dir: str
) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^dir: "):
        await service.create(dir)
    assert os.listdir(tmp_path) == []


async def test_a_diff_is_with_a_backup_or_a_directory(service: BackupService) -> None:
    with pytest.raises(InvalidBackupConfigError, match="not with both"):
        await service.diff(FIRST, SECOND, dir="/a")
