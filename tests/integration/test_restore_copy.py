"""Copy restores: the directory itself becomes equal to the backup, whatever was done to it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.place import Place
from helpers.trees import (
    ACL_ACCESS,
    ACL_DEFAULT,
    assert_same,
    at,
    build_small,
    build_zoo,
    differences,
    inodes,
    list_tree,
    make_acl,
    write,
)
from sandpoint.errors import BackupRestoreError, InvalidBackupConfigError

Damage = Callable[[Path], None]


def rewrite(path: Path, content: bytes) -> None:
    """Change a file's contents so that neither its size nor its mtime tells."""
    status = path.stat()
    assert len(content) == status.st_size
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def same_size_contents(tree: Path) -> None:
    rewrite(tree / "contents" / "one", b"2")
    rewrite(tree / "contents" / "block", bytes(131_071) + b"x")
    sparse = (tree / "contents" / "sparse").read_bytes()
    rewrite(tree / "contents" / "sparse", sparse.replace(b"end of a hole", b"END OF A HOLE"))


def sizes(tree: Path) -> None:
    os.truncate(tree / "contents" / "random", 399_999)
    os.truncate(tree / "contents" / "empty", 1)
    with open(tree / "contents" / "block", "ab") as file:
        file.write(b"more")


def swap_types(tree: Path) -> None:
    shutil.rmtree(tree / "dirs" / "plain")
    (tree / "dirs" / "plain").write_text("a file now")
    shutil.rmtree(tree / "empty")
    (tree / "empty").symlink_to("dirs")
    (tree / "names" / "plain").unlink()
    (tree / "names" / "plain").mkdir()
    write(tree / "names" / "plain" / "deep" / "file", "in a file's place")
    (tree / "contents" / "one").unlink()
    (tree / "contents" / "one").symlink_to("block")
    (tree / "links" / "to-dir").unlink()
    write(tree / "links" / "to-dir" / "file", "in a link's place")
    (tree / "links" / "dangling").unlink()
    (tree / "links" / "dangling").write_text("in a link's place")
    (tree / "nodes" / "fifo").unlink()
    (tree / "nodes" / "fifo").mkdir()
    (tree / "nodes" / "socket").unlink()
    os.mkfifo(tree / "nodes" / "socket")
    (tree / "nodes" / "char").unlink()
    (tree / "nodes" / "char").write_text("in a device's place")


def swap_parents(tree: Path) -> None:
    shutil.rmtree(tree / "nest")
    (tree / "nest").symlink_to("/etc")
    shutil.rmtree(tree / "acls")
    (tree / "acls").write_text("a file where a tree was")


def links(tree: Path) -> None:
    (tree / "hard" / "sub" / "b").unlink()
    (tree / "hard" / "sub" / "b").write_text("one inode, four names\n")
    (tree / "contents" / "one").unlink()
    os.link(tree / "contents" / "block", tree / "contents" / "one")
    (tree / "links" / "absolute").unlink()
    (tree / "links" / "absolute").symlink_to("/etc/passwd")
    os.link(tree / "hard" / "a", tree / "hard" / "extra")


def equal_links(tree: Path) -> None:
    """Two files of the same bytes become one inode, and one inode becomes two."""
    for name in ("file644", "file400"):
        assert (tree / "modes" / name).stat().st_nlink == 1
    (tree / "modes" / "file400").unlink()
    os.link(tree / "modes" / "file644", tree / "modes" / "file400")
    (tree / "hard" / "empty too").unlink()
    (tree / "hard" / "empty too").write_bytes(b"")
    (tree / "hard" / "symlink too").unlink()
    (tree / "hard" / "symlink too").symlink_to("a")


def modes_and_owners(tree: Path) -> None:
    for path in sorted((tree / "modes").iterdir()):
        path.chmod(0o7777)
        os.chown(path, 0, 0)
    (tree / "nodes" / "fifo").chmod(0o777)
    os.lchown(tree / "links" / "dangling", 99, 99)


