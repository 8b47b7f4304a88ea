"""Mounts inside the directory: not captured, said in the result, never touched by a restore."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from helpers.place import Place, bind, tmpfs
from helpers.trees import assert_same, build_small, list_tree, write

Mounted = Callable[[Path], AbstractContextManager[Path]]


@pytest.fixture
def small(place: Place) -> Place:
    build_small(place.tree)
    return place


@pytest.fixture(params=["tmpfs", "bind"])
def mounted(request: pytest.FixtureRequest, place: Place) -> Mounted:
    """Mount a foreign filesystem, or a folder of the very same one."""
    if request.param == "tmpfs":
        return tmpfs
    source = place.base / "source"
    source.mkdir()
    return lambda point: bind(source, point)


@pytest.fixture
def mount(small: Place, mounted: Mounted) -> Iterator[Path]:
    """A mount on a folder of the tree, with something precious in it."""
    with mounted(small.tree / "empty") as point:
        write(point / "precious", "precious\n")
        write(point / "deep" / "precious", "precious\n")
        yield point


def test_its_contents_are_not_captured_and_said_so(small: Place, mount: Path) -> None:
    backup = small.create()

    assert backup.skipped_mounts == ("empty",)
    small.restore(backup.id, dir=small.base / "other")
    assert (small.base / "other" / "empty").is_dir()
    assert list((small.base / "other" / "empty").iterdir()) == []
    expected = list_tree(small.tree, skip=["empty"])
    assert_same(expected, list_tree(small.base / "other", skip=["empty"]))


def test_a_restore_leaves_it_alone_and_brings_back_the_rest(small: Place, mount: Path) -> None:
    expected = list_tree(small.tree, skip=["empty"])
    backup = small.create()
    write(mount / "precious", "changed\n")
    write(small.tree / "src" / "app.py", "broken\n")
    write(small.tree / "extra", "goes\n")
    contents = list_tree(mount)

    done = small.restore(backup.id)

    assert done.skipped_mounts == ("empty",)
    assert_same(contents, list_tree(mount))
    assert_same(expected, list_tree(small.tree, skip=["empty"]))


def test_mounted_after_the_backup(small: Place, mounted: Mounted) -> None:
    write(small.tree / "empty" / "file", "in the backup\n")
    before = list_tree(small.tree)
    backup = small.create()
    with mounted(small.tree / "empty") as point:
        write(point / "precious", "x\n")
        contents = list_tree(point)
        write(small.tree / "README.md", "broken\n")

        done = small.restore(backup.id)

        assert done.skipped_mounts == ("empty",)
        assert_same(contents, list_tree(point))
        assert (small.tree / "README.md").read_text() == "# read me\n"
    assert_same(before, list_tree(small.tree))


def test_unmounted_after_the_backup(small: Place, mounted: Mounted) -> None:
    write(small.tree / "empty" / "below the mount", "x\n")
    before = list_tree(small.tree)
    with mounted(small.tree / "empty") as point:
        write(point / "precious", "x\n")
        backup = small.create()
    write(small.tree / "README.md", "broken\n")
    write(small.tree / "extra", "goes\n")

    done = small.restore(backup.id)

    assert done.skipped_mounts == ("empty",)
    assert_same(before, list_tree(small.tree))


def test_mounted_on_an_extra_folder_inside_another(small: Place, mounted: Mounted) -> None:
    backup = small.create()
    (small.tree / "new" / "mnt").mkdir(parents=True)
    write(small.tree / "new" / "goes", "x\n")
    with mounted(small.tree / "new" / "mnt") as point:
        write(point / "precious", "x\n")
        contents = list_tree(point)

        done = small.restore(backup.id)

        assert_same(contents, list_tree(point))
        assert done.skipped_mounts == ("new/mnt",)
        assert done.kept_paths == ("new",)
        assert not (small.tree / "new" / "goes").exists()


def test_a_file_mounted_over_a_file(small: Place) -> None:
    before = list_tree(small.tree)
    secret = write(small.base / "secret", "of elsewhere\n")
    with bind(secret, small.tree / "src" / "app.py"):
        hidden = small.create()
        assert hidden.skipped_mounts == ("src/app.py",)
    whole = small.create()
    with bind(secret, small.tree / "src" / "app.py"):
        write(small.tree / "README.md", "broken\n")
        done = small.restore(whole.id)
        assert done.skipped_mounts == ("src/app.py",)
        assert secret.read_text() == "of elsewhere\n"
    assert_same(before, list_tree(small.tree))

    small.restore(hidden.id)
    assert_same(before, list_tree(small.tree))
    small.restore(hidden.id, dir=small.base / "other")
    assert not (small.base / "other" / "src" / "app.py").exists()


def test_a_dry_run_and_diff_say_nothing_of_what_is_in_it(small: Place, mount: Path) -> None:
    backup = small.create()
    write(mount / "more", "x\n")
    write(small.tree / "extra", "x\n")

    assert small.diff(backup.id).added == ("extra",)
    planned = small.restore(backup.id, dry_run=True)
    assert planned.changes is not None
    assert planned.changes.removed == ("extra",)


def test_a_restore_of_a_path_inside_it_changes_nothing_in_it(small: Place, mounted: Mounted) -> None:
    write(small.tree / "empty" / "file", "in the backup\n")
    backup = small.create()
    with mounted(small.tree / "empty") as point:
        write(point / "file", "of the mount\n")
        small.restore(backup.id, paths=["empty"])
        assert (point / "file").read_text() == "of the mount\n"


def test_mounts_in_mounts_are_one_boundary(small: Place, mount: Path) -> None:
    (mount / "inner").mkdir()
    with tmpfs(mount / "inner"):
        write(mount / "inner" / "precious", "x\n")
        backup = small.create()
        assert backup.skipped_mounts == ("empty",)
        small.restore(backup.id)
        assert (mount / "inner" / "precious").exists()


def test_the_directory_may_be_a_mount_itself(place: Place) -> None:
    with tmpfs(place.tree):
        build_small(place.tree)
        before = list_tree(place.tree)
        backup = place.create()
        write(place.tree / "README.md", "broken\n")
        write(place.tree / "extra" / "file", "goes\n")

        place.restore(backup.id)

        assert backup.skipped_mounts == ()
        assert_same(before, list_tree(place.tree))
        place.assert_clean()
