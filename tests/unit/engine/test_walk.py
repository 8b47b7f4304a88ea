"""The walk: every kind of entry, and the short-cut by a known manifest."""

import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.engine import Stopped, count_descriptors, opened, walk
from sandpoint.engine import walk as walking
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Manifest
from sandpoint.engine.walk import Looking, entry_of, moved_since, number_of, walk_if_changed, walk_tree

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these")

ACL = bytes.fromhex("0200000001000700ffffffff020006009210000004000400ffffffff10000700ffffffff20000000ffffffff")


def settled() -> int:
    """A beginning so late that every stamp so far is proof."""
    return time.time_ns() + 3_600_000_000_000


def test_files_directories_and_links(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o750)
    (tmp_path / "d" / "f").write_bytes(b"four")
    (tmp_path / "d" / "f").chmod(0o4711)
    (tmp_path / "l").symlink_to("d/f")
    os.utime(tmp_path / "d" / "f", ns=(1, 1_234_567_890_123_456_789))
    found = walk(tmp_path).entries
    assert list(found) == [b"", b"d", b"d/f", b"l"]
    assert (found[b"d"].mode, found[b"d"].size) == (stat.S_IFDIR | 0o750, 0)
    assert found[b"d/f"].mode == stat.S_IFREG | 0o4711
    assert (found[b"d/f"].size, found[b"d/f"].mtime_ns) == (4, 1_234_567_890_123_456_789)
    assert (found[b"l"].is_symlink, found[b"l"].target, found[b"l"].size) == (True, b"d/f", 0)
    assert found[b""].ino == number_of(tmp_path.stat())


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "l").symlink_to("../out")
    assert list(walk(tmp_path / "tree").entries) == [b"", b"l"]


def test_names_and_targets_of_any_bytes(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b" ", b"-", b"#", b"caf\xc3\xa9", b"n" * 255]
    for name in names:
        os.symlink(b"to \xff\n", os.path.join(os.fsencode(tmp_path), name))
    found = walk(tmp_path).entries
    assert sorted(found) == sorted([b"", *names])
    assert {found[name].target for name in names} == {b"to \xff\n"}


def test_fifos_and_sockets_are_noted_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        found = walk(tmp_path).entries
    assert stat.S_ISFIFO(found[b"fifo"].mode)
    assert stat.S_ISSOCK(found[b"socket"].mode)