def xattrs(tree: Path) -> None:
    os.removexattr(tree / "xattrs" / "user.note", "user.note")
    os.setxattr(tree / "xattrs" / "trusted.note", "trusted.note", b"other")
    os.setxattr(tree / "xattrs" / "security.note", "user.extra", b"extra")
    os.removexattr(tree / "xattrs" / "capable", "security.capability")
    os.removexattr(tree / "xattrs" / "symlink", "trusted.note", follow_symlinks=False)
    os.setxattr(tree / "names", "user.extra", b"on a folder")


def acls(tree: Path) -> None:
    os.removexattr(tree / "acls" / "file", ACL_ACCESS)
    os.setxattr(tree / "acls" / "inheriting", ACL_DEFAULT, make_acl(user=1))
    os.removexattr(tree / "acls" / "both", ACL_DEFAULT)
    os.setxattr(tree / "acls" / "both" / "plain", ACL_ACCESS, make_acl(user=2))
    os.setxattr(tree / "dirs", ACL_DEFAULT, make_acl(user=3))
    (tree / "dirs" / "made under a default ACL").mkdir()
    os.unlink(tree / "acls" / "inheriting" / "heir")


def times(tree: Path) -> None:
    for path in sorted((tree / "times").iterdir()):
        os.utime(path, ns=(1, 1))
    os.utime(tree / "links" / "dangling", ns=(1, 1), follow_symlinks=False)


def renames(tree: Path) -> None:
    (tree / "nest").rename(tree / "nest moved")
    (tree / "hard").rename(tree / "empty" / "hard")
    at(tree, b"new\nline").rename(at(tree, b"#new"))
    (tree / "names").rename(tree / "tmp")
    (tree / "dirs").rename(tree / "names")
    (tree / "tmp").rename(tree / "dirs")


def extras(tree: Path) -> None:
    build_zoo(tree / "extra zoo")
    build_zoo(tree / "empty" / "inner" / "zoo")
    at(tree, b"nest/extra\n#\xff").write_bytes(b"x")


def own_attributes(tree: Path) -> None:
    os.removexattr(tree, "user.root")
    os.setxattr(tree, ACL_DEFAULT, make_acl(user=5))
    os.chown(tree, 0, 0)
    tree.chmod(0o700)
    os.utime(tree, ns=(5, 5))


def everything_gone(tree: Path) -> None:
    for path in tree.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


