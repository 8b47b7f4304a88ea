"""Trees that are written to while they are captured, and operations that are cancelled midway."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import psutil
import pytest

from helpers.place import Place
from helpers.trees import ACL_ACCESS, Listing, assert_same, list_tree, make_acl, write
from sandpoint.engine import upper
from sandpoint.engine.manifest import Entry, Manifest
from sandpoint.engine.walk import _Walk, moved_since, walk_tree
from sandpoint.models import Backup, Progress

QUIET = "quiet"


@pytest.fixture
def live(place: Place) -> Place:
    """A tree of which a part is quiet, and large enough that a capture takes a while."""
    for number in range(300):
        write(place.tree / QUIET / f"dir{number % 7}" / f"file{number}", f"{number}\n" * 50)
    for number in range(20):
        write(place.tree / "busy" / f"file{number}", os.urandom(100_000))
    return place


@pytest.fixture(params=["full", "delta", "delta of an overlay"])
def captured(live: Place, request: pytest.FixtureRequest) -> Place:
    """The same, where the next capture is a full one, or one of what has changed: most bytes are quiet."""
    (live.tree / QUIET / "large").touch()
    os.truncate(live.tree / QUIET / "large", 16 << 20)
    for path in (live.tree, *live.tree.rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # an overlay shows whole seconds
    if request.param != "full":
        backup = live.create()
        if request.param == "delta of an overlay":
            live.restore(backup.id, mode="overlay", undo=False)
    return live


@contextmanager
def busy(write_once: Callable[[int], None]) -> Iterator[None]:
    """Write to the tree all the time that a block takes."""
    stop = threading.Event()
    began = threading.Event()
    problems: list[BaseException] = []

    def work() -> None:
        number = 0
        try:
            while not stop.is_set():
                write_once(number)
                number += 1
                began.set()
        except BaseException as error:  # noqa: BLE001 - raised by the test
            problems.append(error)
        finally:
            began.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        began.wait(10)
        yield
    finally:
        stop.set()
        thread.join()
    assert not problems


def assert_restorable(live: Place, backup: Backup) -> Listing:
    """Restore elsewhere; what is quiet is exact, and the restored tree is exactly what the backup says."""
    assert (backup.kind == "delta") == (len(live.ids()) > 1)
    other = live.base / "other"
    live.restore(backup.id, dir=other, undo=False)
    assert_same(list_tree(live.tree / QUIET), list_tree(other / QUIET))
    assert not live.diff(backup.id, dir=str(other))
    assert live.run(live.service.verify, backup.id).ok
    assert all(not path.startswith(QUIET) for path in backup.unstable_paths)
    live.assert_clean()
    return list_tree(other)


def test_files_that_are_rewritten(captured: Place) -> None:
    sizes = (10, 100_000, 50_000)

    def rewrite(number: int) -> None:
        (captured.tree / "busy" / f"file{number % 20}").write_bytes(bytes([number % 256]) * sizes[number % 3])

    with busy(rewrite):
        backup = captured.create()
    assert_restorable(captured, backup)


def test_what_is_not_named_unstable_is_a_state_that_was_there(captured: Place) -> None:
    """Each file always holds one letter, whole: a file of two letters, not named, would be a torn one."""
    for number in range(20):
        (captured.tree / "busy" / f"file{number}").write_bytes(b"a" * 300_000)

    def replace(number: int) -> None:
        new = captured.tree / "busy" / f"new{number % 20}"
        new.write_bytes(bytes([97 + number % 26]) * 300_000)
        new.rename(captured.tree / "busy" / f"file{number % 20}")

    with busy(replace):
        backup = captured.create()
    assert_restorable(captured, backup)
    for path in (captured.base / "other" / "busy").glob("file*"):
        if f"busy/{path.name}" not in backup.unstable_paths:
            assert len(set(path.read_bytes())) == 1


def test_files_that_grow(captured: Place) -> None:
    def append(number: int) -> None:
        with open(captured.tree / "busy" / f"file{number % 20}", "ab") as file:
            file.write(b"a line of a log\n" * 100)
        if number % 200 == 0:
            for index in range(20):
                os.truncate(captured.tree / "busy" / f"file{index}", 0)

    with busy(append):
        backup = captured.create()
    assert_restorable(captured, backup)


def test_a_file_that_never_rests_keeps_its_acl(live: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    log = live.tree / "busy" / "log"
    write(log, "a line\n")
    os.setxattr(log, ACL_ACCESS, make_acl(user=4242))

    def append_and_look(view: int, manifest: Manifest) -> list[Entry]:
        with log.open("a") as file:
            file.write("another line\n")
        return moved_since(view, manifest)

    with monkeypatch.context() as patch:
        patch.setattr("sandpoint.engine.capture_full.moved_since", append_and_look)
        backup = live.create()

    assert backup.unstable_paths == ("busy/log",)
    assert_restorable(live, backup)
    assert os.getxattr(live.base / "other" / "busy" / "log", ACL_ACCESS) == make_acl(user=4242)


def test_files_and_folders_that_come_and_go(captured: Place) -> None:
    def come_and_go(number: int) -> None:
        folder = captured.tree / "busy" / f"dir{number % 10}"
        write(folder / "deep" / "file", "x\n" * number)
        os.symlink("file", folder / "deep" / "link")
        shutil.rmtree(captured.tree / "busy" / f"dir{(number + 5) % 10}", ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)

    with busy(come_and_go):
        backup = captured.create()
    assert_restorable(captured, backup)


def test_folders_that_are_renamed(captured: Place) -> None:
    write(captured.tree / "busy" / "here" / "sub" / "file", "x\n")

    def rename(number: int) -> None:
        names = ("here", "there")
        (captured.tree / "busy" / names[number % 2]).rename(captured.tree / "busy" / names[(number + 1) % 2])

    with busy(rename):
        backup = captured.create()
    assert_restorable(captured, backup)


def test_types_that_change(captured: Place) -> None:
    target = captured.tree / "busy" / "changing"

    def change(number: int) -> None:
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        match number % 3:
            case 0:
                write(target / "file", "in a folder\n")
            case 1:
                target.symlink_to("file1")
            case _:
                target.write_text("a file\n")

    with busy(change):
        backup = captured.create()
    assert_restorable(captured, backup)


def test_hard_links_that_come_and_go(captured: Place) -> None:
    def relink(number: int) -> None:
        link = captured.tree / "busy" / f"link{number % 5}"
        with suppress(FileNotFoundError):
            link.unlink()
        os.link(captured.tree / "busy" / f"file{number % 3}", link)

    with busy(relink):
        backup = captured.create()
    assert_restorable(captured, backup)


class Mover:
    """Moves a file, in so many looks at a tree, from the folder that is listed last into the one listed first."""

    def __init__(self, tree: Path, times: int) -> None:
        self.looks = 0
        self.listed: list[Path] = []
        self._tree, self._times = tree, times
        self._folders = [tree / "one", tree / "two"]
        for folder in self._folders:
            write(self._of(folder, folder), folder.name)

    @staticmethod
    def _of(folder: Path, owner: Path) -> Path:
        return folder / f"of {owner.name}"

    def before(self, path: bytes) -> None:
        """A directory is about to be listed: with the top all is put back, and a look begins."""
        if self._tree / os.fsdecode(path) != self._tree:
            return
        self.looks += 1
        for came in self.listed[:1]:
            for folder in self._folders:
                with suppress(FileNotFoundError):
                    self._of(came, folder).rename(self._of(folder, folder))
        self.listed.clear()

    def after(self, path: bytes) -> None:
        """A directory was listed."""
        folder = self._tree / os.fsdecode(path)
        if folder not in self._folders:
            return
        self.listed.append(folder)
        if len(self.listed) == 1 and self.looks <= self._times:
            (other,) = {*self._folders} - {folder}
            self._of(other, other).rename(self._of(folder, other))

    def assert_nothing_is_lost(self, live: Place, backup: Backup) -> None:
        """Fail unless the look was taken again, and the folder named into which a file came each time."""
        assert (backup.kind, self.looks) == ("delta", 2)
        if self._times == 2:
            assert backup.unstable_paths == (self.listed[0].name,)
            backup = live.create()
        assert backup.unstable_paths == ()
        live.restore(backup.id, dir=live.base / "other", undo=False)
        assert {path.read_text() for path in (live.base / "other").glob("*/of *")} == {"one", "two"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_moved_behind_the_back_of_the_walk_is_not_lost(
    live: Place, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    mover = Mover(live.tree, times)
    live.create()
    visit = _Walk._directory

    def visit_and_move(self: _Walk, path: bytes) -> None:
        mover.before(path)
        visit(self, path)
        mover.after(path)

    with monkeypatch.context() as patch:
        patch.setattr(_Walk, "_directory", visit_and_move)
        backup = live.create()

    mover.assert_nothing_is_lost(live, backup)


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_moved_behind_the_back_of_a_look_at_an_overlay_is_not_lost(
    live: Place, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    mover = Mover(live.tree, times)
    live.restore(live.create().id, mode="overlay", undo=False)
    for folder in ("one", "two"):
        write(live.tree / folder / "more", "so that it lies in the upper layer")
    listed = upper._listed

    def list_and_move(fd: int, above: bytes) -> list[tuple[bytes, bool, bool]]:
        mover.before(above)
        found = listed(fd, above)
        mover.after(above)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(upper, "_listed", list_and_move)
        backup = live.create()

    mover.assert_nothing_is_lost(live, backup)


def test_a_restore_of_a_tree_that_is_written_to_is_right_once_it_is_quiet(live: Place) -> None:
    before, quiet = list_tree(live.tree), list_tree(live.tree / QUIET)
    backup = live.create()
    shutil.rmtree(live.tree / QUIET / "dir1")

    def append(number: int) -> None:
        with open(live.tree / "busy" / f"file{number % 20}", "ab") as file:
            file.write(b"more\n")

    with busy(append):
        live.restore(backup.id, undo=False)
    assert_same(quiet, list_tree(live.tree / QUIET))
    live.restore(backup.id)
    assert_same(before, list_tree(live.tree))


# -- cancelled --


def cancelled_at(live: Place, phase: str, *, operation: str, argument: str) -> bool:
    """Run an operation and cancel it when it reports a phase; return whether it was cancelled."""

    async def run() -> bool:
        with anyio.CancelScope() as scope:

            async def report(progress: Progress) -> None:
                if progress.phase == phase:
                    scope.cancel()

            await getattr(live.service, operation)(argument, report=report)
        return scope.cancelled_caught

    return anyio.run(run)


@pytest.mark.parametrize("phase", ["reading", "archiving", "storing"])
def test_a_cancelled_create_leaves_nothing(live: Place, phase: str) -> None:
    before = list_tree(live.tree)

    was_cancelled = cancelled_at(live, phase, operation="create", argument=str(live.tree))

    assert len(live.ids()) == (0 if was_cancelled else 1)
    assert was_cancelled or phase == "reading"  # a small tree is read before the first report
    live.assert_clean()
    live.assert_unmounted()
    assert_same(before, list_tree(live.tree))


def test_a_create_cancelled_after_its_walk_leaves_no_mksquashfs_running(
    live: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled between the end of the walk and the wait for mksquashfs, which runs beside it."""
    children: list[psutil.Process] = []
    others = psutil.Process().children(recursive=True)

    async def run() -> None:
        loop = anyio.lowlevel.current_token()
        with anyio.CancelScope() as scope:

            def walk_and_cancel(*args: Any, **kwargs: Any) -> Manifest:
                manifest = walk_tree(*args, **kwargs)
                children.extend(each for each in psutil.Process().children(recursive=True) if each not in others)
                anyio.from_thread.run_sync(scope.cancel, token=loop)
                return manifest

            monkeypatch.setattr("sandpoint.engine.capture_full.walk_tree", walk_and_cancel)
            await live.service.create(str(live.tree))

    anyio.run(run)
    assert children, "mksquashfs does not run beside the walk any more: this test tests nothing"
    assert [child.pid for child in children if child.is_running()] == []
    assert live.ids() == []
    live.assert_clean()