@as_root
def test_device_nodes_and_owners(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tmp_path / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    os.chown(tmp_path / "null", 12, 34)
    found = walk(tmp_path).entries
    assert (found[b"null"].rdev, found[b"block"].rdev) == (os.makedev(1, 3), os.makedev(7, 300))
    assert (found[b"null"].uid, found[b"null"].gid) == (12, 34)


@as_root
def test_xattrs_and_acls(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to("f")
    os.setxattr(tmp_path / "f", "user.bytes", b"\0\xff")
    os.setxattr(tmp_path / "f", "trusted.t", b"t")
    os.setxattr(tmp_path / "f", "system.posix_acl_access", ACL)
    os.setxattr(tmp_path / "l", "trusted.l", b"of the link", follow_symlinks=False)
    os.setxattr(tmp_path, "user.root", b"r")
    made = walk(tmp_path)
    assert made.entries[b"f"].xattrs == {b"user.bytes": b"\0\xff", b"trusted.t": b"t", b"system.posix_acl_access": ACL}
    assert made.entries[b"l"].xattrs == {b"trusted.l": b"of the link"}
    assert made.entries[b""].xattrs == {b"user.root": b"r"}
    assert [entry.path for entry in made.header.beyond_squashfs] == [b"", b"f"]


def test_hard_links_name_the_first(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "z").touch()
    for name in ("b", "c", "d/a"):
        os.link(tmp_path / "d" / "z", tmp_path / name)
    (tmp_path / "single").touch()
    found = walk(tmp_path).entries
    assert {path: entry.hardlink for path, entry in found.items() if not entry.is_dir} == {
        b"b": b"", b"c": b"b", b"d/a": b"b", b"d/z": b"b", b"single": b"",
    }  # fmt: skip


def test_a_link_to_a_file_outside_is_no_hard_link(tmp_path: Path) -> None:
    (tmp_path / "outside").touch()
    (tmp_path / "tree").mkdir()
    os.link(tmp_path / "outside", tmp_path / "tree" / "inside")
    assert walk(tmp_path / "tree").entries[b"inside"].hardlink == b""


def test_a_hard_link_that_is_left_out_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    assert walk(tmp_path, Rules(["a"])).entries[b"b"].hardlink == b""


def test_a_very_deep_tree(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1500):
        deep = deep / "d"
        deep.mkdir()
    try:
        assert len(walk(tmp_path).entries) == 1501
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_what_is_excluded_is_said_once_for_all_below(tmp_path: Path) -> None:
    for name in ("a/x/1", "a/x/2", "a/y", "b.log"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    made = walk(tmp_path, Rules(["x", "*.log"]))
    assert list(made.entries) == [b"", b"a", b"a/y"]
    assert made.header.excluded == (b"a/x", b"b.log")


def test_boundaries_are_not_entered(tmp_path: Path) -> None:
    for name in ("m/below", "file"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    made = walk(tmp_path, boundaries=frozenset({b"m", b"file", b"gone"}))
    assert list(made.entries) == [b"", b"m"]
    assert made.header.mounts == (b"file", b"m")
    assert [entry.path for entry in made.header.beyond_squashfs] == [b"", b"m"]


def test_a_boundary_wins_over_an_exclude(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    made = walk(tmp_path, Rules(["m"]), boundaries=frozenset({b"m"}))
    assert (made.header.mounts, made.header.excluded) == ((b"m",), ())


def test_a_stop_comes_through(tmp_path: Path) -> None:
    for number in range(2100):
        (tmp_path / str(number)).touch()

    def stop(_count: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        walk(tmp_path, counted=stop)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = count_descriptors()
    walk(tmp_path)
    assert count_descriptors() == before


# -- the short-cut --


def test_what_is_proven_unchanged_is_the_same_object(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("d/kept", "d/edited", "top"):
        (tmp_path / name).write_text("x")
    known = walk(tmp_path, started_ns=settled(), stamps=True)
    (tmp_path / "d" / "edited").write_text("y")
    again = walk(tmp_path, known=known)
    assert {path for path, entry in again.entries.items() if entry is known.entries.get(path)} == {
        b"", b"d", b"d/kept", b"top",
    }  # fmt: skip


@pytest.mark.parametrize("stamps", [True, False])
def test_a_stamp_that_proves_nothing_is_not_taken(tmp_path: Path, stamps: bool) -> None:
    (tmp_path / "f").write_text("x")
    known = walk(tmp_path, started_ns=time.time_ns() if stamps else settled(), stamps=stamps)
    again = walk(tmp_path, known=known)
    assert all(entry is not known.entries[path] for path, entry in again.entries.items())
    assert again.entries == known.entries


def test_a_mount_that_came_later_is_not_entered_by_the_short_cut(tmp_path: Path) -> None:
    (tmp_path / "d" / "m").mkdir(parents=True)
    (tmp_path / "d" / "m" / "below").touch()
    known = walk(tmp_path, started_ns=settled(), stamps=True)
    again = walk(tmp_path, known=known, boundaries=frozenset({b"d/m"}))
    assert list(again.entries) == [b"", b"d", b"d/m"]
    assert again.header.mounts == (b"d/m",)


class _OneLink:
    """A status as btrfs gives it: a directory has one link, whatever it holds."""

    def __init__(self, status: os.stat_result) -> None:
        self._status = status

    def __getattr__(self, name: str) -> object:
        return 1 if name == "st_nlink" else getattr(self._status, name)


def test_directories_of_one_link_are_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").touch()
    known = walk(tmp_path, started_ns=settled(), stamps=True)
    stat_of = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **options: _OneLink(stat_of(*args, **options)))
    assert list(walk(tmp_path, known=known).entries) == [b"", b"d", b"d/e", b"d/e/f"]


NAMES = ("a", "b", "d1", "d2", "d1/a", "d1/b", "d1/e", "d2/a", "d1/e/x")


def _write(root: Path, name: str) -> None:
    (root / name).write_text("written")


def _grow(root: Path, name: str) -> None:
    with open(root / name, "a") as file:
        file.write("more")


def _remove(root: Path, name: str) -> None:
    path = root / name
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


CHANGES: tuple[Callable[[Path, str], object], ...] = (
    _write,
    _grow,
    _remove,
    lambda root, name: (root / name).mkdir(),
    lambda root, name: (root / name).chmod(0o741),
    lambda root, name: os.utime(root / name, ns=(5, 5)),
    lambda root, name: os.setxattr(root / name, "user.x", b"y"),
    lambda root, name: (root / name).symlink_to("a"),
    lambda root, name: os.link(root / "a", root / name),
    lambda root, name: (root / name).rename(root / "moved"),
    lambda root, name: (root / "moved").rename(root / name),
    lambda root, name: (root / name).rename(root / "d2" / "moved"),
)
STEPS = st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from(NAMES)), max_size=8)


def apply_changes(root: Path, steps: list[tuple[Callable[[Path, str], object], str]]) -> None:
    for change, name in steps:
        try:
            change(root, name)
        except OSError:
            continue


@given(before=STEPS, after=STEPS, patterns=st.sampled_from([(), ("b",), ("d1/", "!d2"), ("*", "!d1")]))
@settings(deadline=None, max_examples=50)
def test_the_short_cut_sees_what_a_full_walk_sees(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[Callable[[Path, str], object], str]],
    after: list[tuple[Callable[[Path, str], object], str]],
    patterns: tuple[str, ...],
) -> None:
    root = tmp_path_factory.mktemp("walk")
    for name in ("d1", "d2", "d1/e"):
        (root / name).mkdir()
    for name in ("a", "b", "d1/a", "d1/b", "d1/e/x"):
        (root / name).write_text(name)
    apply_changes(root, before)
    rules = Rules(patterns)
    time.sleep(0.03)  # stamps older than the kernel's tick are proof
    known = walk(root, rules, started_ns=time.time_ns(), stamps=True)
    time.sleep(0.02)
    apply_changes(root, after)
    rules = Rules(patterns, paths=known.header.excluded, cover=known.entries)
    short, full = walk(root, rules, known=known), walk(root, rules)
    assert short.entries == full.entries
    assert short.header.mounts == full.header.mounts


# -- one entry, and what moved --


def test_one_entry_is_as_the_walk_finds_it(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("x")
    (tmp_path / "f").write_text("x")
    made = walk(tmp_path)
    with opened(tmp_path) as fd:
        for name in (b"l", b"f"):
            assert entry_of(name, fd, name) == made.entries[name]
        with pytest.raises(FileNotFoundError):
            entry_of(b"gone", fd, b"gone")


def wait_for_another_stamp(path: Path) -> None:
    """Write to a file until that shows in its ctime: the kernel's clock has a grain."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.write_text("x")


def moved(tmp_path: Path, change: Callable[[], object]) -> set[bytes]:
    (tmp_path / "a").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b").touch()
    time.sleep(0.05)
    with opened(tmp_path) as fd:
        made: Manifest = walk_tree(fd, Rules(), started_ns=time.time_ns(), stamps=True)
        change()
        return {entry.path for entry in moved_since(fd, made)}


def test_nothing_moved(tmp_path: Path) -> None:
    assert moved(tmp_path, lambda: None) == set()


def test_a_write_moves_the_file_and_an_addition_its_directory(tmp_path: Path) -> None:
    assert moved(tmp_path, lambda: (tmp_path / "a").write_text("x")) == {b"a"}


def test_an_addition_moves_the_directory(tmp_path: Path) -> None:
    assert moved(tmp_path, lambda: (tmp_path / "d" / "new").touch()) == {b"d"}


def test_a_write_is_seen_though_the_clock_was_set_back_before_it(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    in_an_hour = time.time_ns() + 3600 * 10**9
    with opened(tmp_path) as fd:
        made = walk_tree(fd, Rules(), started_ns=in_an_hour, stamps=True)
        wait_for_another_stamp(tmp_path / "a")
        assert {entry.path for entry in moved_since(fd, made)} == {b"a"}


def test_a_removal_moves_both(tmp_path: Path) -> None:
    assert moved(tmp_path, lambda: (tmp_path / "d" / "b").unlink()) == {b"d", b"d/b"}


def test_a_time_put_back_does_not_hide_a_write(tmp_path: Path) -> None:
    def change() -> None:
        before = (tmp_path / "a").stat()
        (tmp_path / "a").write_text("x")
        os.utime(tmp_path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))

    assert moved(tmp_path, change) == {b"a"}


def test_a_hard_link_that_vanishes_while_it_is_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lock files do, which are made by a link and removed at once."""
    (tmp_path / "kept").write_bytes(b"1")
    os.link(tmp_path / "kept", tmp_path / "gone")
    really_read = walking.read_xattrs

    def vanish(where: str | int, *, follow_symlinks: bool) -> dict[bytes, bytes] | None:
        if str(where).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", str(where))
        return really_read(where, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(walking, "read_xattrs", vanish)
    found = walk(tmp_path)
    assert list(found.entries) == [b"", b"kept"]
    assert found.entries[b"kept"].hardlink == b""


# -- where nothing has changed --


def looking(known: Manifest) -> Looking:
    return Looking(
        started_ns=time.time_ns(), stamps=True, boundaries=frozenset(), known=known, counted=lambda _count: None
    )


def test_a_tree_of_which_nothing_has_changed_is_none(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    (tmp_path / "d" / "hard").hardlink_to(tmp_path / "d" / "f")
    known = walk(tmp_path, started_ns=settled(), stamps=True)
    with opened(tmp_path) as fd:
        assert walk_if_changed(fd, Rules(), **looking(known)) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "new").touch(),
        lambda tree: (tree / "d" / "f").unlink(),
        lambda tree: (tree / "d" / "f").write_text("x"),
        lambda tree: (tree / "d" / "f").chmod(0o600),
        lambda tree: (tree / "e").rmdir(),
        lambda tree: os.utime(tree, (1, 1)),
    ],
    ids=["added", "removed", "written", "mode", "empty folder", "root"],
)
def test_any_change_gives_the_whole_tree(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    (tmp_path / "d" / "f").touch()
    known = walk(tmp_path, started_ns=settled(), stamps=True)
    change(tmp_path)
    with opened(tmp_path) as fd:
        found = walk_if_changed(fd, Rules(), **looking(known))
    assert found is not None
    assert found.entries == walk(tmp_path).entries


def test_a_tree_is_not_known_by_stamps_that_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for known in (walk(tmp_path, started_ns=time.time_ns(), stamps=True), walk(tmp_path, stamps=False)):
        with opened(tmp_path) as fd:
            assert walk_if_changed(fd, Rules(), **looking(known)) is not None


def test_rules_that_changed_are_a_change(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "g").touch()
    known = walk(tmp_path, started_ns=settled(), stamps=True)
    with opened(tmp_path) as fd:
        found = walk_if_changed(fd, Rules(["f"]), **looking(known))
    assert found is not None
    assert list(found.entries) == [b"", b"g"]
