"""What the stamps of files do not show: a restore finds it all the same, and says nothing that is not so."""

import mmap
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from helpers.place import Place
from helpers.trees import assert_same, list_tree, write
from sandpoint import BackupExpiredError
from sandpoint.engine import place as places

SETTLED_S = 0.1


def test_a_write_through_a_mapping_is_found(place: Place) -> None:
    write(place.tree / "mapped", b"a" * 8192)
    with (place.tree / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0] = ord("b")  # stamps the file, and leaves its page open for more writes
        time.sleep(SETTLED_S)
        backup = place.create()
        expected = list_tree(place.tree)
        mapping[1] = ord("c")
        assert place.diff(backup.id).modified == ("mapped",)
        place.restore(backup.id)
    assert_same(expected, list_tree(place.tree))


def test_where_the_filesystem_does_not_settle_bytes_are_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SETTLE_WAIT_S", 0.0)
    monkeypatch.setattr("sandpoint.engine.linux.sync_filesystem", lambda fd, path: time.sleep(0.3))
    write(place.tree / "mapped", b"a" * 8192)
    with (place.tree / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0] = ord("b")
        time.sleep(SETTLED_S)
        backup = place.create()
        mapping[1] = ord("c")
        assert place.diff(backup.id).modified == ("mapped",)


@pytest.mark.parametrize("settled", [True, False])
def test_an_edit_that_puts_the_time_back_is_found(place: Place, *, settled: bool) -> None:
    path = write(place.tree / "file", b"before")
    time.sleep(SETTLED_S * settled)
    backup = place.create()
    expected = list_tree(place.tree)
    status = path.stat()
    path.write_bytes(b"after!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert place.diff(backup.id).modified == ("file",)
    place.restore(backup.id)
    assert_same(expected, list_tree(place.tree))


def test_a_file_that_has_a_link_outside_is_not_changed_through_it(place: Place, tmp_path: Path) -> None:
    write(place.tree / "file", b"shared", mode=0o644)
    backup = place.create()
    expected = list_tree(place.tree)
    outside = tmp_path / "outside"
    os.link(place.tree / "file", outside)
    outside.chmod(0o600)
    place.restore(backup.id)
    assert_same(expected, list_tree(place.tree))
    assert outside.stat().st_mode & 0o7777 == 0o600
    assert outside.stat().st_nlink == 1


def test_a_backup_that_expires_while_others_have_their_turn_is_not_restored(place: Place) -> None:
    write(place.tree / "file", b"before")
    backup = place.create()
    write(place.tree / "file", b"after")
    metadata = place.base / "store" / "backups" / backup.id / "meta.json"

    async def wait_for_a_turn() -> None:
        async with anyio.create_task_group() as tasks, place.sandbox.turn():
            tasks.start_soon(restore)
            await anyio.sleep(0.2)
            past = (datetime.now(UTC) - timedelta(days=30)).isoformat()
            metadata.write_text(metadata.read_text().replace(backup.created_at.isoformat()[:19], past[:19]))

    async def restore() -> None:
        with pytest.raises(BackupExpiredError):
            await place.service.restore(backup.id)

    place.run(wait_for_a_turn)
    assert (place.tree / "file").read_bytes() == b"after"
