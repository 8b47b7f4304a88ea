"""One backup in several directories: each a tree of its own, of layers that are there once."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from helpers.cli import Program
from helpers.mcp import text
from helpers.place import Place, message, unmount_all
from helpers.trees import assert_same, list_tree
from sandpoint.errors import BackupIntegrityError, BackupRestoreError, InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server import build_server
from sandpoint.models import ForkResult, Mode


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    (place.tree / "src").mkdir(parents=True)
    (place.tree / "src" / "app.py").write_text("print('first')\n")
    (place.tree / "README").write_text("read me\n")
    yield place
    unmount_all(tmp_path)


@pytest.fixture
def backup_id(place: Place) -> str:
    """A chain of two layers."""
    place.create()
    (place.tree / "later").write_text("later\n")
    for path in (place.tree, *place.tree.rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # an overlay shows whole seconds
    backup = place.create()
    assert backup.kind == "delta"
    return backup.id


def fork(place: Place, backup_id: str, *dirs: Path, **options: Any) -> ForkResult:
    return place.run(place.service.fork, backup_id, [str(dir) for dir in dirs], **options)


def targets(place: Place, number: int = 3) -> list[Path]:
    return [place.base / f"fork {each}" for each in range(number)]


def shown(dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dir)): path.read_bytes() for path in dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_what_is_written_to_one_is_in_no_other_and_not_in_the_backup(place: Place, backup_id: str, mode: Mode) -> None:
    whole = list_tree(place.tree)
    first, second, third = targets(place)
    result = fork(place, backup_id, first, second, third, mode=mode)
    assert (result.success, result.id) == (True, backup_id)
    assert [(each.dir, each.mode, each.undo_id) for each in result.restores] == [
        (str(dir), mode, None) for dir in (first, second, third)
    ]
    for dir in (first, second, third):
        assert_same(whole, list_tree(dir))

    (first / "src" / "app.py").write_text("print('mine')\n")
    (first / "README").unlink()
    shutil.rmtree(second / "src")
    (second / "new").write_text("new\n")
    assert shown(first) == {"src/app.py": b"print('mine')\n", "later": b"later\n"}
    assert shown(second) == {"README": b"read me\n", "later": b"later\n", "new": b"new\n"}
    assert_same(whole, list_tree(third))
    assert_same(whole, list_tree(place.tree))
    assert place.run(place.service.verify, backup_id).ok
    again = place.base / "again"
    place.restore(backup_id, dir=again)
    assert_same(whole, list_tree(again))
    place.assert_clean()


def test_overlays_share_one_loop_device_for_each_layer(place: Place, backup_id: str) -> None:
    dirs = targets(place, 5)
    fork(place, backup_id, *dirs, mode="overlay")
    layers = place.run(place.service.get, backup_id)
    assert layers.kind == "delta"
    place.assert_loops(2)
    assert sorted(place.mounts()) == sorted(map(str, dirs))
    for dir in dirs[1:]:
        place.unmount(dir)
    assert shown(dirs[0]) == shown(place.tree)
    place.assert_loops(2)
    place.unmount(dirs[0])
    place.assert_unmounted()


def test_a_fork_goes_on_while_others_are_forked_anew_or_taken_down(place: Place, backup_id: str) -> None:
    first, second = targets(place, 2)
    fork(place, backup_id, first, second, mode="overlay")
    (first / "mine").write_text("mine\n")
    with (first / "README").open() as opened:
        again = fork(place, backup_id, second, place.base / "third", mode="overlay")
        assert [each.undo_id for each in again.restores] == [None, None]
        place.unmount(second)
        assert opened.read() == "read me\n"
    assert (first / "mine").read_text() == "mine\n"


def test_each_undo_brings_its_own_directory_back(place: Place, backup_id: str) -> None:
    first, second, third = targets(place)
    for dir, content in ((first, "one\n"), (second, "two\n")):
        dir.mkdir()
        (dir / "own").write_text(content)
    before = {dir: list_tree(dir) for dir in (first, second)}
    result = fork(place, backup_id, first, second, third, mode="copy")
    undos = [each.undo_id for each in result.restores]
    assert undos[2] is None
    assert not (first / "own").exists()
    for dir, undo_id in zip((first, second), undos, strict=False):
        assert undo_id is not None
        place.restore(undo_id, mode="copy")
        assert_same(before[dir], list_tree(dir))


def test_without_undo_none_is_kept(place: Place, backup_id: str) -> None:
    first, second = targets(place, 2)
    first.mkdir()
    (first / "own").write_text("one\n")
    stored = place.ids()
    result = fork(place, backup_id, first, second, mode="copy", undo=False)
    assert [each.undo_id for each in result.restores] == [None, None]
    assert place.ids() == stored


def test_a_dry_run_tells_of_each_and_changes_nothing(place: Place, backup_id: str) -> None:
    first, second = targets(place, 2)
    first.mkdir()
    (first / "own").write_text("one\n")
    stored = place.ids()
    result = fork(place, backup_id, first, second, mode="copy", dry_run=True)
    plans = [each.changes for each in result.restores]
    assert [None if plan is None else (plan.added, plan.removed) for plan in plans] == [
        (("README", "later", "src", "src/app.py"), ("own",)),
        (("README", "later", "src", "src/app.py"), ()),
    ]
    assert all(each.dry_run for each in result.restores)
    assert shown(first) == {"own": b"one\n"}
    assert not second.exists()
    assert place.ids() == stored


def test_some_paths_go_to_several_directories(place: Place, backup_id: str) -> None:
    first, second = targets(place, 2)
    first.mkdir()
    (first / "own").write_text("one\n")
    fork(place, backup_id, first, second, mode="copy", paths=["src"])
    assert shown(first) == {"own": b"one\n", "src/app.py": b"print('first')\n"}
    assert shown(second) == {"src/app.py": b"print('first')\n"}
    with pytest.raises(InvalidBackupConfigError, match="paths: an overlay"):
        fork(place, backup_id, first, second, mode="overlay", paths=["src"])


@pytest.mark.parametrize(
    ("dirs", "named"),
    [
        (("a", "b", "a"), "a"),
        (("a", "b", "a/"), "a"),
        (("a", "a/b"), "a/b"),
        (("a/b/c", "d", "a"), "a/b/c"),
    ],
)
def test_directories_that_are_not_apart_are_refused(
    place: Place, backup_id: str, dirs: tuple[str, ...], named: str
) -> None:
    with pytest.raises(InvalidBackupConfigError) as refused:
        fork(place, backup_id, *(f"{place.base}/{dir}" for dir in dirs))  # type: ignore[arg-type]
    assert message(refused.value).startswith(f"dirs: {place.base}/{named} ")
    assert not [dir for dir in dirs if (place.base / dir).exists()]


def test_names_that_only_begin_alike_are_apart(place: Place, backup_id: str) -> None:
    result = fork(place, backup_id, place.base / "a", place.base / "ab", mode="copy")
    assert len(result.restores) == 2


@pytest.mark.parametrize("dirs", [[], "/tmp/one", ["relative"], [7]], ids=["none", "a word", "relative", "a number"])
def test_no_list_of_directories_is_refused(place: Place, backup_id: str, dirs: Any) -> None:
    with pytest.raises(InvalidBackupConfigError, match="dir"):
        place.run(place.service.fork, backup_id, dirs)


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_failure_names_what_is_done_and_stops(place: Place, backup_id: str, mode: Mode) -> None:
    first, second, third = targets(place)
    first.mkdir()
    (first / "own").write_text("one\n")
    second.write_text("a file\n")
    with pytest.raises(SandpointError) as failed:
        fork(place, backup_id, first, second, third, mode=mode)
    newest = place.run(place.service.list, dir=str(first)).backups[0]
    assert str(second) in message(failed.value)
    assert message(failed.value).endswith(f"Done, and not undone: {first} (undo {newest.id})")
    assert shown(first) == shown(place.tree)
    assert second.read_text() == "a file\n"
    assert not third.exists()
    place.assert_clean()


def test_a_damaged_backup_touches_no_directory(place: Place, backup_id: str) -> None:
    layer = place.store / "backups" / backup_id / "data.sqsh"
    layer.chmod(0o600)
    layer.write_bytes(layer.read_bytes()[:-1])
    first, second = targets(place, 2)
    first.mkdir()
    (first / "own").write_text("one\n")
    with pytest.raises(BackupIntegrityError):
        fork(place, backup_id, first, second)
    assert shown(first) == {"own": b"one\n"}
    assert not second.exists()


def test_a_partly_failed_directory_stays_known_as_such(place: Place) -> None:
    error = BackupRestoreError("it failed", partly=True)
    assert error.partly  # see _with_done


def test_a_fork_by_the_command_line(place: Place, backup_id: str) -> None:
    sandpoint = Program(
        SANDPOINT_STORE=place.store.as_uri(), SANDPOINT_STATE_DIR=str(place.state), SANDPOINT_ALLOWED_DIRS=""
    )
    first, second = targets(place, 2)
    done = sandpoint("restore", backup_id, "--to", str(first), "--to", str(second), "--mode", "overlay", "--json")
    assert done.status == 0, done
    assert [each["dir"] for each in done.json["restores"]] == [str(first), str(second)]
    (first / "mine").write_text("mine\n")
    assert not (second / "mine").exists()

    told = sandpoint("restore", backup_id, "--to", str(first), "--to", str(second), "--mode", "copy")
    assert told.status == 0, told
    assert shown(first) == shown(second) == shown(place.tree)
    back = told.out.partition("Go back to the state before with:\n")[2].splitlines()[0]
    undone = subprocess.run(
        f"PATH={Path(sandpoint.path).parent}:$PATH; {back}", shell=True, env=sandpoint.environment, check=False
    )
    assert (undone.returncode, shown(first)["mine"]) == (0, b"mine\n")
    place.assert_unmounted()

    refused = sandpoint("restore", backup_id, "--to", str(first), "--to", f"{first}/x", "--json")
    assert (refused.status, refused.json["error"]["code"]) == (3, "INVALID_BACKUP_CONFIG")
    (listed,) = {each["sandbox_id"] for each in sandpoint("list", "--json").json["backups"]}
    assert len(sandpoint("list", "--sandbox-id", listed, "--json").json["backups"]) > 1
    assert sandpoint("list", "--sandbox-id", "local:0", "--json").json["backups"] == []


@pytest.mark.anyio
async def test_a_fork_by_an_agent(place: Place) -> None:
    backup_id = (await place.service.create(str(place.tree))).id
    first, second = targets(place, 2)
    first.mkdir()
    os.mkfifo(first / "pipe")
    async with Client(build_server(place.service)) as client:
        arguments = {"backup_id": backup_id, "dirs": [str(first), str(second)], "mode": "copy"}
        result = await client.call_tool("fork_backup", arguments)
        assert not result.is_error, text(result)
        told = dict(result.structured_content or {})
        counts = {"added_count": 3, "modified_count": 0, "removed_count": 1}
        undo_id = told["forks"][0].pop("undo_id")
        assert told["forks"] == [
            {"dir": str(first), "mode": "copy"} | counts,
            {"dir": str(second), "mode": "copy"} | counts | {"removed_count": 0},
        ]
        assert shown(first) == shown(second) == shown(place.tree)
        await client.call_tool("restore_backup", {"backup_id": undo_id, "mode": "copy"})
        assert (first / "pipe").is_fifo()
        refused = await client.call_tool("fork_backup", {**arguments, "dirs": [str(first), f"{first}/x"]})
        assert text(refused).startswith("INVALID_BACKUP_CONFIG: dirs: ")
