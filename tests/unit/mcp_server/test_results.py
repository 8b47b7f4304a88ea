from typing import Any

from helpers.mcp import ID, make_backup
from sandpoint.mcp_server.paging import MAX_PATHS
from sandpoint.mcp_server.results import (
    MAX_LISTED_TEXT,
    MAX_PATCH,
    BackupList,
    BackupSummary,
    Difference,
    Forked,
    PathChanges,
    Restored,
    Verified,
)
from sandpoint.models import BackupPage, Changes, ContentChanges, FileDiff, ForkResult, RestoreResult, VerifyResult


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


def test_long_texts_are_cut_where_many_backups_are_listed_and_that_is_said() -> None:
    long = make_backup(description="d" * 4096, metadata={"first": "1", "long": "v" * 1024, "last": "2"})
    short = make_backup(description="d", metadata={"k": "v"})
    told = BackupList.of(BackupPage(backups=(long, short))).model_dump(mode="json")
    assert told["count"] == 2
    assert told["backups"][0]["description"] == "d" * MAX_LISTED_TEXT
    assert told["backups"][0]["metadata"] == {"first": "1"}
    assert told["backups"][0]["cut"] is True
    assert told["backups"][1].keys() & {"cut", "metadata"} == {"metadata"}
    assert BackupSummary.of(long).metadata == long.metadata


def test_a_list_is_bounded_whatever_a_store_says_of_its_backups() -> None:
    hostile = make_backup(name="n" * 1_000_000, metadata={"k" * 1_000_000: "v"})
    (told,) = BackupList.of(BackupPage(backups=(hostile,))).model_dump(mode="json")["backups"]
    assert len(str(told)) < 1_000
    assert told["cut"] is True


def test_backups_of_several_sandboxes_are_told_apart() -> None:
    backups = (make_backup(sandbox_id="local:1"), make_backup(sandbox_id="local:2"))
    told = BackupList.of(BackupPage(backups=backups)).model_dump(mode="json")
    assert [backup["sandbox_id"] for backup in told["backups"]] == ["local:1", "local:2"]
    told = BackupList.of(BackupPage(backups=backups[:1])).model_dump(mode="json")
    assert "sandbox_id" not in told["backups"][0]


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


def contents(*files: FileDiff) -> ContentChanges:
    return ContentChanges(modified=tuple(file.path for file in files), files=files)


def changed(path: str, patch: str = "", **fields: Any) -> FileDiff:
    return FileDiff(path=path, change="modified", old=None, new=None, patch=patch, **fields)


def test_patches_are_joined_and_what_they_do_not_say_is_named_by_reason() -> None:
    files = (
        changed("a", "diff a\n"),
        changed("b", omitted="binary"),
        changed("c", "diff c\n", attributes=("mode", "mtime")),
        changed("d", attributes=("mtime",)),
        changed("e", attributes=("owner", "mtime")),
        changed("f", omitted="binary"),
        changed("g", omitted="large"),
        changed("h"),
    )
    assert Difference.of(contents(*files)).model_dump(mode="json") == {
        "added_count": 0,
        "modified_count": 8,
        "removed_count": 0,
        "modified": ["a", "b", "c", "d", "e", "f", "g", "h"],
        "patch": "diff a\ndiff c\n",
        "not_in_patch": {"binary": ["b", "f"], "mtime": ["d"], "owner, mtime": ["e"], "large": ["g"]},
    }


def test_a_patch_too_long_is_left_out_and_those_after_it_are_not() -> None:
    files = (
        changed("a", "diff a\n"),
        changed("b", "b\n" * (MAX_PATCH // 2)),
        changed("c", "diff c\n"),
        changed("d", omitted="limit"),
    )
    told = Difference.of(contents(*files)).model_dump(mode="json")
    assert (told["patch"], told["not_in_patch"]) == ("diff a\ndiff c\n", {"limit": ["b", "d"]})


def test_where_no_patch_has_room_the_first_is_shown_in_part() -> None:
    line = "+ a line\n"
    long = line * (MAX_PATCH // len(line) + 1)
    told = Difference.of(contents(changed("a", long), changed("b", long))).model_dump()
    assert told["patch"] == line * (MAX_PATCH // len(line))
    assert told["not_in_patch"] == {"cut": ["a"], "limit": ["b"]}


def test_no_difference_has_nothing_but_counts() -> None:
    told = Difference.of(ContentChanges()).model_dump(mode="json")
    assert told == {"added_count": 0, "modified_count": 0, "removed_count": 0}


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
    assert "undo_id" in told["to_undo"]


def restored(dir: str, **fields: Any) -> RestoreResult:
    values: dict[str, Any] = {"success": True, "id": "i", "dir": dir, "mode": "copy", "undo_id": None}
    return RestoreResult(**(values | {"changes": Changes(added=("x", "y"))} | fields))


def test_a_fork_is_told_in_counts() -> None:
    result = ForkResult(
        success=True,
        id="i",
        restores=(
            restored("/a", undo_id="u", kept_paths=("k",), skipped_mounts=("m", "n")),
            restored("/b", mode="overlay", changes=None),
        ),
    )
    told = Forked.of(result).model_dump(mode="json")
    assert "undo_id" in told.pop("to_undo")
    assert told == {
        "success": True,
        "id": "i",
        "forks": [
            {
                "dir": "/a",
                "mode": "copy",
                "added_count": 2,
                "modified_count": 0,
                "removed_count": 0,
                "undo_id": "u",
                "kept_count": 1,
                "skipped_mount_count": 2,
            },
            {"dir": "/b", "mode": "overlay"},
        ],
    }


def test_a_fork_without_undos_does_not_say_how_to_undo_it() -> None:
    told = Forked.of(ForkResult(success=True, id="i", restores=(restored("/a"),))).model_dump(mode="json")
    assert "to_undo" not in told


def test_of_a_backup_that_another_program_wrote_it_is_noted_that_only_its_size_was_compared() -> None:
    assert Verified.of(VerifyResult(id=ID, ok=True, checked_bytes=7)).model_dump() == {
        "id": ID,
        "ok": True,
        "checked_bytes": 7,
    }
    told = Verified.of(VerifyResult(id=ID, ok=True, checked_bytes=7, size_only=True)).model_dump()
    assert "Only its size" in told["note"]
