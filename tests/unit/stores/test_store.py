"""What every store promises; each kind is held to it."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid1, uuid4

import anyio
import pytest

from helpers.stores import (
    LAYER,
    MANIFEST,
    START_MS,
    describe,
    id_at,
    ids,
    put,
    put_foreign,
    put_raw,
    read_file,
    stored,
    upload_files,
    write_file,
)
from sandpoint.errors import (
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    StoreUnavailableError,
)
from sandpoint.models import StoredFile
from sandpoint.stores import Store
from sandpoint.stores.base import Position, time_of

pytestmark = pytest.mark.anyio

OpenStore = Callable[[], Store]

FIRST, SECOND, THIRD = id_at(1), id_at(2), id_at(3)


async def test_an_empty_store_is_no_error(store: Store) -> None:
    assert await ids(store) == []
    assert await store.reclaim() == ([], 0)
    with pytest.raises(BackupNotFoundError):
        await store.read(FIRST)


async def test_a_backup_is_read_as_it_was_written(store: Store) -> None:
    written = await put(store, FIRST, name="n", description="two\nlines", metadata={"k": "v"}, excludes=("*.log",))
    assert await store.read(FIRST) == written
    assert read_file(store, written.files) == [MANIFEST, LAYER]


async def test_a_backup_is_there_when_it_is_committed_and_not_before(store: Store) -> None:
    upload = await upload_files(store, FIRST)
    assert await ids(store) == []
    with pytest.raises(BackupNotFoundError, match=f"there is no backup {FIRST}"):
        await store.read(FIRST)
    await store.commit(describe(FIRST, upload))
    assert await ids(store) == [FIRST]


async def test_an_abandoned_backup_leaves_nothing(store: Store) -> None:
    upload = await upload_files(store, FIRST)
    await store.abandon(FIRST)
    assert await ids(store) == []
    assert await store.reclaim() == ([], 0)
    with pytest.raises(FileNotFoundError):
        read_file(store, describe(FIRST, upload).layers)


async def test_a_large_file_arrives_whole(store: Store) -> None:
    content = random.Random(3).randbytes(33 << 20)
    upload = await store.begin(FIRST)
    await write_file(store, upload.layer_key, content)
    await write_file(store, upload.manifest_key, MANIFEST)
    await store.commit(describe(FIRST, upload, layers=(stored(upload.layer_key, content),)))
    assert read_file(store, (await store.read(FIRST)).layers) == [content]


async def test_a_large_file_of_an_abandoned_backup_leaves_nothing(store: Store) -> None:
    upload = await store.begin(FIRST)
    await store.grant_put(upload.layer_key, StoredFile(size=33 << 20, sha256="0" * 64))
    await store.abandon(FIRST)
    assert await store.reclaim() == ([], 0)


async def test_a_committed_backup_cannot_be_abandoned(store: Store) -> None:
    written = await put(store, FIRST)
    await store.abandon(FIRST)
    assert await store.read(FIRST) == written
    assert read_file(store, written.layers) == [LAYER]


async def test_what_was_never_begun_can_be_abandoned(store: Store) -> None:
    await store.abandon(FIRST)


async def test_an_id_is_committed_once(store: Store) -> None:
    written = await put(store, FIRST, name="first")
    with pytest.raises(StoreUnavailableError):
        await put(store, FIRST, name="second")
    await store.abandon(FIRST)
    assert await store.read(FIRST) == written
    assert read_file(store, written.layers) == [LAYER]


# -- lists --


async def test_the_newest_come_first(store: Store) -> None:
    for backup_id in (SECOND, FIRST, THIRD):
        await put(store, backup_id)
    assert await ids(store) == [THIRD, SECOND, FIRST]


async def test_a_list_goes_on_after_a_position(store: Store) -> None:
    for number in range(5):
        await put(store, id_at(number))
    position = Position.of(await store.read(id_at(3)))
    assert await ids(store, position) == [id_at(2), id_at(1), id_at(0)]
    assert await ids(store, Position.from_cursor(position.to_cursor())) == [id_at(2), id_at(1), id_at(0)]


async def test_a_position_holds_while_backups_come_and_go(store: Store) -> None:
    for number in range(5):
        await put(store, id_at(number))
    position = Position.of(await store.read(id_at(3)))
    await put(store, id_at(9))
    await store.hide(id_at(3))
    await store.hide(id_at(1))
    assert await ids(store, position) == [id_at(2), id_at(0)]


async def test_backups_of_one_millisecond_keep_an_order(store: Store) -> None:
    same = [id_at(1, number) for number in range(4)]
    for backup_id in (same[2], same[0], same[3], same[1]):
        await put(store, backup_id)
    assert await ids(store) == same[::-1]
    assert await ids(store, Position.of(await store.read(same[2]))) == [same[1], same[0]]


async def test_ids_without_a_time_are_placed_by_their_metadata(store: Store) -> None:
    old = await put(store, id_at(1))
    other = str(uuid4())
    written = await put(store, other)
    assert time_of(other) is None
    assert written.created_at.timestamp() * 1000 > (time_of(old.id) or 0)
    assert await ids(store) == [other, id_at(1)]
    assert await ids(store, Position.of(written)) == [id_at(1)]
    assert await ids(store, Position.of(old)) == []


def looks_made_at(ms: int) -> str:
    """Return an id of another version whose first digits are a time by chance."""
    return str(UUID(int=ms << 80 | 12345, version=4))


async def test_ids_that_look_like_a_time_by_chance_are_in_its_place_unless_they_are_older(store: Store) -> None:
    for second in range(0, 50, 10):
        await put(store, id_at(second))
    old, older = looks_made_at(START_MS + 15_000), looks_made_at(START_MS + 35_000)
    await put(store, old, created_at=datetime.fromtimestamp(START_MS / 1000 + 900, UTC))
    await put(store, older, created_at=datetime.fromtimestamp(START_MS / 1000 + 5, UTC))
    expected = [id_at(40), id_at(30), id_at(20), old, id_at(10), older, id_at(0)]
    assert await ids(store) == expected
    for number, backup_id in enumerate(expected):
        assert await ids(store, Position.of(await store.read(backup_id))) == expected[number + 1 :]


async def test_ids_of_wrong_clocks_are_listed_in_their_order(store: Store) -> None:
    past, future, far = (str(UUID(int=ms << 80 | 7 << 76 | 2 << 62)) for ms in (1000, START_MS * 2, 1 << 47))
    for backup_id in (FIRST, far, past, future):
        await put(store, backup_id)
    assert await ids(store) == [far, future, FIRST, past]
    assert await ids(store, Position.of(await store.read(future))) == [FIRST, past]


async def test_however_few_are_asked_for_at_a_time_all_are_listed(store: Store) -> None:
    for number in range(7):
        await put(store, id_at(number))
    expected = [id_at(number) for number in reversed(range(7))]
    for about in (1, 3, 7, 100):
        assert [metadata.id async for metadata in store.newest(about=about)] == expected


# -- foreign backups --


@pytest.mark.parametrize("created", ["2026-11-01T02:03:04.567Z", 1_793_498_584_567])
async def test_a_foreign_backup_is_read(store: Store, created: object) -> None:
    foreign = str(uuid4())
    await put_foreign(store, foreign, createdAt=created, name="n", extra={"anything": 1})
    found = await store.read(foreign)
    assert (found.is_foreign, found.dir, found.name, found.kind) == (True, "/workspace", "n", "full")
    assert found.created_at == datetime(2026, 11, 1, 2, 3, 4, 567_000, UTC)
    assert found.expires_at == found.created_at + timedelta(days=3)
    assert found.manifests == ()
    assert [(layer.size, layer.sha256) for layer in found.layers] == [(len(LAYER), None)]
    assert read_file(store, found.layers) == [LAYER]


async def test_foreign_backups_are_listed_among_ours_and_hidden(store: Store) -> None:
    foreign = [str(uuid4()), str(uuid1()), id_at(3)]
    for second, backup_id in zip((1, 2, 3), foreign, strict=True):
        await put_foreign(store, backup_id, createdAt=START_MS + second * 1000)
    await put(store, id_at(0))
    await put(store, id_at(4))
    assert await ids(store) == [id_at(4), *foreign[::-1], id_at(0)]
    await store.hide(foreign[0])
    assert await store.reclaim() == ([foreign[0]], len(LAYER))
    assert await ids(store) == [id_at(4), foreign[2], foreign[1], id_at(0)]


@pytest.mark.parametrize(
    "change", [{"sizeBytes": -1}, {"createdAt": "x"}, {"createdAt": 1e300}, {"ttl": 0}, {"dir": 1}]
)
async def test_a_damaged_foreign_backup_is_passed_over(store: Store, change: dict[str, Any]) -> None:
    foreign = str(uuid4())
    await put_foreign(store, foreign, **change)
    await put(store, FIRST)
    with pytest.raises(BackupIntegrityError, match=f"the metadata of backup {foreign} is damaged: "):
        await store.read(foreign)
    assert await ids(store) == [FIRST]


async def test_what_is_not_ours_is_neither_listed_nor_removed(store: Store) -> None:
    await put(store, FIRST)
    for key in ("backups/notes.txt", f"backups/{SECOND.upper().replace('0', 'A')}/x", "backups/zzz/meta.json"):
        await put_raw(store, key, b"mine")
    assert await ids(store) == [FIRST]
    assert await store.reclaim() == ([], 0)


async def test_the_first_moment_is_a_time_too(store: Store) -> None:
    zero = "00000000-0000-7000-8000-000000000000"
    written = await put(store, zero)
    await put(store, FIRST)
    assert Position.of(written) == Position(0, zero)
    assert await ids(store, Position.of(written)) == []
    assert await ids(store) == [FIRST, zero]


@pytest.mark.parametrize("cursor", ["", ".", "x", "zz.zz", FIRST, f"0.{FIRST}x", f"{'9' * 9}", f"..{FIRST}", "0x.1"])
async def test_what_is_no_cursor(cursor: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^cursor: "):
        Position.from_cursor(cursor)


# -- taking away --


async def test_a_hidden_backup_is_gone_at_once(store: Store) -> None:
    await put(store, FIRST)
    await store.hide(FIRST)
    assert await ids(store) == []
    with pytest.raises(BackupNotFoundError):
        await store.read(FIRST)


async def test_what_is_not_there_cannot_be_hidden(store: Store) -> None:
    await put(store, SECOND)
    with pytest.raises(BackupNotFoundError):
        await store.hide(FIRST)
    await store.hide(SECOND)
    with pytest.raises(BackupNotFoundError):
        await store.hide(SECOND)


async def test_the_files_of_a_hidden_backup_are_reclaimed(store: Store) -> None:
    kept, gone = await put(store, FIRST), await put(store, SECOND)
    await store.hide(SECOND)
    assert await store.reclaim() == ([SECOND], len(LAYER) + len(MANIFEST))
    assert await store.reclaim() == ([], 0)
    assert read_file(store, kept.layers) == [LAYER]
    with pytest.raises(FileNotFoundError):
        read_file(store, gone.layers)


async def test_what_others_name_is_kept_and_goes_with_the_last_of_them(store: Store) -> None:
    parent = await put(store, FIRST)
    upload = await upload_files(store, SECOND)
    own = describe(SECOND, upload)
    child = describe(SECOND, upload, kind="delta", parent_id=FIRST, layers=(*parent.layers, *own.layers))
    await store.commit(child)
    await store.hide(FIRST)
    assert await store.reclaim() == ([FIRST], len(MANIFEST))
    assert read_file(store, child.layers) == [LAYER, LAYER]
    assert await store.reclaim() == ([], 0)
    await store.hide(SECOND)
    reclaimed, freed = await store.reclaim()
    assert (sorted(reclaimed), freed) == ([FIRST, SECOND], 2 * len(LAYER) + len(MANIFEST))


async def test_what_is_being_written_is_not_reclaimed(store: Store) -> None:
    upload = await upload_files(store, FIRST)
    assert await store.reclaim() == ([], 0)
    await store.commit(describe(FIRST, upload))
    assert read_file(store, (await store.read(FIRST)).layers) == [LAYER]


async def test_what_a_backup_that_is_being_written_needs_is_kept(store: Store, open_again: OpenStore) -> None:
    parent = await put(store, FIRST)
    needs = (*parent.manifests, *parent.layers)
    other = open_again()
    upload = await upload_files(other, SECOND, needs)
    await store.hide(FIRST)
    assert await store.reclaim() == ([], 0)
    await other.commit(describe(SECOND, upload, layers=parent.layers, parent_manifests=parent.manifests))
    assert await store.reclaim() == ([], 0)
    assert read_file(store, needs) == [MANIFEST, LAYER]
    await store.hide(SECOND)
    assert sorted((await store.reclaim())[0]) == [FIRST, SECOND]


async def test_what_an_abandoned_backup_needed_is_not_kept(store: Store) -> None:
    parent = await put(store, FIRST)
    await upload_files(store, SECOND, parent.layers)
    await store.hide(FIRST)
    await store.abandon(SECOND)
    assert (await store.reclaim())[0] == [FIRST]


async def test_nothing_is_begun_on_what_is_gone(store: Store) -> None:
    parent = await put(store, FIRST)
    await store.hide(FIRST)
    await store.reclaim()
    with pytest.raises(BackupIntegrityError, match=f"backups/{FIRST}/data.sqsh is missing"):
        await store.begin(SECOND, parent.layers)
    await put(store, SECOND)


async def test_what_is_being_written_cannot_be_hidden(store: Store, open_again: OpenStore) -> None:
    parent = await put(store, FIRST)
    upload = await upload_files(store, SECOND, parent.layers)
    other = open_again()
    with pytest.raises(BackupNotFoundError):
        await other.hide(SECOND)
    await other.hide(FIRST)
    assert await other.reclaim() == ([FIRST], len(MANIFEST))
    written = describe(SECOND, upload)
    await store.commit(written)
    assert read_file(store, [*written.layers, *parent.layers]) == [LAYER, LAYER]


async def test_what_could_be_reclaimed_is_what_is_then(store: Store) -> None:
    parent = await put(store, FIRST)
    upload = await upload_files(store, SECOND, parent.layers)
    await store.commit(describe(SECOND, upload, layers=(*parent.layers, *describe(SECOND, upload).layers)))
    await put(store, THIRD)
    await upload_files(store, id_at(4))
    for without in ([], [FIRST], [SECOND], [FIRST, SECOND], [FIRST, SECOND, THIRD]):
        before = await ids(store)
        foreseen = await store.reclaimable(without)
        assert await store.reclaimable() == ([], 0)
        assert await ids(store) == before
    for backup_id in without:
        await store.hide(backup_id)
    found, freed = await store.reclaim()
    assert (sorted(found), freed) == (sorted(foreseen[0]), foreseen[1])
    assert (sorted(found), freed) == ([FIRST, SECOND, THIRD], 3 * len(LAYER + MANIFEST))


async def test_what_could_be_reclaimed_leaves_what_others_need(store: Store) -> None:
    parent = await put(store, FIRST)
    await store.commit(describe(SECOND, await upload_files(store, SECOND, parent.layers), layers=parent.layers))
    assert await store.reclaimable([FIRST]) == ([FIRST], len(MANIFEST))
    assert await store.reclaimable([SECOND]) == ([SECOND], len(LAYER + MANIFEST))


async def test_many_may_write_at_once(store: Store) -> None:
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(put, store, id_at(number))
            group.start_soon(store.reclaim)
    assert await ids(store) == [id_at(number) for number in reversed(range(20))]


async def test_an_id_of_another_form_is_refused(store: Store) -> None:
    for bad in ("../x", FIRST + "/..", "x"):
        with pytest.raises(InvalidBackupConfigError):
            await store.read(bad)


async def test_what_is_asked_for_is_reclaimed_and_nothing_that_is_needed(store: Store) -> None:
    kept = await put(store, THIRD)
    for backup_id in (FIRST, SECOND):
        await put(store, backup_id)
        await store.hide(backup_id)
    some, _ = await store.reclaim([SECOND])
    assert SECOND in some
    others, _ = await store.reclaim()
    assert sorted([*some, *others]) == [FIRST, SECOND]
    assert read_file(store, kept.layers) == [LAYER]


async def test_what_younger_backups_name_is_not_reclaimed_alone(store: Store) -> None:
    parent = await put(store, FIRST)
    upload = await upload_files(store, id_at(100_000), parent.layers)
    child = describe(id_at(100_000), upload, kind="delta", parent_id=FIRST, layers=parent.layers)
    await store.commit(child)
    await store.hide(FIRST)
    assert await store.reclaim([FIRST]) == ([FIRST], len(MANIFEST))
    assert read_file(store, parent.layers) == [LAYER]
    await store.hide(child.id)
    freed = len(LAYER) * 2 + len(MANIFEST)
    assert await store.reclaim([FIRST, child.id]) in [([FIRST, child.id], freed), ([child.id, FIRST], freed)]
