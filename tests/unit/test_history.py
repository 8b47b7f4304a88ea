"""The line of states, from lists of backups as a directory gets them. Time goes by with the numbers."""

from collections.abc import Iterable

import pytest

from helpers.stores import describe, id_at
from sandpoint.history import UNDO_NAME, History, note_restore, restored_after
from sandpoint.models import BackupMetadata
from sandpoint.stores.base import Upload, key_of


def taken(number: int, **changes: object) -> BackupMetadata:
    backup_id = id_at(number)
    upload = Upload(layer_key=key_of(backup_id, "data.sqsh"), manifest_key=key_of(backup_id, "manifest.zst"))
    return describe(backup_id, upload, dir="/a").model_copy(update=changes)


def before_restore(number: int, target: int, *, paths: int = 0, target_dir: str = "/a") -> BackupMetadata:
    restored = taken(target, dir=target_dir)
    noted = note_restore(restored, "/a", restored.sandbox_id, paths)
    return taken(number, name=UNDO_NAME, metadata=noted)


def line(backups: Iterable[BackupMetadata]) -> list[str]:
    return list(History(sorted(backups, key=lambda backup: backup.id, reverse=True)).back())


def ids(*numbers: int) -> list[str]:
    return [id_at(number) for number in numbers]


def test_without_backups_there_is_no_line() -> None:
    assert line([]) == []


def test_each_backup_continues_the_line() -> None:
    assert line([taken(1), taken(2), taken(3)]) == ids(3, 2, 1)


def test_a_restore_goes_back_on_the_line_and_again() -> None:
    backups = [taken(1), taken(2), taken(3), before_restore(4, 2)]
    assert line(backups) == ids(2, 1)
    assert line([*backups, before_restore(5, 1)]) == ids(1)


def test_what_was_gone_back_from_is_no_more_on_the_line_that_is_continued() -> None:
    assert line([taken(1), taken(2), taken(3), before_restore(4, 1), taken(5)]) == ids(5, 1)


def test_the_state_before_a_restore_can_be_restored_and_lies_where_it_was() -> None:
    backups = [taken(1), taken(2), before_restore(3, 1), before_restore(4, 3)]
    assert line(backups) == ids(3, 2, 1)


def test_a_restore_of_a_part_is_itself_a_step() -> None:
    assert line([taken(1), taken(2), before_restore(3, 1, paths=2)]) == ids(3, 2, 1)


def test_a_restore_of_another_directory_is_itself_a_step() -> None:
    backups = [taken(2), before_restore(3, 1, target_dir="/b")]
    assert line(backups) == ids(1, 3, 2)
    assert line([*backups, taken(4)]) == ids(4, 1, 3, 2)


def test_a_state_that_was_deleted_lies_where_it_was_by_its_time() -> None:
    assert line([taken(1), taken(2), taken(4), taken(5), before_restore(6, 3)]) == ids(3, 2, 1)


def test_a_name_alone_makes_no_restore() -> None:
    assert restored_after(taken(1, name=UNDO_NAME)) is None
    assert restored_after(taken(1, name="mine", metadata={"undo_of": id_at(1)})) is None
    assert line([taken(1), taken(2, name=UNDO_NAME)]) == ids(2, 1)


@pytest.mark.parametrize("target", [id_at(9), id_at(2), "nonsense", ""])
def test_a_store_that_lies_gives_no_endless_line(target: str) -> None:
    lie = taken(2, name=UNDO_NAME, metadata={"undo_of": target})
    backups = [taken(1), lie, taken(3), before_restore(4, 2), taken(9)]
    assert len(line(backups)) <= len(backups) + 1
