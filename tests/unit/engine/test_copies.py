"""Plain copies: contents with their holes, and whole trees with all that belongs to them."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.engine import Stopped, count_descriptors, entry, folder, never, opened, stop, walk
from helpers.place import mounted, tmpfs
from helpers.trees import assert_same, build_small, build_zoo, list_tree, write
from sandpoint.engine import copies, linux
from sandpoint.engine.copies import copy_content, copy_tree, stage
from sandpoint.engine.manifest import Entry
from sandpoint.engine.walk import UnreadableError

BLOCK = 1 << 20
HOLE = 1 << 22


@contextmanager
def both(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of a file to read and of a new one to fill."""
    first = os.open(source, os.O_RDWR)
    second = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield first, second
    finally:
        os.close(first)
        os.close(second)


def copy(source: Path, target: Path) -> Path:
    with both(source, target) as (first, second):
        copy_content(first, second)
    return target


def content(size: int) -> bytes:
    return hashlib.shake_256(b"copies").digest(size)


@pytest.fixture(params=["within ext4", "from tmpfs to ext4", "from ext4 to tmpfs", "within tmpfs"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file's place to be, and that of its copy."""
    image = tmp_path / "image"
    with image.open("xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", str(image)], check=True)
    ext4 = tmp_path / "ext4"
    ext4.mkdir()
    with mounted(ext4, "-o", "loop", str(image)), tmpfs(tmp_path / "memory", size="64m") as memory:
        start, end = {
            "within ext4": (ext4, ext4),
            "from tmpfs to ext4": (memory, ext4),
            "from ext4 to tmpfs": (ext4, memory),
            "within tmpfs": (memory, memory),
        }[request.param]
        yield start / "source", end / "copy"


def test_a_file_of_any_size_is_copied_whole(pair: tuple[Path, Path]) -> None:
    source, target = pair
    for size in (0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5):
        source.write_bytes(content(size))
        assert copy(source, target).read_bytes() == content(size)
        target.unlink()


@pytest.mark.parametrize(
    "data",
    [(), (0,), (HOLE,), (0, HOLE), (HOLE, 2 * HOLE), (4096, 3 * 4096, HOLE, 3 * HOLE - 4096)],
    ids=["a hole only", "data first", "data in the middle", "twice", "later", "four times"],
)
def test_holes_stay_holes(pair: tuple[Path, Path], data: tuple[int, ...]) -> None:
    source, target = pair
    with source.open("wb") as file:
        for position in data:
            file.seek(position)
            file.write(content(4096))
        file.truncate(3 * HOLE)
    copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= max(1, len(data)) * 8192
    assert target.stat().st_size == 3 * HOLE


def test_a_file_is_copied_from_its_start_wherever_the_descriptor_stands(tmp_path: Path) -> None:
    write(tmp_path / "source", b"0123456789")
    with both(tmp_path / "source", tmp_path / "copy") as (source, target):
        os.lseek(source, 7, os.SEEK_SET)
        copy_content(source, target)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"


@pytest.mark.parametrize("call", ["lseek", "copy_file_range"])
@pytest.mark.parametrize("size", [0, 5000])
def test_a_file_that_shrinks_while_it_is_copied_ends_as_it_was_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, size: int
) -> None:
    write(tmp_path / "source", content(BLOCK))
    real: Callable[..., int] = getattr(os, call)

    def shrinking(*arguments: int) -> int:
        result = real(*arguments)
        os.truncate(tmp_path / "source", size)
        return result

    monkeypatch.setattr(os, call, shrinking)
    copied = copy(tmp_path / "source", tmp_path / "copy").read_bytes()
    assert len(copied) == BLOCK
    assert copied[:size] == content(size)


def test_a_file_that_grows_while_it_is_copied_ends_where_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", b"before")
    real = os.lseek

    def growing(*arguments: int) -> int:
        with source.open("ab") as file:
            file.write(b" and after")
        return real(*arguments)

    monkeypatch.setattr(os, "lseek", growing)
    assert copy(source, tmp_path / "copy").read_bytes() == b"before"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS])
