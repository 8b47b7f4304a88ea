"""Overlay restores: the backup mounted over the directory, by the kernel and by FUSE."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.place import OverlayKind, Place, mount_line, tmpfs, unmount_all
from helpers.trees import (
    Listing,
    as_fuse_shows,
    assert_same,
    build_small,
    build_zoo,
    in_whole_seconds,
    list_tree,
    with_acls,
    write,
)
from sandpoint.errors import BackupIntegrityError, BackupRestoreError, InvalidBackupConfigError


@pytest.fixture(params=["kernel", "fuse"])
def kind(request: pytest.FixtureRequest) -> OverlayKind:
    kind: OverlayKind = request.param
    return kind


@pytest.fixture
def place(tmp_path: Path, kind: OverlayKind) -> Iterator[Place]:
    """A place whose overlays are of each kind in turn; nothing of them is left when all is unmounted."""
    place = Place(tmp_path, overlay=kind)
    build_small(place.tree)
    yield place
    unmount_all(tmp_path)
    place.assert_unmounted()


@pytest.fixture
def view(place: Place) -> Callable[..., Listing]:
    def listed(directory: Path | None = None) -> Listing:
        return in_whole_seconds(list_tree(directory or place.tree))

    return listed


View = Callable[..., Listing]


def written_tree(root: Path) -> Listing:
    """List a tree less the mtime of its top, which fuse-overlayfs shows late after a write."""
    found = list_tree(root)
    return found | {b"": replace(found[b""], mtime_ns=0)}


def overlay(place: Place, backup_id: str, directory: Path | None = None, *, undo: bool = False) -> str | None:
    done = place.restore(backup_id, dir=directory or place.tree, mode="overlay", undo=undo)
    assert done.mode == "overlay"
    assert done.changes is None
    return done.undo_id


def test_shows_the_backup_with_every_kind_of_thing(tmp_path: Path, kind: OverlayKind) -> None:
    place = Place(tmp_path, overlay=kind)
    build_zoo(place.tree)
    before = in_whole_seconds(list_tree(place.tree))
    backup = place.create()
    try:
        overlay(place, backup.id, place.base / "other")
        found = in_whole_seconds(list_tree(place.base / "other"))
        if kind == "kernel":
            assert_same(before, found)
        else:
            acls = with_acls(before)
            assert_same(as_fuse_shows(before, acls=acls), as_fuse_shows(found, acls=acls))
        assert not place.diff(backup.id, dir=str(place.base / "other")) or kind == "fuse"
    finally:
        unmount_all(tmp_path)


def test_the_mount_is_nosuid_and_nodev_and_the_only_one(place: Place, kind: OverlayKind) -> None:
    overlay(place, place.create().id)

    options = mount_line(place.tree).split(" ")[5].split(",")
    assert {"nosuid", "nodev", "rw"} <= set(options)
    if kind == "kernel":
        assert place.mounts() == [str(place.tree)]
    else:
        assert [point for point in place.mounts() if "/lower/" not in point] == [str(place.tree)]


def test_writes_do_not_reach_the_backup(place: Place, view: View) -> None:
    before = view()
    backup = place.create()
    overlay(place, backup.id)
    write(place.tree / "src" / "app.py", "written\n")
    write(place.tree / "new" / "file", "new\n")
    (place.tree / "run.sh").unlink()

    assert place.run(place.service.verify, backup.id).ok
    overlay(place, backup.id, place.base / "other")
    assert_same(before, view(place.base / "other"))
    assert (place.tree / "new" / "file").exists()


def test_restoring_again_gives_the_backup_again(place: Place, view: View) -> None:
    before = view()
    backup = place.create()
    for _ in range(3):
        overlay(place, backup.id)
        assert_same(before, view())
        write(place.tree / "src" / "app.py", "written\n")
        (place.tree / "README.md").unlink()
    overlay(place, backup.id)
    assert_same(before, view())
    assert place.mounts().count(str(place.tree)) == 1


def test_undo_of_a_second_restore_has_what_was_written(place: Place) -> None:
    backup = place.create()
    overlay(place, backup.id)
    write(place.tree / "src" / "app.py", "written\n")
    written = written_tree(place.tree)

    undo_id = overlay(place, backup.id, undo=True)

    assert undo_id is not None
    place.restore(undo_id, dir=place.base / "other")
    # The overlay shows whole seconds; the undo has the times that its backup has kept.
    assert_same(in_whole_seconds(written), in_whole_seconds(written_tree(place.base / "other")))


def test_undo_has_what_was_written_to_excluded_paths_too(place: Place) -> None:
    """A copy restore leaves excluded paths alone; taking an overlay down takes them away, so undo must have them."""
    backup = place.create(excludes=["*.log"])
    overlay(place, backup.id)
    write(place.tree / "precious.log", "written\n")

    undo_id = overlay(place, backup.id, undo=True)

    if not (place.tree / "precious.log").exists():
        assert undo_id is not None
        place.restore(undo_id, dir=place.base / "other")
        assert (place.base / "other" / "precious.log").read_text() == "written\n"


def test_two_restores_of_one_backup_are_independent(place: Place) -> None:
    backup = place.create()
    one, two = place.base / "one", place.base / "two"
    overlay(place, backup.id, one)
    overlay(place, backup.id, two)
    write(one / "README.md", "one\n")
    (two / "README.md").unlink()
    written = written_tree(two)

    overlay(place, backup.id, one)

    assert (one / "README.md").read_text() == "# read me\n"
    assert_same(written, written_tree(two))
    place.unmount(one, undo=False)
    assert_same(written, written_tree(two))


def test_a_restore_elsewhere_disturbs_nothing(place: Place) -> None:
    backup = place.create()
    overlay(place, backup.id)
    write(place.tree / "README.md", "written\n")
    written = written_tree(place.tree)
    sibling = place.base / "tree2"

    overlay(place, backup.id, sibling)
    place.restore(backup.id, dir=place.base / "copy", mode="copy")
    place.create(sibling)
    place.unmount(sibling, undo=False)

    assert_same(written, written_tree(place.tree))


def test_restoring_a_parent_takes_overlays_below_down_first(place: Place, view: View) -> None:
    before = view()
    whole = place.create()
    part = place.create(place.tree / "src")
    overlay(place, part.id, place.tree / "src")
    write(place.tree / "src" / "written", "below\n")

    undo_id = overlay(place, whole.id, undo=True)

    assert_same(before, view())
    assert place.mounts().count(str(place.tree / "src")) == 0
    assert undo_id is not None
    place.restore(undo_id, dir=place.base / "other", mode="copy")
    assert (place.base / "other" / "src" / "written").read_text() == "below\n"


def test_a_copy_restore_over_an_overlay_makes_the_directory_itself_equal(place: Place) -> None:
    before = list_tree(place.tree)
    backup = place.create()
    write(place.tree / "README.md", "damaged below\n")
    overlay(place, backup.id)
    write(place.tree / "README.md", "written to the overlay\n")

    done = place.restore(backup.id, mode="copy")

    assert place.mounts() == []
    assert_same(before, list_tree(place.tree))
    assert done.undo_id is not None
    place.restore(done.undo_id, dir=place.base / "other")
    assert (place.base / "other" / "README.md").read_text() == "written to the overlay\n"


def test_paths_can_be_restored_inside_an_overlay(place: Place) -> None:
    backup = place.create()
    overlay(place, backup.id)
    write(place.tree / "README.md", "written\n")
    write(place.tree / "run.sh", "written\n")

    place.restore(backup.id, mode="copy", paths=["README.md"])

    assert (place.tree / "README.md").read_text() == "# read me\n"
    assert (place.tree / "run.sh").read_text() == "written\n"
    assert place.mounts().count(str(place.tree)) == 1


def test_paths_and_overlay_do_not_go_together(place: Place) -> None:
    backup = place.create()
    with pytest.raises(InvalidBackupConfigError, match="use mode 'copy' for paths"):
        place.restore(backup.id, mode="overlay", paths=["README.md"])
    assert place.mounts() == []


@pytest.mark.parametrize("undo", [False, True], ids=["without undo", "with undo"])
def test_unmount_shows_what_lies_below(place: Place, undo: bool) -> None:
    backup = place.create()
    write(place.tree / "README.md", "below\n")
    below = list_tree(place.tree)
    overlay(place, backup.id)
    write(place.tree / "README.md", "written\n")
    written = written_tree(place.tree)

    done = place.unmount(undo=undo)

    assert_same(below, list_tree(place.tree))
    assert done.backup_id == backup.id
    assert (done.undo_id is not None) == undo
    place.assert_unmounted()
    place.assert_clean()
    if done.undo_id is not None:
        place.restore(done.undo_id, dir=place.base / "other")
        assert_same(in_whole_seconds(written), in_whole_seconds(written_tree(place.base / "other")))


def test_unmount_keeps_what_was_written_to_an_overlay_below(place: Place) -> None:
    whole, part = place.create(), place.create(place.tree / "src")
    overlay(place, whole.id)
    overlay(place, part.id, place.tree / "src")
    write(place.tree / "src" / "written", "precious\n")

    done = place.unmount()

    assert place.mounts() == []
    assert done.undo_id is not None
    place.restore(done.undo_id, dir=place.base / "other")
    assert (place.base / "other" / "src" / "written").read_text() == "precious\n"


def test_unmount_of_what_is_no_overlay_is_refused(place: Place) -> None:
    with pytest.raises(InvalidBackupConfigError, match="no overlay of Sandpoint is mounted on"):
        place.unmount()
    overlay(place, place.create().id)
    with pytest.raises(InvalidBackupConfigError, match="no overlay of Sandpoint is mounted on"):
        place.unmount(place.tree / "src")
    assert place.mounts().count(str(place.tree)) == 1


def test_a_process_inside_goes_on(place: Place) -> None:
    backup = place.create()
    overlay(place, backup.id)
    script = (
        "import sys\nheld = open('held', 'w')\n"
        "for line in sys.stdin: print(line.strip(), file=held, flush=True); print(open('app.py').read(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=place.tree / "src",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        for step in (lambda: None, lambda: overlay(place, backup.id), lambda: place.unmount(undo=False)):
            step()
            print("go on", file=inside.stdin, flush=True)
            assert inside.stdout.readline() == "print('hello')\n"
            assert inside.stdout.readline() == "\n"
        inside.stdin.close()
        assert inside.wait(10) == 0


@pytest.mark.parametrize("kind", ["kernel"], indirect=True)
def test_a_folder_of_the_backup_can_be_renamed(place: Place) -> None:
    backup = place.create()
    overlay(place, backup.id)

    (place.tree / "src").rename(place.tree / "renamed")

    assert (place.tree / "renamed" / "lib" / "util.py").read_text() == "x = 1\n" * 100
    assert not (place.tree / "src").exists()
    assert place.diff(backup.id).removed[0] == "src"


def test_a_capture_includes_overlays_of_ours(place: Place) -> None:
    part = place.create(place.tree / "src")
    write(place.tree / "src" / "app.py", "below\n")
    overlay(place, part.id, place.tree / "src")
    write(place.tree / "src" / "written", "written\n")
    expected = list_tree(place.tree)

    whole = place.create()

    assert whole.skipped_mounts == ()
    place.restore(whole.id, dir=place.base / "other")
    assert_same(expected, list_tree(place.base / "other"))


def test_a_capture_of_an_overlay_is_what_it_shows(place: Place) -> None:
    overlay(place, place.create().id)
    write(place.tree / "written", "written\n")
    (place.tree / "README.md").unlink()
    (place.tree / "src" / "lib" / "util.py").chmod(0o600)
    expected = written_tree(place.tree)

    again = place.create()

    place.restore(again.id, dir=place.base / "other")
    assert_same(in_whole_seconds(expected), in_whole_seconds(written_tree(place.base / "other")))


def test_a_failing_restore_leaves_the_overlay_in_place(place: Place) -> None:
    backup = place.create()
    overlay(place, backup.id)
    write(place.tree / "written", "written\n")
    written = written_tree(place.tree)
    layer = place.store / "backups" / backup.id / "data.sqsh"
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    broken = place.create(place.tree)
    (place.store / "backups" / broken.id / "data.sqsh").write_bytes(content)

    for mode in ("overlay", "copy"):
        with pytest.raises(BackupIntegrityError):
            place.restore(broken.id, mode=mode, undo=False)
        assert_same(written, written_tree(place.tree))
    assert place.mounts().count(str(place.tree)) == 1


def test_a_mount_inside_is_refused_and_stays(place: Place, view: View) -> None:
    backup = place.create()
    write(place.tree / "README.md", "as it was\n")
    with tmpfs(place.tree / "empty"):
        write(place.tree / "empty" / "precious", "x\n")
        before = view()

        with pytest.raises(BackupRestoreError, match="is a mount inside"):
            overlay(place, backup.id)

        assert_same(before, view())
        assert place.mounts() == [str(place.tree / "empty")]
        place.assert_clean()


def test_a_dry_run_tells_that_an_overlay_goes_with_what_was_written_in_it(place: Place) -> None:
    backup = place.create(excludes=["cache/"])
    overlay(place, backup.id)
    assert not place.restore(backup.id, mode="copy", dry_run=True).unmounted
    write(place.tree / "cache" / "hours", "of work\n")
    planned = place.restore(backup.id, mode="copy", dry_run=True)
    assert (planned.unmounted, bool(planned.changes)) == (True, False)
    assert not place.restore(backup.id, mode="copy", dry_run=True, paths=["README.md"]).unmounted


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_mount_inside_an_overlay_survives(place: Place, mode: str) -> None:
    """Taking the overlay down would take the mount with it, and what a tmpfs holds for good."""
    backup = place.create()
    overlay(place, backup.id)
    write(place.tree / "README.md", "written\n")
    with tmpfs(place.tree / "empty"):
        write(place.tree / "empty" / "precious", "x\n")
        before = written_tree(place.tree)

        with pytest.raises(BackupRestoreError, match="is a mount inside"):
            place.restore(backup.id, mode=mode)

        assert_same(before, written_tree(place.tree))


def test_unmount_refuses_with_a_mount_inside(place: Place, view: View) -> None:
    overlay(place, place.create().id)
    with tmpfs(place.tree / "empty"):
        write(place.tree / "empty" / "precious", "x\n")
        before = view()

        with pytest.raises(BackupRestoreError, match="is a mount inside"):
            place.unmount()

        assert_same(before, view())


def test_attributes_of_the_directory_itself_come_with_the_overlay(place: Place, view: View) -> None:
    os.setxattr(place.tree, "user.root", b"x")
    place.tree.chmod(0o751)
    os.utime(place.tree, (5, 5))
    before = view()
    backup = place.create()
    place.tree.chmod(0o700)

    overlay(place, backup.id)

    assert_same(before, view())


def test_auto_is_copy_on_this_machine(place: Place) -> None:
    backup = place.create()
    assert place.restore(backup.id).mode == "copy"
    assert place.mounts() == []


def test_a_dry_run_mounts_nothing(place: Place) -> None:
    backup = place.create()
    write(place.tree / "README.md", "changed\n")
    before = list_tree(place.tree)

    planned = place.restore(backup.id, mode="overlay", dry_run=True)

    assert planned.changes is not None
    assert planned.changes.modified == ("README.md",)
    assert place.mounts() == []
    assert_same(before, list_tree(place.tree))
