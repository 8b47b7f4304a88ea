"""What every store promises; each kind is held to it."""

from collections.abc import Callable
from uuid import uuid4

import anyio
import pytest

from helpers.stores import LAYER, MANIFEST, describe, id_at, ids, put, read_file, upload_files
from sandpoint.errors import (
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    StoreUnavailableError,
)
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
    assert read_file(store, [*written.layers, *written.manifests]) == [LAYER, MANIFEST]


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


async def test_some_can_be_reclaimed_and_others_left(store: Store) -> None:
    for backup_id in (FIRST, SECOND, THIRD):
        await put(store, backup_id)
        await store.hide(backup_id)
    assert await store.reclaim([SECOND]) == ([SECOND], len(LAYER + MANIFEST))
    assert await store.reclaim([SECOND]) == ([], 0)
    assert sorted((await store.reclaim())[0]) == [FIRST, THIRD]


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