@pytest.mark.parametrize("phase", ["comparing", "reading", "archiving", "storing", "extracting", "applying"])
def test_a_cancelled_restore_leaves_the_directory_as_it_was(live: Place, phase: str) -> None:
    backup = live.create()
    shutil.rmtree(live.tree / QUIET / "dir1")
    write(live.tree / "busy" / "file1", "changed\n")
    write(live.tree / "new", "new\n")
    before = list_tree(live.tree)

    was_cancelled = cancelled_at(live, phase, operation="restore", argument=backup.id)

    if was_cancelled:
        assert_same(before, list_tree(live.tree))
        assert live.ids() == [backup.id]
    assert was_cancelled or phase in {"comparing", "reading"}
    live.assert_clean()
    live.restore(backup.id)
    assert not live.diff(backup.id)


def test_a_timeout_at_any_moment_leaves_nothing(live: Place) -> None:
    async def create(seconds: float) -> bool:
        with anyio.move_on_after(seconds) as scope:
            await live.service.create(str(live.tree))
        return scope.cancelled_caught

    whole = 0
    for step in range(12):
        whole += not anyio.run(create, step * 0.012)
        assert len(live.ids()) == whole
        live.assert_clean()


def test_a_timeout_of_a_restore_at_any_moment_leaves_one_of_two_states(live: Place, tmp_path: Path) -> None:
    after = list_tree(live.tree)
    backup = live.create()

    async def restore(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await live.service.restore(backup.id, undo=False)

    for step in range(12):
        shutil.rmtree(live.tree / QUIET / "dir1", ignore_errors=True)
        write(live.tree / "busy" / "file1", "changed\n", mtime_ns=5)
        write(live.tree / "new", "new\n", mtime_ns=5)
        before = list_tree(live.tree)
        anyio.run(restore, step * 0.012)
        found = list_tree(live.tree)
        if found != after:
            assert_same(before, found)
        live.assert_clean()
