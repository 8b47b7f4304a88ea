"""What holds of every kind of sandbox: this machine, and a container by each way into it."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from helpers.docker import Engine, Target
from helpers.foreign import ID, archive_of, metadata_of
from helpers.kinds import KINDS, Kind, Sandboxed, opened
from helpers.place import unmount_all
from helpers.trees import assert_same, build_small, build_zoo, in_whole_seconds, inodes, write
from sandpoint.errors import BackupIntegrityError, BackupNotFoundError, InvalidBackupConfigError, NoSuchPathError
from sandpoint.models import Progress

Start = Callable[..., Target]
OVERLAYS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "archive")
EXACT = OVERLAYS


@pytest.fixture(params=KINDS)
def here(
    request: pytest.FixtureRequest, tmp_path: Path, start_container: Start, docker_engine: Engine
) -> Iterator[Sandboxed]:
    with opened(request.param, tmp_path, start_container, engine=docker_engine) as sandboxed:
        build_small(sandboxed.tree)
        yield sandboxed
    unmount_all(tmp_path)


only = pytest.mark.parametrize("here", OVERLAYS, indirect=True)


def break_up(tree: Path) -> None:
    """Change, add and remove something of each kind."""
    write(tree / "src" / "app.py", "print('broken')\n")
    (tree / "run.sh").unlink()
    write(tree / "new" / "deep" / "file", "new\n")
    (tree / "empty").rmdir()
    (tree / "empty").symlink_to("/etc/passwd")
    (tree / "link").unlink()
    (tree / "link").mkdir()
    (tree / "README.md").chmod(0o600)


def test_a_restore_brings_the_directory_back_and_its_undo_what_was_there(here: Sandboxed) -> None:
    before = here.listing()
    backup = here.create(name="first")
    break_up(here.tree)
    broken = here.listing()

    restored = here.restore(backup.id)

    assert_same(before, here.listing())
    assert restored.mode == "copy"
    assert restored.undo_id is not None
    assert restored.changes is not None
    assert "src/app.py" in restored.changes.modified
    assert "new/deep/file" in restored.changes.removed
    assert "run.sh" in restored.changes.added

    here.restore(restored.undo_id)
    assert_same(broken, here.listing())


@pytest.mark.parametrize("here", EXACT, indirect=True)
def test_every_kind_of_thing_comes_back_exactly(here: Sandboxed) -> None:
    subprocess.run(["rm", "-rf", here.tree], check=True)
    build_zoo(here.tree)
    before = here.listing()
    backup = here.create()
    subprocess.run(["find", here.tree, "-mindepth", "1", "-delete"], check=True)
    write(here.tree / "other", "other")

    here.restore(backup.id, undo=False)

    assert_same(before, here.listing())


def test_a_backup_of_what_has_not_changed_stores_nothing(here: Sandboxed) -> None:
    first = here.create()
    second = here.create()

    if here.kind != "archive":  # a copy has no stamps to compare
        assert (second.kind, second.size_bytes, second.parent_id) == ("delta", 0, first.id)
    assert here.diff(first.id, second.id) == here.diff(first.id)
    assert not here.diff(first.id)


def test_a_dry_run_and_a_diff_say_what_differs_and_change_nothing(here: Sandboxed) -> None:
    backup = here.create()
    break_up(here.tree)
    broken = here.listing()

    planned = here.restore(backup.id, dry_run=True)
    changes = here.diff(backup.id)

    assert planned.changes is not None
    assert planned.changes.added == changes.removed
    assert planned.changes.removed == changes.added
    assert planned.changes.modified == changes.modified
    assert "new/deep/file" in changes.added
    assert_same(broken, here.listing())


def test_only_the_named_paths_come_back(here: Sandboxed) -> None:
    backup = here.create()
    break_up(here.tree)

    here.restore(backup.id, paths=["src"])

    assert (here.tree / "src" / "app.py").read_text() == "print('hello')\n"
    assert (here.tree / "new" / "deep" / "file").exists()
    assert not (here.tree / "run.sh").exists()


def test_what_is_excluded_is_neither_kept_nor_touched(here: Sandboxed) -> None:
    write(here.tree / "cache" / "object", "large")
    backup = here.create(excludes=["cache/"])
    write(here.tree / "cache" / "object", "larger")
    (here.tree / "run.sh").unlink()

    here.restore(backup.id)

    assert (here.tree / "cache" / "object").read_text() == "larger"
    assert (here.tree / "run.sh").exists()
    assert backup.file_count == 5


def test_a_backup_goes_to_another_directory_which_is_made(here: Sandboxed) -> None:
    backup = here.create()
    other = f"{os.path.dirname(here.dir)}/a/b/other"

    result = here.restore(backup.id, dir=other)

    assert result.undo_id is None
    assert_same(here.listing(), here.listing(other))


def test_what_has_not_changed_is_not_written_again(here: Sandboxed) -> None:
    before = inodes(here.tree)
    backup = here.create()
    write(here.tree / "src" / "app.py", "print('other')\n")

    here.restore(backup.id)

    after = inodes(here.tree)
    assert {path for path in before if before[path] != after[path]} <= {"src/app.py"}


def test_a_file_is_read_out_of_a_backup(here: Sandboxed) -> None:
    backup = here.create()
    (here.tree / "src" / "app.py").unlink()

    async def read() -> bytes:
        async with await here.service.open_file(backup.id, "src/app.py") as stream:
            return b"".join([block async for block in stream])

    assert here.run(read) == b"print('hello')\n"
    listing = here.run(here.service.tree, backup.id, "src")
    assert ("app.py", "file", 15) in [(entry.name, entry.kind, entry.size_bytes) for entry in listing.entries]


def test_what_another_program_backed_up_is_listed_and_comes_back(here: Sandboxed) -> None:
    archive = archive_of(here.tree)
    folder = here.store / "backups" / ID
    folder.mkdir(parents=True)
    (folder / "data.sqsh").write_bytes(archive)
    (folder / "meta.json").write_text(json.dumps(metadata_of(archive, dir=here.dir)))
    before = in_whole_seconds(here.listing())
    break_up(here.tree)

    listing = here.run(here.service.tree, ID, "src")
    assert "app.py" in [entry.name for entry in listing.entries]
    with pytest.raises(NoSuchPathError):
        here.run(here.service.tree, ID, "nothing")
    here.restore(ID)
    assert_same(before, in_whole_seconds(here.listing()))


@pytest.mark.parametrize(
    ("dir", "why"),
    [
        ("/nowhere/at/all", "does not exist"),
        ("relative", "must be an absolute path"),
        ("/proc/self", "belongs to the kernel"),
        ("/", "whole machine"),
    ],
)
def test_a_directory_that_is_none_is_refused(here: Sandboxed, dir: str, why: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=why):
        here.create(dir)


def test_a_file_or_a_link_in_place_of_a_directory_is_refused(here: Sandboxed) -> None:
    (here.tree / "to-etc").symlink_to("/etc")

    with pytest.raises(InvalidBackupConfigError, match="is not a directory"):
        here.create(f"{here.dir}/README.md")
    for through in ("to-etc", "to-etc/ssl"):
        with pytest.raises(InvalidBackupConfigError, match="symlink"):
            here.create(f"{here.dir}/{through}")


def test_a_damaged_layer_is_refused_before_anything_is_touched(here: Sandboxed) -> None:
    before, backup = here.listing(), here.create()
    break_up(here.tree)
    broken = here.listing()
    layer = here.store / "backups" / backup.id / "data.sqsh"
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)

    if here.kind == "helper":  # it has what it sent in its own cache, checked
        here.restore(backup.id, undo=False)
        assert_same(before, here.listing())
        return
    with pytest.raises(BackupIntegrityError):
        here.restore(backup.id, undo=False)
    assert_same(broken, here.listing())


def test_a_deleted_backup_is_gone(here: Sandboxed) -> None:
    backup = here.create()
    here.run(here.service.delete, backup.id)

    with pytest.raises(BackupNotFoundError):
        here.restore(backup.id)


def test_operations_of_several_servers_take_turns(here: Sandboxed) -> None:
    backup = here.create()
    others = [here.open() for _ in range(3)]
    failures: list[BaseException] = []

    def use(number: int) -> None:
        async def operate() -> None:
            service = others[number]
            await service.create(here.dir, name=str(number))
            await service.restore(backup.id, mode="copy")
            await service.close()

        try:
            anyio.run(operate)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    before = here.listing()
    threads = [threading.Thread(target=use, args=(number,)) for number in range(len(others))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert_same(before, here.listing())
    assert {each.name for each in here.run(here.service.list).backups} >= {"0", "1", "2"}


def test_a_cancelled_backup_leaves_nothing(here: Sandboxed) -> None:
    for number in range(300):
        write(here.tree / "many" / str(number), "x" * 1000)

    async def cancel() -> None:
        with anyio.CancelScope() as scope:

            async def report(progress: Progress) -> None:
                if progress.phase == "archiving":
                    scope.cancel()

            await here.service.create(here.dir, report=report)
        assert scope.cancelled_caught

    here.run(cancel)

    assert here.run(here.service.list).backups == ()
    assert os.listdir(here.store / "backups") == []
    assert here.create().file_count == 305


@only
def test_an_overlay_shows_the_backup_and_keeps_what_is_written_from_it(here: Sandboxed) -> None:
    before = in_whole_seconds(here.listing())
    backup = here.create()
    break_up(here.tree)
    broken = here.listing()

    mounted = here.restore(backup.id, mode="overlay")

    assert mounted.mode == "overlay"
    assert_same(before, in_whole_seconds(here.listing()))
    write(here.tree / "on-top", "written")
    again = here.restore(backup.id, mode="overlay")
    assert not (here.tree / "on-top").exists()
    assert again.undo_id is not None
    here.restore(again.undo_id, mode="overlay", undo=False)
    assert (here.tree / "on-top").read_text() == "written"

    here.run(here.service.unmount, here.dir)
    assert_same(broken, here.listing())


@only
def test_a_backup_of_an_overlay_is_what_was_written_to_it(here: Sandboxed) -> None:
    backup = here.create()
    here.restore(backup.id, mode="overlay", undo=False)
    write(here.tree / "on-top", "written")
    (here.tree / "run.sh").unlink()
    shown = here.listing()

    delta = here.create()
    here.run(here.service.unmount, here.dir)
    here.restore(delta.id)

    assert (delta.kind, delta.parent_id) == ("delta", backup.id)
    assert_same(in_whole_seconds(shown), in_whole_seconds(here.listing()))


@only
def test_a_copy_restore_takes_an_overlay_down(here: Sandboxed) -> None:
    before = here.listing()
    backup = here.create()
    here.restore(backup.id, mode="overlay", undo=False)
    write(here.tree / "on-top", "written")

    result = here.restore(backup.id)

    assert result.unmounted
    assert result.undo_id is not None
    assert_same(before, here.listing())
    here.restore(result.undo_id)
    assert (here.tree / "on-top").read_text() == "written"


def test_a_write_between_two_backups_is_seen_whatever_the_clock_shows(here: Sandboxed) -> None:
    path = here.tree / "counter"
    write(path, "00")
    here.create()
    for number in range(1, 6):
        status = path.stat()
        path.write_text(f"{number:02}")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        backup = here.create()
        write(path, "xx")
        here.restore(backup.id, undo=False)
        assert path.read_text() == f"{number:02}"
        time.sleep(0.005)