def test_where_the_kernel_does_not_copy_it_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write(tmp_path / "source", content(2 * BLOCK + 7))
    real = os.copy_file_range
    calls: list[int] = []

    def copy_some(source: int, target: int, count: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(number, os.strerror(number))
        return real(source, target, min(count, 1000))

    monkeypatch.setattr(os, "copy_file_range", copy_some)
    assert copy(tmp_path / "source", tmp_path / "copy").read_bytes() == content(2 * BLOCK + 7)
    assert len(calls) == 2


def test_where_blocks_can_be_shared_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Filesystems that can are not at hand everywhere.
    write(tmp_path / "source", b"shared")
    monkeypatch.setattr(linux, "reflink", lambda source, target: os.write(target, os.pread(source, 100, 0)))
    monkeypatch.setattr(copies, "_copy_range", None)
    assert copy(tmp_path / "source", tmp_path / "copy").read_bytes() == b"shared"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failure_to_share_blocks_is_none_to_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write(tmp_path / "source", b"x")

    def reflink(source: int, target: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(linux, "reflink", reflink)
    with pytest.raises(OSError, match=os.strerror(number)):
        copy(tmp_path / "source", tmp_path / "copy")


def test_no_room_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "source", content(2 * BLOCK))
    with tmpfs(tmp_path / "small", size="1m") as small, pytest.raises(OSError, match="No space"):
        copy(tmp_path / "source", small / "copy")


# -- staging --


def refuse(wanted: object) -> int:
    raise AssertionError(f"no content was to be read: {wanted}")


def staged_from(entries: list[Entry], into: Path, **contents: bytes) -> None:
    into.mkdir()
    source = into.with_name("source of it")

    def open_content(wanted: Entry) -> int:
        source.write_bytes(contents[wanted.path.rpartition(b"/")[2].decode()])
        return os.open(source, os.O_RDONLY)

    with opened(into) as fd:
        stage(entries, fd, open_content, never)


def test_entries_are_staged_with_the_directories_that_lead_to_them(tmp_path: Path) -> None:
    before = count_descriptors()
    staged_from(
        [entry(b"x/y/z/one", size=3), entry(b"x/y/two", size=3), folder(b"x/y/empty"), entry(b"x!", size=3)],
        tmp_path / "staged",
        **{"one": b"111", "two": b"222", "x!": b"333"},
    )
    found = {path: item.kind for path, item in list_tree(tmp_path / "staged").items()}
    assert found == {
        b"": "dir",
        b"x": "dir",
        b"x!": "file",
        b"x/y": "dir",
        b"x/y/empty": "dir",
        b"x/y/two": "file",
        b"x/y/z": "dir",
        b"x/y/z/one": "file",
    }
    assert (tmp_path / "staged" / "x" / "y" / "z" / "one").read_bytes() == b"111"
    assert (tmp_path / "staged" / "x" / "y" / "two").read_bytes() == b"222"
    assert count_descriptors() == before


def test_empty_files_links_and_nodes_are_staged_without_reading_any_content(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    entries = [
        entry(b"empty"),
        entry(b"z/linked", hardlink=b"empty"),
        entry(b"symlink", stat.S_IFLNK | 0o777, target=b"to \xff"),
        entry(b"symlink too", stat.S_IFLNK | 0o777, target=b"to \xff", hardlink=b"symlink"),
        entry(b"fifo", stat.S_IFIFO | 0o644),
        entry(b"socket", stat.S_IFSOCK | 0o644),
        entry(b"node", stat.S_IFCHR | 0o666, rdev=os.makedev(1, 7)),
    ]
    with opened(tmp_path / "staged") as fd:
        stage(entries, fd, refuse, never)
    found = list_tree(tmp_path / "staged")
    assert found[b"empty"].links == (b"empty", b"z/linked")
    assert found[b"symlink"].links == (b"symlink", b"symlink too")
    assert found[b"symlink"].target == b"to \xff"
    assert [found[name].kind for name in (b"fifo", b"socket", b"node")] == ["fifo", "socket", "char"]
    assert found[b"node"].rdev == os.makedev(1, 7)
    assert {item.mode & 0o077 for item in found.values() if item.kind not in {"symlink", "dir"}} == {0}


def test_staging_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    with opened(tmp_path / "staged") as fd, pytest.raises(Stopped):
        stage([entry(b"x")], fd, refuse, stop)
    assert list((tmp_path / "staged").iterdir()) == []


@pytest.mark.parametrize("path", [b"..", b"../x", b"a/../../x", b".", b"/tmp/x"])
def test_nothing_is_staged_outside(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "around" / "staged").mkdir(parents=True)
    (tmp_path / "around" / "staged" / "a").mkdir()
    before = list_tree(tmp_path)
    with opened(tmp_path / "around" / "staged") as fd, pytest.raises(OSError, match=r"no name of a file|cross-device"):
        stage([entry(path)], fd, refuse, never)
    assert list_tree(tmp_path).keys() == before.keys()


# -- whole trees --


def copied(tree: Path, into: Path, check: Callable[[], None] = never) -> Path:
    with opened(tree) as fd:
        copy_tree(fd, str(into), check)
    return into


def test_a_tree_with_everything_in_it_is_copied_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    build_zoo(tmp_path / "zoo")
    before = list_tree(tmp_path / "zoo")
    descriptors = count_descriptors()
    copy = copied(tmp_path / "zoo", tmp_path / "copy")
    assert_same(before, list_tree(copy))
    assert_same(before, list_tree(tmp_path / "zoo"))
    assert count_descriptors() == descriptors
    sparse = (copy / "contents" / "sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size // 10


def test_a_tree_is_copied_to_another_filesystem(tmp_path: Path) -> None:
    build_zoo(tmp_path / "zoo")
    with tmpfs(tmp_path / "memory", size="64m") as memory:
        assert_same(list_tree(tmp_path / "zoo"), list_tree(copied(tmp_path / "zoo", memory / "copy")))


def test_what_a_default_acl_would_pass_on_is_not_in_the_copy(tmp_path: Path) -> None:
    build_small(tmp_path / "tree")
    parent = tmp_path / "parent"
    parent.mkdir()
    subprocess.run(["chmod", "g+s", str(parent)], check=True)
    os.chown(parent, 0, 77)
    assert_same(list_tree(tmp_path / "tree"), list_tree(copied(tmp_path / "tree", parent / "copy")))


def test_a_copy_goes_nowhere_where_something_is(tmp_path: Path) -> None:
    build_small(tmp_path / "tree")
    write(tmp_path / "there" / "file", b"kept")
    with pytest.raises(FileExistsError):
        copied(tmp_path / "tree", tmp_path / "there")
    assert (tmp_path / "there" / "file").read_bytes() == b"kept"


def test_a_copy_without_room_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "tree" / "file", content(2 * BLOCK))
    with tmpfs(tmp_path / "small", size="1m") as small, pytest.raises(OSError, match="No space"):
        copied(tmp_path / "tree", small / "copy")


def test_a_file_that_is_written_to_meanwhile_is_copied_as_it_then_is(tmp_path: Path) -> None:
    for name in ("grows", "shrinks", "vanishes to nothing"):
        write(tmp_path / "tree" / name, b"0123456789")

    def go_on_writing() -> None:
        write(tmp_path / "tree" / "grows", b"0123456789" * 3)
        write(tmp_path / "tree" / "shrinks", b"0123")
        write(tmp_path / "tree" / "vanishes to nothing", b"")

    copy = copied(tmp_path / "tree", tmp_path / "copy", go_on_writing)
    assert (copy / "grows").read_bytes() == b"0123456789" * 3
    assert (copy / "shrinks").read_bytes() == b"0123"
    assert (copy / "vanishes to nothing").read_bytes() == b""


class At:
    """Does something at the n-th check of an operation."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.left = number
        self.act = act

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def test_a_link_that_takes_a_directorys_place_leads_nowhere(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "inner" / "file", b"secret").parent.parent
    number = 0
    while True:
        number += 1
        tree = tmp_path / f"tree{number}"
        write(tree / "dir" / "inner" / "file", b"public")
        write(tree / "dir" / "file", b"public")
        write(tree / "zzz", b"public")

        def swap(tree: Path = tree) -> None:
            (tree / "dir").rename(tree.with_name(f"{tree.name} gone"))
            (tree / "dir").symlink_to(secret)

        check = At(number, swap)
        failure = None
        try:
            copied(tree, tmp_path / f"copy{number}", check)
        except OSError as error:
            failure = error
        copy = tmp_path / f"copy{number}"
        assert all(path.read_bytes() != b"secret" for path in copy.rglob("*") if path.is_file())
        assert not any(path.is_symlink() for path in copy.rglob("*"))
        if check.left > 0:
            break
        assert failure is None or failure.errno in {errno.ELOOP, errno.ENOTDIR}
    assert number > 8
    assert list_tree(secret).keys() == {b"", b"inner", b"inner/file"}


@pytest.mark.parametrize("become", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_a_file_that_becomes_something_else_meanwhile_blocks_nothing(
    tmp_path: Path, become: Callable[[str], None]
) -> None:
    path = write(tmp_path / "tree" / "file", b"x")

    def swap() -> None:
        path.unlink()
        become(str(path))

    with pytest.raises(OSError, match=r"no regular file|Too many levels"):
        copied(tmp_path / "tree", tmp_path / "copy", At(1, swap))


def test_a_copy_can_be_stopped_at_any_point(tmp_path: Path) -> None:
    build_small(tmp_path / "tree")
    before = list_tree(tmp_path / "tree")

    def halt() -> None:
        raise Stopped

    number = 0
    while True:
        number += 1
        check = At(number, halt)
        try:
            copied(tmp_path / "tree", tmp_path / "copy", check)
        except Stopped:
            shutil.rmtree(tmp_path / "copy")
        else:
            break
    assert number > 2 * (len(before) - 1)
    assert_same(before, list_tree(tmp_path / "tree"))
    assert_same(before, list_tree(tmp_path / "copy"))


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "tree" / "dir" / "closed", b"x")
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.setattr(os, "access", lambda path, mode, **options: not path.endswith("closed"))
    with pytest.raises(UnreadableError, match="dir/closed"):
        copied(tmp_path / "tree", tmp_path / "copy")


def test_a_copys_manifest_says_what_the_trees_does(tmp_path: Path) -> None:
    build_zoo(tmp_path / "zoo")
    copy = copied(tmp_path / "zoo", tmp_path / "copy")
    before, after = walk(tmp_path / "zoo").entries, walk(copy).entries
    assert [(each.path, each.hardlink, each.xattrs) for each in before.values()] == [
        (each.path, each.hardlink, each.xattrs) for each in after.values()
    ]
