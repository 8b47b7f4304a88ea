"""Snapshots: a directory brought back to any of them, whatever became of it."""

import errno
import fcntl
import json
import mmap
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import ordinary
from helpers.changes import (
    CHANGES,
    DEEP_PATHS,
    LINK_CHANGES,
    LINK_VERBS,
    Step,
    build_varied,
    carry_out,
    expected_changes,
    wait_until_settled,
)
from helpers.engine import Stopped, count_descriptors
from helpers.place import bind, mounted, tmpfs
from helpers.trees import Listing, assert_same, build_small, build_zoo, inodes, list_tree, write
from sandpoint.engine import linux
from sandpoint.engine import place as places
from sandpoint.engine.snapshot import Snapshot, Snapshots
from sandpoint.engine.state import State
from sandpoint.errors import BackupCreateError, BackupIntegrityError, BackupRestoreError, InvalidBackupConfigError

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

ALL_CHANGES = {**CHANGES, **LINK_CHANGES}


class Monitor:
    """Counts how often an operation asks whether to go on, and does something each time."""

    def __init__(self) -> None:
        self.checks = 0
        self.act: Callable[[int], object] = lambda checks: None

    def check(self) -> None:
        """Count."""
        self.checks += 1
        self.act(self.checks)

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """Tell nobody."""


