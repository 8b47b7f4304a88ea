"""What an attack found: trees of which a backup did not hold all, or that a restore did not bring back as they were."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from helpers.place import Place, bind, tmpfs
from helpers.trees import (
    ACL_ACCESS,
    Listing,
    assert_same,
    build_zoo,
    in_whole_seconds,
    list_tree,
    make_acl,
    write,
)
from sandpoint.engine import capture_full
from sandpoint.engine.manifest import CLOCK_GRAIN_NS

OLD_S = 1_700_000_000


@pytest.fixture
def place(place: Place) -> Place:
    place.tree.mkdir()
    return place


@pytest.fixture
def repository(place: Place) -> Place:
    subprocess.run(["git", "init", "--quiet", str(place.tree)], check=True)
    write(place.tree / "d" / "log", "first\n")
    write(place.tree / "d" / "other", "other\n")
    return place


def ignore(place: Place, patterns: str) -> None:
    write(place.tree / ".gitignore", patterns)


def settle(place: Place) -> None:
    """Wait until the stamps of all files prove something."""
    newest = max(path.lstat().st_ctime_ns for path in (place.tree, *place.tree.rglob("*")))
    while time.time_ns() - newest < 2 * CLOCK_GRAIN_NS:
        time.sleep(0.005)


def in_whole_times(place: Place) -> None:
    """Give all the same time, one that an overlay shows exactly."""
    for path in (place.tree, *place.tree.rglob("*")):
        os.utime(path, (OLD_S, OLD_S), follow_symlinks=False)


def brought(place: Place, backup_id: str) -> Path:
    other = place.base / "other"
    shutil.rmtree(other, ignore_errors=True)
    place.restore(backup_id, dir=other, undo=False)
    return other


def assert_brings(place: Place, backup_id: str, wanted: Listing) -> None:
    """Fail unless a backup of an overlay, which shows whole seconds, brings back what was there."""
    assert_same(in_whole_seconds(wanted), in_whole_seconds(list_tree(brought(place, backup_id))))


# -- what git ignores changes between two captures --


def test_what_is_no_longer_ignored_is_backed_up(repository: Place) -> None:
    ignore(repository, "log\n")
    settle(repository)
    repository.create(use_gitignore=True)
    ignore(repository, "")
    backup = repository.create(use_gitignore=True)
    assert backup.kind == "delta"
    assert (brought(repository, backup.id) / "d" / "log").read_text() == "first\n"


def test_what_has_come_to_be_ignored_is_not_backed_up(repository: Place) -> None:
    ignore(repository, "")
    settle(repository)
    repository.create(use_gitignore=True)
    ignore(repository, "log\n")
    backup = repository.create(use_gitignore=True)
    assert backup.kind == "delta"
    assert not (brought(repository, backup.id) / "d" / "log").exists()


def test_what_has_come_to_be_ignored_on_an_overlay_is_not_backed_up(repository: Place) -> None:
    ignore(repository, "")
    repository.restore(repository.create(use_gitignore=True).id, mode="overlay", undo=False)
    ignore(repository, "log\n")
    for _ in range(2):
        backup = repository.create(use_gitignore=True)
        assert backup.kind == "delta"
        assert not (brought(repository, backup.id) / "d" / "log").exists()


def test_an_undo_holds_what_has_come_to_be_ignored_and_is_overwritten(repository: Place) -> None:
    ignore(repository, "")
    before = repository.create(use_gitignore=True)
    ignore(repository, "log\n")
    write(repository.tree / "d" / "log", "the second\n")
    os.utime(repository.tree / "d")
    settle(repository)
    for _ in range(2):
        repository.create(use_gitignore=True)
        settle(repository)
    undo_id = repository.restore(before.id).undo_id
    assert (repository.tree / "d" / "log").read_text() == "first\n"
    assert undo_id is not None
    repository.restore(undo_id)
    assert (repository.tree / "d" / "log").read_text() == "the second\n"


# -- what is left out of a full layer --


@pytest.mark.parametrize("name", ["x.log", "[x]*.log", "a b.log", " lead.log", "new\nline.log", "@(x).log"])
@pytest.mark.parametrize("is_settled", [False, True])
def test_a_file_is_backed_up_although_another_name_of_it_is_excluded(place: Place, name: str, is_settled: bool) -> None:
    write(place.tree / "kept", "kept\n")
    write(place.tree / "x", "x\n")
    os.link(place.tree / "kept", place.tree / name)
    if is_settled:
        settle(place)
    backup = place.create(excludes=("*.log",))
    assert backup.unstable_paths == ()
    other = brought(place, backup.id)
    assert sorted(path.name for path in other.iterdir()) == ["kept", "x"]
    assert (other / "kept").read_text() == "kept\n"


def test_a_layer_that_lacks_something_is_not_taken_for_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_full, "_leaves_links_out", lambda _view, _manifest: False)
    write(place.tree / "kept", "kept\n")
    os.link(place.tree / "kept", place.tree / "x.log")
    settle(place)
    backup = place.create(excludes=("*.log",))
    assert "kept" in backup.unstable_paths
    assert list(brought(place, backup.id).iterdir()) == []


def test_a_layer_that_lacks_nothing_is_not_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    build_zoo(place.tree)
    (place.tree / "mnt").mkdir()
    monkeypatch.delattr(capture_full, "_unstable")
    with tmpfs(place.tree / "mnt"):
        settle(place)
        assert place.create(excludes=("*.txt",)).unstable_paths == ()
    settle(place)
    assert place.create(full=True).unstable_paths == ()


def test_a_directory_is_backed_up_although_it_is_also_mounted_elsewhere_in_the_tree(place: Place) -> None:
    write(place.tree / "src" / "file", "file\n")
    (place.tree / "mnt").mkdir()
    settle(place)
    with bind(place.tree / "src", place.tree / "mnt"):
        backup = place.create()
    assert backup.unstable_paths == ()
    assert (brought(place, backup.id) / "src" / "file").read_text() == "file\n"


# -- overlays --


def test_the_directory_below_an_overlay_is_compared_and_not_what_was_captured_before_it_changed(place: Place) -> None:
    write(place.tree / "file", "one\n")
    in_whole_times(place)
    settle(place)
    backup = place.create()
    write(place.tree / "file", "another\n")
    place.restore(backup.id, mode="overlay", undo=False)
    result = place.restore(backup.id, mode="copy")
    assert (place.tree / "file").read_text() == "one\n"
    assert result.changes is not None
    assert result.changes.modified == ("file",)


def test_what_is_written_where_a_mount_was_comes_back(place: Place) -> None:
    (place.tree / "mnt").mkdir()
    with tmpfs(place.tree / "mnt"):
        backup = place.create()
    place.restore(backup.id, mode="overlay", undo=False)
    write(place.tree / "mnt" / "new", "precious\n")
    undo_id = place.restore(backup.id, mode="copy").undo_id
    assert undo_id is not None
    place.restore(undo_id)
    assert (place.tree / "mnt" / "new").read_text() == "precious\n"


def swapped_directories(place: Place) -> tuple[str, str]:
    """Capture an overlay, exchange two directories of different layers, whose files have the same inode number."""
    write(place.tree / "d" / "file", "content 1")
    in_whole_times(place)
    place.create()
    write(place.tree / "e" / "file", "content 2")
    in_whole_times(place)
    place.restore(place.create().id, mode="overlay", undo=False)
    first, second = ((place.tree / name / "file").stat() for name in "de")
    assert (first.st_ino, first.st_ctime_ns, first.st_size) == (second.st_ino, second.st_ctime_ns, second.st_size)
    before = place.create(full=True).id
    (place.tree / "d").rename(place.tree / "away")
    (place.tree / "e").rename(place.tree / "d")
    (place.tree / "away").rename(place.tree / "e")
    return before, place.create().id


def test_files_of_two_layers_are_told_apart_although_their_stamps_are_the_same(place: Place) -> None:
    before, after = swapped_directories(place)
    assert (brought(place, after) / "d" / "file").read_text() == "content 2"
    assert set(place.diff(before, after).modified) >= {"d/file", "e/file"}


def test_files_of_two_layers_are_told_apart_by_a_restore_of_some_paths(place: Place) -> None:
    before, _ = swapped_directories(place)
    place.restore(before, paths=("d",))
    assert (place.tree / "d" / "file").read_text() == "content 1"


def test_hard_links_are_kept_where_their_directory_takes_the_place_of_another(place: Place) -> None:
    write(place.tree / "d" / "file", "alone\n")
    write(place.tree / "e" / "file", "linked\n")
    os.link(place.tree / "e" / "file", place.tree / "linked")
    place.restore(place.create().id, mode="overlay", undo=False)
    shutil.rmtree(place.tree / "d")
    (place.tree / "e").rename(place.tree / "d")
    wanted = list_tree(place.tree)
    assert wanted[b"linked"].links == (b"d/file", b"linked")
    backup = place.create()
    assert backup.kind == "delta"
    assert_brings(place, backup.id, wanted)


def test_hard_links_that_the_overlay_parted_are_parted_in_its_backup(place: Place) -> None:
    write(place.tree / "a", "linked\n")
    os.link(place.tree / "a", place.tree / "b")
    place.restore(place.create().id, mode="overlay", undo=False)
    for mode in (0o600, 0o644):
        (place.tree / "a").chmod(mode)
    wanted = list_tree(place.tree)
    backup = place.create()
    assert_brings(place, backup.id, wanted)
    assert (backup.file_count, backup.total_bytes) == (2, sum(item.size for item in wanted.values()))


@pytest.mark.parametrize("kind", ["a file with an ACL", "a socket of a delta"])
def test_an_overlay_shows_hard_links_of_what_it_has_to_make(place: Place, kind: str) -> None:
    write(place.tree / "d" / "other", "other\n")
    first = place.tree / "first"
    if kind == "a file with an ACL":
        write(first, "x\n")
        os.setxattr(first, ACL_ACCESS, make_acl(user=4242))
    else:
        place.create()
        os.mknod(first, 0o140640)
    os.link(first, place.tree / "d" / "second")
    wanted = list_tree(place.tree)
    place.restore(place.create().id, mode="overlay", undo=False)
    assert_same(in_whole_seconds(wanted), in_whole_seconds(list_tree(place.tree)))


def test_marks_of_an_overlay_in_the_tree_hide_nothing(place: Place) -> None:
    for name in ("a", "b"):
        write(place.tree / "d" / name, "one\n")
    os.setxattr(place.tree / "d", "trusted.overlay.opaque", b"y")
    place.create()
    write(place.tree / "d" / "a", "another\n")
    backup = place.create()
    assert backup.kind == "delta"
    wanted = list_tree(place.tree)
    assert_same(wanted, list_tree(brought(place, backup.id)))
    place.restore(backup.id, mode="overlay", undo=False)
    assert sorted(path.name for path in (place.tree / "d").iterdir()) == ["a", "b"]


def test_an_overlay_to_which_nothing_was_written_has_nothing_to_back_up(place: Place) -> None:
    write(place.tree / "with ACL", "x\n")
    os.setxattr(place.tree / "with ACL", ACL_ACCESS, make_acl(user=4242))
    first = place.create()
    place.restore(first.id, mode="overlay", undo=False)
    assert place.create().size_bytes == 0


def private(folder: Path) -> None:
    """Give a directory what nothing has by itself."""
    os.chown(folder, 1000, 1000)
    folder.chmod(0o700)
    os.setxattr(folder, "user.note", b"private")


def test_directories_above_what_is_written_again_at_a_limit_keep_their_attributes(tmp_path: Path, place: Place) -> None:
    place = Place(tmp_path, chain_layers=2)
    write(place.tree / "d" / "file", "one\n")
    private(place.tree / "d")
    in_whole_times(place)
    place.create()
    write(place.tree / "d" / "file", "another\n")
    place.restore(place.create().id, mode="overlay", undo=False)
    write(place.tree / "new", "new\n")
    wanted = list_tree(place.tree)
    backup = place.create()
    assert backup.kind == "delta"
    place.restore(backup.id, mode="overlay", undo=False)
    assert_same(in_whole_seconds(wanted), in_whole_seconds(list_tree(place.tree)))


def test_directories_above_hard_links_of_what_was_moved_keep_their_attributes(place: Place) -> None:
    write(place.tree / "d" / "file", "linked\n")
    (place.tree / "e").mkdir()
    os.link(place.tree / "d" / "file", place.tree / "e" / "linked")
    private(place.tree / "e")
    in_whole_times(place)
    place.restore(place.create().id, mode="overlay", undo=False)
    (place.tree / "d").rename(place.tree / "moved")
    wanted = list_tree(place.tree)
    backup = place.create()
    assert backup.kind == "delta"
    place.restore(backup.id, mode="overlay", undo=False)
    assert_same(in_whole_seconds(wanted), in_whole_seconds(list_tree(place.tree)))


# -- restores in place --


def test_an_undo_brings_back_the_time_of_a_directory(place: Place) -> None:
    write(place.tree / "d" / "file", "x\n")
    backup = place.create()
    os.utime(place.tree / "d", (OLD_S, OLD_S))
    wanted = list_tree(place.tree)
    undo_id = place.restore(backup.id).undo_id
    assert undo_id is not None
    place.restore(undo_id)
    assert_same(wanted, list_tree(place.tree))


def test_an_empty_directory_is_restored_by_its_path(place: Place) -> None:
    write(place.tree / "d" / "file", "x\n")
    (place.tree / "d" / "empty").mkdir()
    backup = place.create()
    (place.tree / "d" / "empty").rmdir()
    place.restore(backup.id, paths=("d/empty",))
    assert (place.tree / "d" / "empty").is_dir()


def test_a_restore_of_some_paths_leaves_the_time_of_the_directory_where_files_are_staged_inside(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "state"):
        place = Place(tmp_path)
        write(place.tree / "d" / "file", "x\n")
        backup = place.create()
        write(place.tree / "d" / "file", "changed\n")
        os.utime(place.tree, (OLD_S, OLD_S))
        place.restore(backup.id, paths=("d/file",))
        assert place.tree.stat().st_mtime == OLD_S
