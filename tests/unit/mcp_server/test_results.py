from helpers.mcp import ID, make_backup
from sandpoint.mcp_server.results import MAX_PATHS, BackupList, BackupSummary, PathChanges, Restored
from sandpoint.models import BackupPage, Changes, RestoreResult


def test_a_summary_leaves_out_what_is_empty_but_not_what_is_zero() -> None:
    assert BackupSummary.of(make_backup(file_count=0)).model_dump(mode="json") == {
        "id": ID,
        "dir": "/work/app",
        "kind": "full",
        "size_bytes": 10,
        "total_bytes": 20,
        "file_count": 0,
        "created_at": "2026-11-21T20:46:50Z",
        "expires_at": "2026-11-24T20:46:50Z",
    }


def test_a_summary_keeps_what_the_user_gave() -> None:
    backup = make_backup(name="n", description="d", metadata={"k": "v"}, parent_id="p", unstable_paths=("log",))
    told = BackupSummary.of(backup).model_dump(mode="json")
    assert (told["name"], told["description"], told["metadata"], told["parent_id"]) == (
        "n",
        "d",
        {"k": "v"},
        "p",
    )
    assert told["unstable_paths"] == ["log"]


def test_a_page_says_where_the_next_begins() -> None:
    told = BackupList.of(BackupPage(backups=(make_backup(),), next_cursor="c")).model_dump(mode="json")
    assert told["next_cursor"] == "c"
    assert [backup["id"] for backup in told["backups"]] == [ID]


def test_changes_are_counted_and_the_first_of_each_kind_named() -> None:
    many = tuple(f"{number:03}" for number in range(MAX_PATHS + 7))
    told = PathChanges.of(Changes(added=many, removed=("gone",))).model_dump(mode="json")
    assert told == {
        "added_count": MAX_PATHS + 7,
        "modified_count": 0,
        "removed_count": 1,
        "added": list(many[:MAX_PATHS]),
        "removed": ["gone"],
        "more": 7,
    }


def test_a_restore_without_changes_says_so_in_counts() -> None:
    result = RestoreResult(success=True, id="i", dir="/d", mode="copy", changes=Changes(), undo_id=None)
    assert Restored.of(result).model_dump(mode="json") == {
        "success": True,
        "id": "i",
        "dir": "/d",
        "mode": "copy",
        "changes": {"added_count": 0, "modified_count": 0, "removed_count": 0},
    }


def test_an_overlay_restore_has_no_changes_to_tell() -> None:
    result = RestoreResult(
        success=True, id="i", dir="/d", mode="overlay", changes=None, undo_id="u", skipped_mounts=("proc",)
    )
    told = Restored.of(result).model_dump(mode="json")
    assert "changes" not in told
    assert (told["undo_id"], told["skipped_mounts"]) == ("u", ["proc"])
