"""What the service decides without a tree: lists, cursors, expiry, arguments, and what a failure hides."""

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers.stores import id_at, put
from sandpoint import BackupService
from sandpoint.errors import BackupExpiredError, BackupNotFoundError, InvalidBackupConfigError, SandpointError
from sandpoint.models import Backup
from sandpoint.sandboxes.local import LocalSandbox
from sandpoint.stores.local import LocalStore

pytestmark = pytest.mark.anyio

FIRST, SECOND, THIRD = id_at(1), id_at(2), id_at(3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