class Place:
    """A directory, its snapshots, and where they keep what they need."""

    def __init__(self, tree: Path, home: Path) -> None:
        self.tree = tree
        self.home = home
        self.monitor = Monitor()
        self.folder = home / "kept"
        self.snapshots = Snapshots(str(tree), str(self.folder), State(str(home / "state")), self.monitor)

    def take(self) -> tuple[Snapshot, Listing]:
        """Take a snapshot, and return it with a listing of what it is of."""
        return self.snapshots.take(), list_tree(self.tree)

    def bring_back(self, taken: tuple[Snapshot, Listing]) -> None:
        """Bring the directory back, and check that it is as listed, and that nothing else is left."""
        snapshot, listing = taken
        self.snapshots.bring_back(snapshot)
        assert_same(listing, list_tree(self.tree))
        assert self.snapshots.compare(snapshot).is_empty
        self.assert_clean()

    def assert_clean(self) -> None:
        """Fail if something is left that only a running operation may have."""
        assert list((self.home / "state").glob("work/*")) == []
        assert not [name for name in os.listdir(self.tree) if name.startswith(".sandpoint-")]

    def objects(self) -> set[str]:
        """Return the names of the contents that are kept."""
        return set(os.listdir(self.folder / "objects"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "tree").mkdir()
    return Place(tmp_path / "tree", tmp_path)


# -- every kind of change --


@pytest.mark.parametrize("name", ALL_CHANGES)
@pytest.mark.parametrize("settled", [True, False], ids=["settled", "fresh"])
def test_every_change_is_found_and_undone(place: Place, name: str, *, settled: bool) -> None:
    build_varied(place.tree)
    if settled:
        wait_until_settled(place.tree)
    taken = place.take()
    ALL_CHANGES[name](place.tree)
    found = place.snapshots.compare(taken[0]).changes()
    assert found == expected_changes(taken[1], list_tree(place.tree))
    place.bring_back(taken)


def test_every_change_is_found_and_undone_in_memory(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", size="256m") as memory:
        for number, (name, change) in enumerate(ALL_CHANGES.items()):
            place = Place(memory / str(number), tmp_path)
            build_varied(place.tree)
            taken = place.take()
            change(place.tree)
            found = place.snapshots.compare(taken[0]).changes()
            assert found == expected_changes(taken[1], list_tree(place.tree)), name
            place.bring_back(taken)
            shutil.rmtree(place.folder)


def test_all_changes_after_one_another_are_undone_at_once(place: Place) -> None:
    build_varied(place.tree)
    wait_until_settled(place.tree)
    taken = place.take()
    for change in ALL_CHANGES.values():
        try:
            change(place.tree)
        except OSError:
            continue  # an earlier one has taken away what it needs
    assert place.snapshots.compare(taken[0]).changes() == expected_changes(taken[1], list_tree(place.tree))
    place.bring_back(taken)


def test_a_tree_with_everything_in_it_comes_back_from_nothing(place: Place) -> None:
    place.tree.rmdir()
    build_zoo(place.tree)
    taken = place.take()
    for path in place.tree.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    place.tree.chmod(0o700)
    os.removexattr(place.tree, "user.root")
    place.bring_back(taken)
    sparse = (place.tree / "contents" / "sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size // 10
    assert sum(path.stat().st_blocks for path in (place.folder / "objects").iterdir()) * 512 < 4_000_000


def test_a_tree_with_everything_in_it_is_left_alone_where_nothing_changed(place: Place) -> None:
    place.tree.rmdir()
    build_zoo(place.tree)
    taken = place.take()
    before = inodes(place.tree)
    assert place.snapshots.compare(taken[0]).is_empty
    place.bring_back(taken)
    assert inodes(place.tree) == before


def test_only_what_changed_gets_new_inodes(place: Place) -> None:
    build_small(place.tree)
    taken = place.take()
    before = inodes(place.tree)
    here = place.tree.stat().st_ino
    write(place.tree / "src" / "app.py", b"changed")
    place.bring_back(taken)
    after = inodes(place.tree)
    assert {name for name in before if before[name] != after[name]} == {"src/app.py"}
    assert place.tree.stat().st_ino == here


# -- the directory itself --


def _remove(tree: Path) -> None:
    shutil.rmtree(tree)


def _remove_with_parents(tree: Path) -> None:
    shutil.rmtree(tree.parent)


def _become_file(tree: Path) -> None:
    shutil.rmtree(tree)
    write(tree, b"a file")


def _become_link(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.symlink_to("moved")


def _become_link_to_nowhere(tree: Path) -> None:
    shutil.rmtree(tree)
    tree.symlink_to("nowhere")


def _become_fifo(tree: Path) -> None:
    shutil.rmtree(tree)
    os.mkfifo(tree)


def _become_another(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    build_small(tree)
    tree.chmod(0o500)


@pytest.mark.parametrize(
    "change",
    [
        _remove,
        _remove_with_parents,
        _become_file,
        _become_link,
        _become_link_to_nowhere,
        _become_fifo,
        _become_another,
    ],
)
def test_the_directory_itself_comes_back(tmp_path: Path, change: Callable[[Path], None]) -> None:
    place = Place(tmp_path / "around" / "tree", tmp_path)
    build_varied(place.tree)
    place.tree.chmod(0o2750)
    os.chown(place.tree, 12, 34)
    os.setxattr(place.tree, "user.own", b"x")
    place.tree.chmod(0o2750)
    taken = place.take()
    change(place.tree)
    place.bring_back(taken)
    if place.tree.with_name("moved").exists():
        assert_same(
            {path: item for path, item in taken[1].items() if path},
            {path: item for path, item in list_tree(place.tree.with_name("moved")).items() if path},
        )


def test_a_directory_that_is_gone_cannot_be_compared(place: Place) -> None:
    snapshot, _ = place.take()
    place.tree.rmdir()
    with pytest.raises(InvalidBackupConfigError, match="does not exist"):
        place.snapshots.compare(snapshot)


def test_a_link_above_the_directory_leads_nowhere(tmp_path: Path) -> None:
    place = Place(tmp_path / "around" / "tree", tmp_path)
    build_small(place.tree)
    snapshot, _ = place.take()
    (tmp_path / "around").rename(tmp_path / "moved")
    (tmp_path / "around").symlink_to("moved")
    write(tmp_path / "moved" / "tree" / "README.md", b"not to be touched")
    with pytest.raises(InvalidBackupConfigError, match="symlink"):
        place.snapshots.bring_back(snapshot)
    assert (tmp_path / "moved" / "tree" / "README.md").read_bytes() == b"not to be touched"


def test_links_inside_lead_nowhere(place: Place, tmp_path: Path) -> None:
    write(place.tree / "dir" / "inner" / "file", b"inside")
    taken = place.take()
    outside = tmp_path / "outside"
    write(outside / "inner" / "file", b"outside")
    write(outside / "inner" / "more", b"outside")
    before = list_tree(outside)
    shutil.rmtree(place.tree / "dir")
    (place.tree / "dir").symlink_to(outside)
    place.bring_back(taken)
    assert_same(before, list_tree(outside))


# -- several snapshots --


def test_snapshots_share_what_did_not_change(place: Place) -> None:
    build_varied(place.tree)
    first = place.take()
    files = {item.links for item in first[1].values() if item.kind == "file" and item.size}
    assert len(place.objects()) == len(files)
    second = place.take()
    assert second[0].objects == first[0].objects
    assert len(place.objects()) == len(files)
    write(place.tree / "file", b"changed")
    third = place.take()
    assert len(place.objects()) == len(files) + 1
    assert {path for path, number in third[0].objects.items() if first[0].objects[path] != number} == {b"file"}


def test_a_settled_file_is_not_even_read_for_the_next_snapshot(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SETTLE_WAIT_S", 60.0)  # the machine's disk may be busy
    build_varied(place.tree)
    wait_until_settled(place.tree)
    first, _ = place.take()
    shutil.rmtree(place.folder / "objects")  # what is read is compared with what is kept
    second, _ = place.take()
    assert place.objects() == set()
    assert second.objects == first.objects
    assert all(second.manifest.entries[path] is entry for path, entry in first.manifest.entries.items())


def test_a_file_that_was_only_touched_is_not_kept_again(place: Place) -> None:
    build_varied(place.tree)
    first = place.take()
    os.utime(place.tree / "big", ns=(1, 1))
    (place.tree / "file").chmod(0o600)
    write(place.tree / "other", (place.tree / "other").read_bytes())
    count = len(place.objects())
    second = place.take()
    assert len(place.objects()) == count
    place.bring_back(first)
    place.bring_back(second)


def test_what_was_brought_back_is_not_kept_again(place: Place) -> None:
    build_varied(place.tree)
    first = place.take()
    write(place.tree / "file", b"changed")
    (place.tree / "other").unlink()
    place.bring_back(first)
    count = len(place.objects())
    second = place.take()
    assert len(place.objects()) == count
    assert second[0].objects == first[0].objects


def test_any_of_several_snapshots_comes_back_again_and_again(place: Place) -> None:
    build_varied(place.tree)
    taken = [place.take()]
    for number, name in enumerate(("a tree removed", "a file became a directory", "links between other files")):
        ALL_CHANGES[name](place.tree)
        write(place.tree / "number", str(number))
        taken.append(place.take())
    for _ in range(3):
        for each in (taken[3], taken[0], taken[2], taken[1], taken[1], taken[3], taken[0]):
            place.bring_back(each)
    for one in taken:
        for other in taken:
            place.bring_back(one)
            assert place.snapshots.compare(other[0]).changes() == expected_changes(other[1], one[1])


def test_it_is_brought_back_many_times(place: Place) -> None:
    build_varied(place.tree)
    taken = place.take()
    objects, descriptors = place.objects(), count_descriptors()
    names = list(ALL_CHANGES)
    for number in range(100):
        ALL_CHANGES[names[number * 7 % len(names)]](place.tree)
        place.snapshots.bring_back(taken[0])
        place.assert_clean()
    assert_same(taken[1], list_tree(place.tree))
    assert place.objects() == objects
    assert count_descriptors() == descriptors


def test_what_no_snapshot_needs_is_removed_and_nothing_else(place: Place) -> None:
    build_varied(place.tree)
    first = place.take()
    write(place.tree / "only in the second", b"2")
    write(place.tree / "file", b"second")
    second = place.take()
    (place.tree / "only in the second").unlink()
    write(place.tree / "file", b"third")
    (place.tree / "big").unlink()
    third = place.take()
    everything = place.objects()
    place.snapshots.keep_only([first[0], second[0]])
    assert place.objects() == everything
    place.snapshots.keep_only([first[0]])
    assert place.objects() == {str(number) for number in first[0].numbers | third[0].numbers}
    assert len(place.objects()) == len(everything) - 2
    for each in (first, third, first):
        place.bring_back(each)
    place.snapshots.keep_only([])  # the last one is what the next one is compared with
    assert place.objects() == {str(number) for number in third[0].numbers}
    fourth = place.take()
    write(place.tree / "file", b"after the fourth")
    place.bring_back(fourth)


# -- saved for another process --


def test_a_saved_snapshot_is_brought_back_by_another_process(place: Place) -> None:
    build_varied(place.tree)
    snapshot, listing = place.take()
    place.snapshots.save(snapshot, 1)
    write(place.tree / "file", b"changed")
    later, _ = place.take()
    place.snapshots.save(later, 2)
    ALL_CHANGES["everything removed"](place.tree)
    script = f"""
from sandpoint.engine.snapshot import Snapshots
from sandpoint.engine.state import State
class Nobody:
    def check(self): pass
    def progress(self, *told): pass
snapshots = Snapshots({str(place.tree)!r}, {str(place.folder)!r}, State({str(place.home / "state")!r}), Nobody())
snapshots.bring_back(snapshots.load(1))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert_same(listing, list_tree(place.tree))
    assert [path.name for path in place.folder.glob("*.partial")] == []


def test_what_is_loaded_is_what_was_saved(place: Place) -> None:
    place.tree.rmdir()
    build_zoo(place.tree)
    snapshot, _ = place.take()
    place.snapshots.save(snapshot, 7)
    loaded = Snapshots(str(place.tree), str(place.folder), State(str(place.home / "state")), Monitor()).load(7)
    assert loaded.manifest.header == snapshot.manifest.header
    assert loaded.manifest.entries == snapshot.manifest.entries
    assert loaded.objects == snapshot.objects


def test_a_damaged_snapshot_is_not_loaded(place: Place) -> None:
    write(place.tree / "file", b"x")
    snapshot, _ = place.take()
    place.snapshots.save(snapshot, 1)
    manifest, objects = place.folder / "1.manifest", place.folder / "1.objects"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(BackupIntegrityError):
        place.snapshots.load(1)
    manifest.write_bytes(kept)
    objects.write_bytes(b"\x81")
    with pytest.raises(msgspec.MsgspecError):
        place.snapshots.load(1)
    with pytest.raises(FileNotFoundError):
        place.snapshots.load(2)


def test_a_missing_content_is_an_error_and_changes_nothing(place: Place) -> None:
    build_small(place.tree)
    snapshot, _ = place.take()
    (place.tree / "run.sh").unlink()
    write(place.tree / "README.md", b"changed")
    after = list_tree(place.tree)
    for path in (place.folder / "objects").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError):
        place.snapshots.bring_back(snapshot)
    assert_same(after, list_tree(place.tree))
    place.assert_clean()


def test_a_content_cut_short_is_an_error_and_changes_nothing(place: Place) -> None:
    build_small(place.tree)
    snapshot, _ = place.take()
    shutil.rmtree(place.tree / "src")
    after = list_tree(place.tree)
    for path in (place.folder / "objects").iterdir():
        os.truncate(path, 1)
    with pytest.raises(BackupIntegrityError):
        place.snapshots.bring_back(snapshot)
    assert_same(after, list_tree(place.tree))
    place.assert_clean()


# -- writes through mappings --


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        yield mapping


@pytest.fixture(params=["ext4", "tmpfs"])
def mapping_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "ext4":
        (tmp_path / "tree").mkdir()
        yield Place(tmp_path / "tree", tmp_path)
    else:
        with tmpfs(tmp_path / "tree") as tree:
            yield Place(tree, tmp_path)


def test_a_write_through_a_mapping_is_undone(mapping_place: Place) -> None:
    place = mapping_place
    write(place.tree / "mapped", b"a" * 16384)
    with mapped(place.tree / "mapped") as mapping:
        mapping[0] = ord("b")  # stamps the file, and leaves its page open for more
        wait_until_settled(place.tree)
        taken = place.take()
        mapping[1] = ord("c")
        assert place.snapshots.compare(taken[0]).changes().modified == ("mapped",)
        place.bring_back(taken)
    assert (place.tree / "mapped").read_bytes()[:3] == b"baa"


def test_a_write_through_a_mapping_after_a_later_snapshot_is_undone(mapping_place: Place) -> None:
    place = mapping_place
    write(place.tree / "mapped", b"a" * 16384)
    wait_until_settled(place.tree)
    first = place.take()
    with mapped(place.tree / "mapped") as mapping:
        taken = []
        for number in range(5):
            mapping[number] = ord("b")
            wait_until_settled(place.tree)
            mapping[4096] = ord("0") + number  # maybe unseen: the same page may be open already
            taken.append(place.take())
        mapping[5] = ord("c")
        mapping[4096] = ord("x")
        assert place.snapshots.compare(taken[-1][0]).changes().modified == ("mapped",)
        place.bring_back(taken[-1])
    assert (place.tree / "mapped").read_bytes()[:6] == b"bbbbba"
    for each in (*reversed(taken), first):
        place.bring_back(each)


def test_a_mapping_that_was_made_before_the_first_snapshot_is_seen_by_the_third(mapping_place: Place) -> None:
    place = mapping_place
    write(place.tree / "mapped", b"a" * 4096)
    with mapped(place.tree / "mapped") as mapping:
        mapping[0] = ord("1")
        taken = [place.take()]
        for content in b"23":
            mapping[0] = content
            taken.append(place.take())
            wait_until_settled(place.tree)
        mapping[0] = ord("4")
        for number, each in reversed(list(enumerate(taken, 1))):
            assert place.snapshots.compare(each[0]).changes().modified == ("mapped",)
            place.bring_back(each)
            assert (place.tree / "mapped").read_bytes()[:1] == b"%d" % number


def make_ext4(image: Path, size: int) -> None:
    with image.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)


@contextmanager
def frozen(filesystem: Path, seconds: float) -> Iterator[None]:
    """Let nothing be written to a filesystem for a time."""
    fd = os.open(filesystem, os.O_RDONLY)
    fcntl.ioctl(fd, FIFREEZE, 0)
    thaw = threading.Timer(seconds, lambda: fcntl.ioctl(fd, FITHAW, 0))
    thaw.start()
    try:
        yield
    finally:
        thaw.join()
        os.close(fd)


def test_a_write_through_a_mapping_while_the_page_before_is_on_its_way_to_a_slow_disk_is_undone(tmp_path: Path) -> None:
    # The disk is an image on a filesystem that is frozen for a moment.
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    outer.mkdir()
    inner.mkdir()
    make_ext4(tmp_path / "outer.img", 96 << 20)
    with mounted(outer, "-o", "loop", str(tmp_path / "outer.img")):
        make_ext4(outer / "inner.img", 48 << 20)
        with mounted(inner, "-o", "loop", str(outer / "inner.img")):
            place = Place(inner / "tree", tmp_path)
            write(place.tree / "mapped", b"a" * 4096)
            wait_until_settled(place.tree)
            place.take()
            with mapped(place.tree / "mapped") as mapping, (place.tree / "mapped").open("rb") as file:
                with frozen(outer, 0.5):
                    mapping[0] = ord("b")
                    linux.write_out(file.fileno())
                    mapping[1] = ord("c")
                    wait_until_settled(place.tree)
                    taken = place.take()
                    mapping[2] = ord("d")
                assert place.snapshots.compare(taken[0]).changes().modified == ("mapped",)
                place.bring_back(taken)
            assert (place.tree / "mapped").read_bytes()[:4] == b"bcaa"


def test_where_the_filesystem_does_not_settle_bytes_are_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, path: str) -> None:
        raise OSError(errno.EIO, "it does not", path)

    monkeypatch.setattr(linux, "sync_filesystem", refuse)
    build_varied(place.tree)
    wait_until_settled(place.tree)
    taken = place.take()
    assert not taken[0].manifest.header.stamps
    assert not place.take()[0].manifest.header.stamps
    ALL_CHANGES["a file edited, size and time as before"](place.tree)
    assert place.snapshots.compare(taken[0]).changes().modified == ("file",)
    place.bring_back(taken)


# -- a tree that changes while it is read --


def test_a_file_that_is_written_to_all_the_time_cannot_be_kept(place: Place) -> None:
    build_small(place.tree)

    def go_on_writing(checks: int) -> None:
        with (place.tree / "src" / "log").open("ab") as file:
            file.write(b"on and on\n")

    go_on_writing(0)
    place.monitor.act = go_on_writing
    with pytest.raises(BackupCreateError, match="src/log is written to all the time"):
        place.snapshots.take()
    assert place.objects() == set()
    place.assert_clean()
    place.monitor.act = lambda checks: None
    taken = place.take()
    write(place.tree / "src" / "log", b"")
    place.bring_back(taken)


def test_a_file_that_another_process_goes_on_writing_cannot_be_kept(place: Place) -> None:
    # So large that the other process has its turns while it is copied, however busy the machine is.
    path = write(place.tree / "busy", bytes(128 << 20))
    script = f"""
import os
fd = os.open({str(path)!r}, os.O_RDWR)
print(flush=True)
while os.getppid() == {os.getpid()}:
    os.pwrite(fd, os.urandom(8), 8 << 20)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            with pytest.raises(BackupCreateError, match="busy is written to"):
                place.snapshots.take()
        finally:
            process.kill()
    place.bring_back(place.take())


@pytest.mark.parametrize("moves", [1, 4])
def test_a_file_that_comes_to_rest_is_kept_as_it_then_is(place: Place, moves: int) -> None:
    write(place.tree / "a", b"x")
    write(place.tree / "log", b"")
    files = 1

    def write_a_little(checks: int) -> None:
        if checks <= moves * files:
            with (place.tree / "a").open("ab") as file:
                file.write(b"x")

    place.monitor.act = write_a_little
    taken = place.take()
    assert taken[1][b"a"].size == 1 + moves
    assert len(place.objects()) == 1
    (place.tree / "a").unlink()
    place.bring_back(taken)


@pytest.mark.parametrize(
    "become",
    [
        lambda path: None,
        os.mkdir,
        os.mkfifo,
        lambda path: os.symlink("/etc/hostname", path),
        lambda path: path.write_bytes(b"new"),
    ],
    ids=["nothing", "directory", "fifo", "symlink", "another"],
)
def test_a_file_that_becomes_something_else_meanwhile_is_kept_as_that(
    place: Place, become: Callable[[Path], object]
) -> None:
    path = write(place.tree / "file", b"old")
    write(place.tree / "other", b"other")

    def swap(checks: int) -> None:
        if checks == 1:
            path.unlink()
            become(path)

    place.monitor.act = swap
    taken = place.take()
    ALL_CHANGES["everything removed"](place.tree)
    place.bring_back(taken)


def test_a_file_that_changes_while_it_is_compared_is_brought_back(place: Place) -> None:
    write(place.tree / "file", b"old")
    write(place.tree / "gone", b"old")
    taken = place.take()

    def swap(checks: int) -> None:
        place.monitor.act = lambda checks: None
        write(place.tree / "file", b"new")
        (place.tree / "gone").unlink()
        (place.tree / "gone").symlink_to("/etc/hostname")

    place.monitor.act = swap
    place.snapshots.bring_back(taken[0])
    assert_same(taken[1], list_tree(place.tree))


# -- faults --


def test_no_room_for_a_snapshot_leaves_nothing_of_it(tmp_path: Path) -> None:
    build_varied(tmp_path / "tree")
    write(tmp_path / "tree" / "too big", os.urandom(3 << 20))
    with tmpfs(tmp_path / "home", size="2m") as home:
        place = Place(tmp_path / "tree", home)
        before = list_tree(place.tree)
        with pytest.raises(OSError, match="No space") as caught:
            place.snapshots.take()
        assert caught.value.errno == errno.ENOSPC
        assert_same(before, list_tree(place.tree))
        assert place.objects() == set()
        (place.tree / "too big").unlink()
        taken = place.take()
        write(place.tree / "too big", os.urandom(3 << 20))
        kept = place.objects()
        with pytest.raises(OSError, match="No space"):
            place.snapshots.take()
        assert place.objects() == kept
        place.bring_back(taken)


def test_no_room_to_bring_back_is_found_before_the_first_change(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "tree", size="4m") as tree:
        place = Place(tree, tmp_path)
        build_varied(tree)
        write(tree / "too big", os.urandom(2 << 20))
        taken = place.take()
        ALL_CHANGES["a directory renamed and changed"](tree)
        write(tree / "too big", os.urandom(2 << 20))
        write(tree / "more", os.urandom(1 << 20))
        before = list_tree(tree)
        with pytest.raises(OSError, match="No space"):
            place.snapshots.bring_back(taken[0])
        assert_same(before, list_tree(tree))
        place.assert_clean()
        (tree / "more").unlink()
        (tree / "too big").unlink()
        place.bring_back(taken)


def fill(folder: Path) -> None:
    for number in range(100):
        write(folder / f"filler{number}", b"")


def test_no_room_for_names_is_found_before_the_first_change(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("xb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "64", str(image)], check=True)
    (tmp_path / "mount").mkdir()
    with mounted(tmp_path / "mount", "-o", "loop", str(image)) as mount:
        place = Place(mount / "tree", tmp_path)
        build_small(place.tree)
        taken = place.take()
        shutil.rmtree(place.tree / "src")
        with pytest.raises(OSError, match="No space"):
            fill(mount)
        before = list_tree(place.tree)
        with pytest.raises(OSError, match="No space"):
            place.snapshots.bring_back(taken[0])
        assert_same(before, list_tree(place.tree))
        place.assert_clean()
        for path in mount.glob("filler*"):
            path.unlink()
        place.bring_back(taken)


def test_stopping_at_any_point_of_taking_leaves_nothing(place: Place) -> None:
    build_small(place.tree)
    number = 0
    stopped = 0
    while True:
        number += 1

        def halt(checks: int, number: int = number) -> None:
            if checks == number:
                raise Stopped

        place.monitor.checks = 0
        place.monitor.act = halt
        try:
            taken = place.take()
        except Stopped:
            stopped += 1
            assert place.objects() == set()
        else:
            break
    assert stopped == 4
    place.monitor.act = lambda checks: None
    ALL_CHANGES["everything removed"](place.tree)
    place.bring_back(taken)


def test_stopping_at_any_point_of_bringing_back_leaves_the_tree_as_it_was(place: Place) -> None:
    build_varied(place.tree)
    taken = place.take()
    ALL_CHANGES["a directory renamed and changed"](place.tree)
    ALL_CHANGES["a file became a directory"](place.tree)
    ALL_CHANGES["links between other files"](place.tree)
    (place.tree / "run.sh").chmod(0o600)
    before = list_tree(place.tree)
    number = 0
    while True:
        number += 1

        def halt(checks: int, number: int = number) -> None:
            if checks == number:
                raise Stopped

        place.monitor.checks = 0
        place.monitor.act = halt
        try:
            place.snapshots.bring_back(taken[0])
        except Stopped:
            assert_same(before, list_tree(place.tree))
            place.assert_clean()
        else:
            break
    assert number > 20
    assert_same(taken[1], list_tree(place.tree))


# -- mounts --


def test_a_mount_inside_is_left_alone(place: Place) -> None:
    build_small(place.tree)
    with tmpfs(place.tree / "src" / "mount") as mount:
        write(mount / "in it", b"before")
        snapshot, _ = place.take()
        listing = list_tree(place.tree, skip=["src/mount"])
        write(mount / "in it", b"after")
        write(mount / "more", b"after")
        mount.chmod(0o700)
        assert place.snapshots.compare(snapshot).is_empty
        write(place.tree / "src" / "app.py", b"changed")
        place.snapshots.bring_back(snapshot)
        assert_same(listing, list_tree(place.tree, skip=["src/mount"]))
        assert (mount / "in it").read_bytes() == b"after"
        assert (mount / "more").read_bytes() == b"after"
        assert stat.S_IMODE(mount.stat().st_mode) == 0o700
        place.assert_clean()


def test_a_mount_that_came_later_is_left_alone_with_what_it_hides(place: Place) -> None:
    build_small(place.tree)
    taken = place.take()
    with tmpfs(place.tree / "src") as mount:
        write(mount / "in it", b"mounted")
        write(place.tree / "README.md", b"changed")
        assert place.snapshots.compare(taken[0]).changes().model_dump() == {
            "added": (),
            "modified": ("README.md",),
            "removed": (),
        }
        place.snapshots.bring_back(taken[0])
        assert (mount / "in it").read_bytes() == b"mounted"
        assert place.snapshots.compare(taken[0]).is_empty
    place.bring_back(taken)


def test_a_mount_in_a_new_directory_stays_with_it(place: Place, tmp_path: Path) -> None:
    build_small(place.tree)
    taken = place.take()
    with tmpfs(place.tree / "new" / "mount") as mount:
        write(mount / "in it", b"mounted")
        write(place.tree / "new" / "file", b"new")
        place.snapshots.bring_back(taken[0])
        assert (mount / "in it").read_bytes() == b"mounted"
        assert not (place.tree / "new" / "file").exists()
    place.bring_back(taken)


def test_a_mount_where_a_file_was_is_in_the_way(place: Place) -> None:
    write(place.tree / "was", b"a file")
    snapshot, _ = place.take()
    (place.tree / "was").unlink()
    with tmpfs(place.tree / "was" / "mount"):
        write(place.tree / "more", b"x")
        with pytest.raises(BackupRestoreError, match="was is a directory now and holds was/mount"):
            place.snapshots.bring_back(snapshot)
        assert (place.tree / "more").exists()


def test_a_mount_on_a_file_is_left_alone(place: Place, tmp_path: Path) -> None:
    build_small(place.tree)
    outside = write(tmp_path / "outside", b"outside")
    taken = place.take()
    with bind(outside, place.tree / "README.md"):
        (place.tree / "run.sh").unlink()
        place.snapshots.bring_back(taken[0])
        assert (place.tree / "README.md").read_bytes() == b"outside"
        assert (place.tree / "run.sh").exists()
    assert outside.read_bytes() == b"outside"
    place.bring_back(taken)


def test_what_is_below_a_mount_that_went_is_left_alone(place: Place) -> None:
    build_small(place.tree)
    with tmpfs(place.tree / "empty") as mount:
        write(mount / "in it", b"mounted")
        snapshot, _ = place.take()
    write(place.tree / "empty" / "below", b"was hidden")
    (place.tree / "run.sh").unlink()
    place.snapshots.bring_back(snapshot)
    assert (place.tree / "empty" / "below").read_bytes() == b"was hidden"
    assert (place.tree / "run.sh").exists()


# -- an ordinary user --

_ORDINARY = """
import json, os, sys
from pathlib import Path
from sandpoint.engine.snapshot import Snapshots
from sandpoint.engine.state import State
class Nobody:
    def check(self): pass
    def progress(self, *told): pass
home = Path.home()
tree = home / "tree"
(tree / "dir" / "inner").mkdir(parents=True)
(tree / "sealed").mkdir()
for name in ("file", "dir/file", "dir/inner/file", "sealed/file"):
    (tree / name).write_text(name)
(tree / "sealed").chmod(0o500)
snapshots = Snapshots(str(tree), str(home / "kept"), State(str(home / "state")), Nobody())
def look():
    found = {}
    for path in (tree, *sorted(tree.rglob("*"))):
        status = path.lstat()
        content = path.read_text() if path.is_file() else ""
        found[str(path.relative_to(tree))] = [status.st_mode, status.st_mtime_ns, content]
    return found
before = look()
snapshot = snapshots.take()
results = []
def closed_file():
    (tree / "file").chmod(0)
def closed_new_file():
    (tree / "new").write_text("new")
    (tree / "new").chmod(0o200)
def closed_directories():
    (tree / "dir" / "inner" / "new").write_text("new")
    (tree / "dir" / "inner" / "new").chmod(0)
    (tree / "dir" / "inner").chmod(0)
    (tree / "dir").chmod(0o400)
def closed_itself():
    (tree / "file").unlink()
    tree.chmod(0)
def closed_sealed():
    (tree / "sealed").chmod(0o700)
    (tree / "sealed" / "file").unlink()
    (tree / "sealed").chmod(0o100)
for change in (closed_file, closed_new_file, closed_directories, closed_itself, closed_sealed):
    change()
    snapshots.bring_back(snapshot)
    after = look()
    results.append([change.__name__, sorted(set(map(str, before.items())) ^ set(map(str, after.items())))])
left = [name for name in os.listdir(tree) if name.startswith(".sandpoint")]
results.append(["left", left + os.listdir(home / "state" / "work")])
print(json.dumps(results))
"""


def test_an_ordinary_user_gets_back_what_it_has_closed_to_itself(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = ordinary.run([sys.executable, "-c", _ORDINARY], cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results == [[name, []] for name, _ in results]
    assert len(results) == 6


# -- any tree, any changes, any order --

STEPS = st.builds(
    Step, st.sampled_from(LINK_VERBS), st.sampled_from(DEEP_PATHS), st.sampled_from(DEEP_PATHS), st.integers(0, 999)
)
OPERATIONS = st.one_of(
    STEPS,
    STEPS,
    STEPS,
    st.just("take"),
    st.just("settle"),
    st.tuples(st.just("back to"), st.integers(0, 5)),
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(STEPS, max_size=25), st.lists(OPERATIONS, min_size=5, max_size=40))
def test_nested_snapshots_of_any_tree_come_back(
    tmp_path_factory: pytest.TempPathFactory, begin: list[Step], operations: list[Step | str | tuple[str, int]]
) -> None:
    home = tmp_path_factory.mktemp("nested")
    place = Place(home / "tree", home)
    place.tree.mkdir()
    for step in begin:
        carry_out(place.tree, step)
    active = [place.take()]
    for operation in (*operations, ("back to", 0)):
        if isinstance(operation, Step):
            carry_out(place.tree, operation)
        elif operation == "take":
            active.append(place.take())
        elif operation == "settle":
            wait_until_settled(place.tree)
        else:
            del active[int(operation[1]) + 1 :]
            snapshot, listing = active[-1]
            changes = place.snapshots.compare(snapshot).changes()
            assert changes == expected_changes(listing, list_tree(place.tree))
            place.bring_back(active[-1])
            place.snapshots.keep_only([each for each, _ in active])
    shutil.rmtree(home)