DAMAGES: tuple[Damage, ...] = (
    same_size_contents,
    sizes,
    swap_types,
    swap_parents,
    links,
    equal_links,
    modes_and_owners,
    xattrs,
    acls,
    times,
    renames,
    extras,
    own_attributes,
    everything_gone,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_brings_a_damaged_tree_back_and_undo_brings_the_damage_back(place: Place, damage: Damage) -> None:
    build_zoo(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    damage(place.tree)
    damaged = list_tree(place.tree)
    assert differences(before, damaged)
    planned = place.restore(backup.id, dry_run=True)
    assert_same(damaged, list_tree(place.tree))

    done = place.restore(backup.id)

    assert_same(before, list_tree(place.tree))
    assert planned.changes == done.changes
    assert done.undo_id is not None
    place.restore(done.undo_id)
    assert_same(damaged, list_tree(place.tree))
    place.assert_clean()


def test_brings_all_damages_at_once_back(place: Place) -> None:
    build_zoo(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    for damage in (same_size_contents, modes_and_owners, xattrs, acls, times, links, own_attributes, extras, renames):
        damage(place.tree)

    place.restore(backup.id)

    assert_same(before, list_tree(place.tree))
    assert not place.diff(backup.id)


def test_a_tree_as_it_was_needs_no_undo_and_no_change(place: Place) -> None:
    build_zoo(place.tree)
    before = list_tree(place.tree)
    backup = place.create()

    done = place.restore(backup.id)

    assert done.undo_id is None
    assert done.changes is not None
    assert not done.changes
    assert_same(before, list_tree(place.tree))
    assert place.ids() == [backup.id]


def test_unchanged_files_keep_their_inode(place: Place) -> None:
    build_zoo(place.tree)
    backup = place.create()
    before = inodes(place.tree)
    (place.tree / "contents" / "one").write_text("2")
    (place.tree / "modes" / "file644").chmod(0o600)
    shutil.rmtree(place.tree / "times")

    place.restore(backup.id)

    after = inodes(place.tree)
    changed = {path for path in before if before[path] != after[path]}
    assert {path for path in changed if not path.startswith("times/")} == {"contents/one"}


def test_a_process_in_the_directory_goes_on(place: Place) -> None:
    build_small(place.tree)
    backup = place.create()
    script = "import sys\nfor line in sys.stdin: print(open(line.strip()).read(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=place.tree / "src",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        write(place.tree / "src" / "app.py", "broken\n")
        place.restore(backup.id)
        print("app.py", file=reader.stdin, flush=True)
        assert reader.stdout.readline() == "print('hello')\n"
        reader.stdin.close()
        assert reader.wait(10) == 0


def test_restores_to_another_directory_and_leaves_its_own_alone(place: Place) -> None:
    build_zoo(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    (place.tree / "contents" / "one").write_text("2")
    damaged = list_tree(place.tree)
    other = place.base / "other"
    build_small(other)
    held = list_tree(other)

    done = place.restore(backup.id, dir=other)

    assert_same(before, list_tree(other))
    assert_same(damaged, list_tree(place.tree))
    assert done.dir == str(other)
    assert done.undo_id is not None
    place.restore(done.undo_id)
    assert_same(held, list_tree(other))


def test_restores_to_a_missing_directory(place: Place) -> None:
    build_zoo(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    missing = place.base / "not" / "there" / "yet"
    planned = place.restore(backup.id, dir=missing, dry_run=True)
    assert not (place.base / "not").exists()

    done = place.restore(backup.id, dir=missing)

    assert_same(before, list_tree(missing))
    assert done.undo_id is None
    assert planned.changes is not None
    assert done.changes is not None
    assert planned.changes.added == done.changes.added
    assert not planned.changes.removed


def test_restores_after_the_directory_itself_went(place: Place) -> None:
    build_small(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    shutil.rmtree(place.tree)

    place.restore(backup.id)

    assert_same(before, list_tree(place.tree))


def test_restores_a_path_longer_than_the_staging_folder_leaves_room_for(place: Place) -> None:
    place.tree.mkdir()
    fd = os.open(place.tree, os.O_RDONLY)
    for _ in range(19):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    before = list_tree(place.tree)
    backup = place.create()
    shutil.rmtree(place.tree / ("d" * 200))

    place.restore(backup.id)

    assert_same(before, list_tree(place.tree))


# -- paths --


@pytest.fixture
def small(place: Place) -> Place:
    build_small(place.tree)
    return place


def test_paths_restore_a_file_and_nothing_else(small: Place) -> None:
    backup = small.create()
    write(small.tree / "src" / "app.py", "broken\n")
    write(small.tree / "README.md", "broken too\n")
    write(small.tree / "extra", "stays\n")

    done = small.restore(backup.id, paths=["src/app.py"])

    assert (small.tree / "src" / "app.py").read_text() == "print('hello')\n"
    assert (small.tree / "src" / "app.py").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (small.tree / "README.md").read_text() == "broken too\n"
    assert (small.tree / "extra").exists()
    assert done.changes is not None
    assert done.changes.modified == ("src/app.py",)
    assert not done.changes.added
    assert not done.changes.removed


def test_paths_restore_a_folder_with_all_in_it_and_its_extras_go(small: Place) -> None:
    before = list_tree(small.tree / "src")
    backup = small.create()
    shutil.rmtree(small.tree / "src" / "lib")
    write(small.tree / "src" / "extra" / "file", "goes\n")
    (small.tree / "src").chmod(0o700)
    write(small.tree / "README.md", "stays broken\n")

    small.restore(backup.id, paths=["src/"])

    assert_same(before, list_tree(small.tree / "src"))
    assert (small.tree / "README.md").read_text() == "stays broken\n"


def test_paths_restore_several(small: Place) -> None:
    before = list_tree(small.tree, skip=["run.sh", ""])
    backup = small.create()
    (small.tree / "README.md").unlink()
    (small.tree / "link").unlink()
    shutil.rmtree(small.tree / "src")
    (small.tree / "run.sh").unlink()

    small.restore(backup.id, paths=["README.md", "link", "src/app.py", "src"])

    found = list_tree(small.tree)
    del found[b""], before[b""]
    assert_same(before, found)


def test_a_path_that_the_backup_does_not_have_goes(small: Place) -> None:
    backup = small.create()
    write(small.tree / "src" / "new" / "file", "goes\n")
    write(small.tree / "other", "stays\n")

    done = small.restore(backup.id, paths=["src/new"])

    assert not (small.tree / "src" / "new").exists()
    assert (small.tree / "other").exists()
    assert done.undo_id is not None


def test_a_path_in_neither_is_refused(small: Place) -> None:
    backup = small.create()
    write(small.tree / "README.md", "broken\n")
    broken = list_tree(small.tree)

    with pytest.raises(InvalidBackupConfigError, match=r"src/nowhere is neither in the backup nor in"):
        small.restore(backup.id, paths=["README.md", "src/nowhere"])

    assert_same(broken, list_tree(small.tree))
    assert small.ids() == [backup.id]


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_a_path_whose_folder_became_something_else_comes_back_and_undo_knows_of_it(small: Place, kind: str) -> None:
    backup = small.create()
    shutil.rmtree(small.tree / "src")
    if kind == "file":
        write(small.tree / "src", "precious\n")
    else:
        (small.tree / "src").symlink_to("precious")
    damaged = list_tree(small.tree)

    done = small.restore(backup.id, paths=["src/app.py"])

    assert (small.tree / "src" / "app.py").read_text() == "print('hello')\n"
    assert not (small.tree / "src" / "lib").exists()
    assert done.undo_id is not None
    small.restore(done.undo_id)
    assert_same(damaged, list_tree(small.tree))


def test_paths_restore_one_of_several_hard_links(place: Place) -> None:
    build_zoo(place.tree)
    backup = place.create()
    for name in ("hard/sub/b", "links/c"):
        (place.tree / name).unlink()

    place.restore(backup.id, paths=["hard/sub/b", "links/c"])

    assert (place.tree / "hard" / "sub" / "b").read_text() == "one inode, four names\n"
    assert os.path.samefile(place.tree / "hard" / "sub" / "b", place.tree / "links" / "c")
    assert not (place.tree / "hard" / "sub" / "b").is_symlink()


def test_paths_take_names_as_diff_prints_them(place: Place) -> None:
    build_zoo(place.tree)
    before = list_tree(place.tree)
    backup = place.create()
    for name in (b"names/new\nline", b"names/bytes \xff\xfe\x80", b"names/#hash", b"names/caf\xc3\xa9"):
        at(place.tree, name).write_text("other")
    printed = place.diff(backup.id).modified
    assert len(printed) == 4

    place.restore(backup.id, paths=printed)

    names = list_tree(place.tree / "names")
    assert {name: names[name].sha256 for name in names if name} == {
        path[6:]: item.sha256 for path, item in before.items() if path.startswith(b"names/")
    }


@pytest.mark.parametrize("paths", [["/etc/passwd"], ["../other"], ["src/../README.md"], [""], ["a\0b"], ["./src"]])
def test_paths_that_lead_elsewhere_are_refused(small: Place, paths: list[str]) -> None:
    backup = small.create()
    with pytest.raises(InvalidBackupConfigError, match="relative to the directory"):
        small.restore(backup.id, paths=paths)


# -- excludes --


def test_excluded_paths_are_not_captured_and_not_touched(small: Place) -> None:
    write(small.tree / "debug.log", "first\n")
    write(small.tree / "node_modules" / "pkg" / "index.js", "first\n")
    backup = small.create(excludes=["*.log", "node_modules/"])
    write(small.tree / "debug.log", "second\n")
    write(small.tree / "node_modules" / "pkg" / "index.js", "second\n")
    write(small.tree / "src" / "new.log", "new\n")
    write(small.tree / "src" / "app.py", "broken\n")
    write(small.tree / "extra", "goes\n")
    node_modules = list_tree(small.tree / "node_modules")

    done = small.restore(backup.id)

    assert (small.tree / "debug.log").read_text() == "second\n"
    assert (small.tree / "src" / "new.log").read_text() == "new\n"
    assert_same(node_modules, list_tree(small.tree / "node_modules"))
    assert (small.tree / "src" / "app.py").read_text() == "print('hello')\n"
    assert not (small.tree / "extra").exists()
    assert done.kept_paths == ()
    small.restore(backup.id, dir=small.base / "other")
    assert not (small.base / "other" / "debug.log").exists()
    assert not (small.base / "other" / "node_modules").exists()


def test_an_exclude_drops_nothing_but_what_it_names(small: Place) -> None:
    for name in ("build/a", "src/build/b", "building/c", "src/a/b", "b", "docs/a/b"):
        write(small.tree / name, f"{name}\n")
    backup = small.create(excludes=["/build/", "docs/a/b", "!README.md"])

    small.restore(backup.id, dir=small.base / "other")

    found = list_tree(small.base / "other")
    expected = list_tree(small.tree, skip=["build", "docs/a/b"])
    assert_same(expected, found)


def test_an_extra_folder_with_excluded_files_keeps_just_these(small: Place) -> None:
    backup = small.create(excludes=["*.log"])
    write(small.tree / "new" / "deep" / "keep.log", "kept\n")
    write(small.tree / "new" / "deep" / "goes.txt", "goes\n")
    write(small.tree / "new" / "goes.txt", "goes\n")

    done = small.restore(backup.id)

    assert [str(p.relative_to(small.tree)) for p in sorted((small.tree / "new").rglob("*"))] == [
        "new/deep",
        "new/deep/keep.log",
    ]
    assert done.kept_paths == ("new", "new/deep")


def test_an_excluded_file_in_the_way_is_found_before_any_change(small: Place) -> None:
    backup = small.create(excludes=["*.log"])
    write(small.tree / "README.md", "broken\n")
    (small.tree / "run.sh").unlink()
    write(small.tree / "run.sh" / "precious.log", "kept\n")
    damaged = list_tree(small.tree)

    with pytest.raises(BackupRestoreError, match=r"run\.sh is a directory now and holds run\.sh/precious\.log"):
        small.restore(backup.id)

    assert_same(damaged, list_tree(small.tree))
    assert small.ids() == [backup.id]
    small.assert_clean()


def test_an_excluded_name_that_the_backup_has_is_brought_back(small: Place) -> None:
    """Excluded is decided at the backup: what it holds is restored, whatever matches later."""
    write(small.tree / "data", "first\n")
    backup = small.create(excludes=["data/"])
    (small.tree / "data").unlink()
    (small.tree / "data").mkdir()

    small.restore(backup.id)

    assert (small.tree / "data").read_text() == "first\n"


# -- use_gitignore --


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(place: Place) -> Place:
    tree = place.tree
    build_small(tree)
    git(tree, "init", "-q")
    write(tree / ".gitignore", "*.log\n!keep.log\nbuild/\n/top-only\n")
    write(tree / "src" / ".gitignore", "generated/\n!*.log\n")
    write(tree / "tracked.log", "tracked\n")
    git(tree, "add", "-f", ".")
    git(tree, "commit", "-qm", "first")
    for name in ("a.log", "keep.log", "build/out", "top-only", "src/top-only", "src/b.log", "src/generated/x"):
        write(tree / name, f"{name}\n")
    return place


IGNORED = ("a.log", "build", "top-only", "src/generated")


def test_git_decides_what_is_left_out(repository: Place) -> None:
    backup = repository.create(use_gitignore=True)

    repository.restore(backup.id, dir=repository.base / "other")

    assert_same(list_tree(repository.tree, skip=IGNORED), list_tree(repository.base / "other"))
    assert (repository.base / "other" / "tracked.log").exists()
    assert (repository.base / "other" / "src" / "b.log").exists()


def test_ignored_paths_are_not_touched_and_the_rest_is_exact(repository: Place) -> None:
    tree = repository.tree
    expected = list_tree(tree, skip=IGNORED)
    backup = repository.create(use_gitignore=True)
    write(tree / "a.log", "second\n")
    write(tree / "build" / "new", "new\n")
    write(tree / "tracked.log", "broken\n")
    write(tree / "src" / "b.log", "broken\n")
    write(tree / "new.txt", "goes\n")
    (tree / "keep.log").unlink()
    ignored = list_tree(tree / "build")

    repository.restore(backup.id)

    assert_same(expected, list_tree(tree, skip=IGNORED))
    assert_same(ignored, list_tree(tree / "build"))
    assert (tree / "a.log").read_text() == "second\n"


def test_rules_above_the_directory_count(repository: Place) -> None:
    write(repository.tree / "src" / "deep" / "build" / "x", "ignored by the rule above\n")
    expected = list_tree(repository.tree / "src", skip=["generated", "deep/build"])
    backup = repository.create(repository.tree / "src", use_gitignore=True)

    repository.restore(backup.id, dir=repository.base / "other")

    assert_same(expected, list_tree(repository.base / "other"))


def test_an_edited_gitignore_neither_hides_nor_exposes(repository: Place) -> None:
    """What the backup holds is restored although ignored now; what was left out then is left alone now."""
    tree = repository.tree
    backup = repository.create(use_gitignore=True)
    write(tree / ".gitignore", "*.md\nsrc/\n")  # a.log and build/ are ignored no more, README.md and src/ are
    write(tree / "README.md", "broken\n")
    write(tree / "src" / "top-only", "broken\n")
    damaged = list_tree(tree)

    done = repository.restore(backup.id)

    assert (tree / ".gitignore").read_text().startswith("*.log")
    assert (tree / "README.md").read_text() == "# read me\n"
    assert (tree / "src" / "top-only").read_text() == "src/top-only\n"
    assert (tree / "a.log").read_text() == "a.log\n"
    assert (tree / "build" / "out").read_text() == "build/out\n"
    assert done.undo_id is not None
    repository.restore(done.undo_id)
    assert_same(damaged, list_tree(tree))


def test_a_new_file_below_a_folder_ignored_since_is_not_touched(repository: Place) -> None:
    tree = repository.tree
    write(tree / "cache" / "old", "in the backup\n")
    backup = repository.create(use_gitignore=True)
    write(tree / ".git" / "info" / "exclude", "cache/\n")
    write(tree / "cache" / "old", "changed\n")
    write(tree / "cache" / "new", "ignored\n")
    git_directory = list_tree(tree / ".git")

    repository.restore(backup.id, paths=["cache"])

    assert (tree / "cache" / "old").read_text() == "in the backup\n"
    assert (tree / "cache" / "new").read_text() == "ignored\n"
    assert_same(git_directory, list_tree(tree / ".git"))


def test_outside_a_repository_nothing_is_ignored(small: Place) -> None:
    write(small.tree / ".gitignore", "*.md\n")
    before = list_tree(small.tree)
    backup = small.create(use_gitignore=True)

    small.restore(backup.id, dir=small.base / "other")

    assert_same(before, list_tree(small.base / "other"))


def test_a_directory_that_is_ignored_itself_is_backed_up_whole_or_empty_but_does_not_fail(repository: Place) -> None:
    backup = repository.create(repository.tree / "build", use_gitignore=True)
    write(repository.tree / "build" / "out", "changed\n")

    repository.restore(backup.id)

    assert (repository.tree / "build" / "out").read_text() in {"changed\n", "build/out\n"}


def test_the_git_directory_is_not_written_to(repository: Place) -> None:
    before = list_tree(repository.tree / ".git")

    backup = repository.create(use_gitignore=True)
    repository.diff(backup.id)
    write(repository.tree / "README.md", "broken\n")
    repository.restore(backup.id)

    assert_same(before, list_tree(repository.tree / ".git"))
