"""Changes of a tree for tests: a table with one of every kind, random ones, and what they amount to.

What they amount to is found from two independent listings; nothing here is shared with the engine but how it shows
names.
"""

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from helpers.trees import ACL_ACCESS, ACL_DEFAULT, Item, Listing, at, make_acl, write
from sandpoint.engine.manifest import CLOCK_GRAIN_NS, display
from sandpoint.models import Changes

OLD_NS = 1_500_000_000_123_456_789


def build_varied(root: Path) -> None:
    """Build a small tree with what the table of changes works on; as root only."""
    root.mkdir(parents=True, exist_ok=True)
    write(root / "file", b"content of a file")
    write(root / "other", b"content of others")
    write(root / "empty", b"")
    write(root / "run.sh", b"#!/bin/sh\n", mode=0o755)
    write(root / "suid", b"privileged", mode=0o4755)
    write(root / "big", bytes(range(256)) * 2000)
    write(root / "dir" / "inner" / "deep", b"deep down")
    write(root / "dir" / "inner" / "deeper" / "deepest", b"deepest down")
    write(root / "dir" / "beside", b"beside")
    write(root / "dir2" / "x", b"x of dir2")
    write(at(root, b"odd \n\xff") / "in it", b"odd")
    (root / "empty dir").mkdir()
    (root / "link").symlink_to("file")
    (root / "dangling").symlink_to("nowhere")
    (root / "to dir").symlink_to("dir")
    write(root / "hard1", b"two names")
    os.link(root / "hard1", root / "hard2")
    write(root / "twin1", b"the same")
    write(root / "twin2", b"the same")
    os.mkfifo(root / "fifo")
    os.mknod(root / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    write(root / "noted", b"x")
    os.setxattr(root / "noted", "user.note", b"before")
    write(root / "acl", b"x")
    os.setxattr(root / "acl", ACL_ACCESS, make_acl(user=4242))
    os.setxattr(root / "dir2", "user.note", b"of a directory")
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            os.utime(os.path.join(folder, name), ns=(OLD_NS, OLD_NS), follow_symlinks=False)
        os.utime(folder, ns=(OLD_NS + 1, OLD_NS + 1))


def _edit_unseen(root: Path) -> None:
    status = (root / "file").stat()
    (root / "file").write_bytes(b"CONTENT OF A FILE")
    os.utime(root / "file", ns=(status.st_atime_ns, status.st_mtime_ns))


def _edit_by_rename(root: Path) -> None:
    write(root / "file.new", b"another inode")
    (root / "file.new").rename(root / "file")


def _edit_by_rename_unseen(root: Path) -> None:
    write(root / "file.new", b"CONTENT OF A FILE", mtime_ns=OLD_NS)
    (root / "file.new").rename(root / "file")
    os.utime(root, ns=(OLD_NS + 1, OLD_NS + 1))


def _append(root: Path) -> None:
    with (root / "file").open("ab") as file:
        file.write(b" and more")


def _rewrite_the_same(root: Path) -> None:
    (root / "file").write_bytes((root / "file").read_bytes())
    os.utime(root / "file", ns=(OLD_NS, OLD_NS))


def _swap(root: Path) -> None:
    (root / "file").rename(root / "third")
    (root / "other").rename(root / "file")
    (root / "third").rename(root / "other")


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def _make_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def _make_tree(path: Path) -> None:
    write(path / "a" / "b", b"new below")
    (path / "a" / "link").symlink_to("b")


def _remake_directory(root: Path) -> None:
    _replace(root / "dir", Path.mkdir)
    write(root / "dir" / "inner" / "new", b"new in a new one")


def _remake_the_same(root: Path) -> None:
    status = (root / "dir2").stat()
    _replace(root / "dir2", Path.mkdir)
    write(root / "dir2" / "x", b"x of dir2", mtime_ns=OLD_NS)
    os.setxattr(root / "dir2", "user.note", b"of a directory")
    (root / "dir2").chmod(stat.S_IMODE(status.st_mode))


def _there_and_back(root: Path) -> None:
    content = (root / "file").read_bytes()
    _replace(root / "file", Path.mkdir)
    write(root / "file" / "inside", b"x")
    _replace(root / "file", lambda path: write(path, content, mtime_ns=OLD_NS))


def _directory_there_and_back(root: Path) -> None:
    (root / "dir").rename(root / "away")
    write(root / "dir", b"a file meanwhile")
    (root / "dir").unlink()
    (root / "away").rename(root / "dir")


def _rename_over(root: Path) -> None:
    (root / "empty dir").rename(root / "another")
    (root / "dir").rename(root / "empty dir")
    (root / "another").rename(root / "dir")


def _rename_and_edit(root: Path) -> None:
    (root / "dir").rename(root / "renamed")
    write(root / "renamed" / "inner" / "deep", b"edited after the move")
    (root / "renamed" / "beside").unlink()
    write(root / "dir", b"a file in its place")


def _rename_within_renamed(root: Path) -> None:
    (root / "dir").rename(root / "renamed")
    (root / "renamed" / "inner").rename(root / "dir2" / "moved on")
    (root / "dir2").rename(root / "renamed" / "dir2")


def _exchange_directories(root: Path) -> None:
    (root / "dir").rename(root / "third")
    (root / "dir2").rename(root / "dir")
    (root / "third").rename(root / "dir2")


def _remove_all(root: Path) -> None:
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _add_odd_names(root: Path) -> None:
    for name in (b"new\nline", b"\xff\xfe", b" ", b"-rf", b"...", b"n" * 255):
        at(root, name).write_bytes(name)
        at(root / "dir", name).mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "a file added": lambda root: write(root / "new", b"new"),
    "an empty file added": lambda root: write(root / "new", b""),
    "a file added deep down": lambda root: write(root / "dir" / "inner" / "deeper" / "new", b"new"),
    "a tree added": lambda root: _make_tree(root / "new"),
    "odd names added": _add_odd_names,
    "a symlink added": lambda root: (root / "new").symlink_to("file"),
    "a fifo added": lambda root: os.mkfifo(root / "new"),
    "a socket added": lambda root: _make_socket(root / "new"),
    "a node added": lambda root: os.mknod(root / "new", stat.S_IFBLK | 0o600, os.makedev(7, 99)),
    "a file edited": lambda root: write(root / "file", b"edited, and longer"),
    "a file edited, as long as before": lambda root: write(root / "file", b"CONTENT OF A FILE"),
    "a file edited, size and time as before": _edit_unseen,
    "a file edited deep down": lambda root: write(root / "dir" / "inner" / "deeper" / "deepest", b"edited"),
    "a file edited by rename": _edit_by_rename,
    "a file edited by rename, size and times as before": _edit_by_rename_unseen,
    "a file appended to": _append,
    "a file emptied": lambda root: os.truncate(root / "file", 0),
    "a file grown by a hole": lambda root: os.truncate(root / "file", 1_000_000),
    "an empty file filled": lambda root: write(root / "empty", b"no more"),
    "a big file edited at its end": lambda root: os.truncate(root / "big", 511_999),
    "a file written again with the same": _rewrite_the_same,
    "a file's time moved": lambda root: os.utime(root / "file", ns=(5, 5)),
    "two files swapped": _swap,
    "a file removed": lambda root: (root / "file").unlink(),
    "a file moved": lambda root: (root / "file").rename(root / "dir" / "file"),
    "a tree removed": lambda root: shutil.rmtree(root / "dir"),
    "an empty directory removed": lambda root: (root / "empty dir").rmdir(),
    "an odd directory removed": lambda root: shutil.rmtree(at(root, b"odd \n\xff")),
    "everything removed": _remove_all,
    "a directory renamed": lambda root: (root / "dir").rename(root / "renamed"),
    "a directory renamed and changed": _rename_and_edit,
    "a directory renamed within one that was renamed": _rename_within_renamed,
    "a directory renamed over another": _rename_over,
    "directories exchanged": _exchange_directories,
    "a directory made anew": _remake_directory,
    "a directory made anew with the same": _remake_the_same,
    "a file became a directory": lambda root: _replace(root / "file", _make_tree),
    "a file became a symlink": lambda root: _replace(root / "file", lambda path: path.symlink_to("other")),
    "a file became a fifo": lambda root: _replace(root / "file", os.mkfifo),
    "a directory became a file": lambda root: _replace(root / "dir", lambda path: write(path, b"file")),
    "a directory became a symlink": lambda root: _replace(root / "dir", lambda path: path.symlink_to("dir2")),
    "a directory became a symlink out": lambda root: _replace(root / "dir", lambda path: path.symlink_to("/etc")),
    "a symlink became a file": lambda root: _replace(root / "link", lambda path: write(path, b"file")),
    "a symlink became a directory": lambda root: _replace(root / "to dir", _make_tree),
    "a symlink points elsewhere": lambda root: _replace(root / "link", lambda path: path.symlink_to("other")),
    "a fifo became a file": lambda root: _replace(root / "fifo", lambda path: write(path, b"file")),
    "a node has another number": lambda root: _replace(
        root / "node", lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    ),
    "a file became a directory and a file again": _there_and_back,
    "a directory became a file and itself again": _directory_there_and_back,
    "a mode changed": lambda root: (root / "file").chmod(0o600),
    "a mode taken away": lambda root: (root / "file").chmod(0),
    "setuid taken away": lambda root: (root / "suid").chmod(0o755),
    "a directory's mode changed": lambda root: (root / "dir").chmod(0o2700),
    "an owner changed": lambda root: os.chown(root / "suid", 7, 8),
    "a symlink's owner changed": lambda root: os.lchown(root / "link", 7, 8),
    "a directory's time moved": lambda root: os.utime(root / "dir" / "inner", ns=(9, 9)),
    "an attribute added": lambda root: os.setxattr(root / "file", "user.new", b"x\0y"),
    "an attribute changed": lambda root: os.setxattr(root / "noted", "user.note", b"after"),
    "an attribute removed": lambda root: os.removexattr(root / "noted", "user.note"),
    "a directory's attribute changed": lambda root: os.setxattr(root / "dir2", "user.note", b"after"),
    "an acl added": lambda root: os.setxattr(root / "file", ACL_ACCESS, make_acl(user=77)),
    "an acl removed": lambda root: os.removexattr(root / "acl", ACL_ACCESS),
    "a default acl added": lambda root: os.setxattr(root / "dir", ACL_DEFAULT, make_acl(user=77)),
    "the directory's own mode changed": lambda root: root.chmod(0o1700),
    "the directory's own time moved": lambda root: os.utime(root, ns=(3, 3)),
    "the directory's own attributes changed": lambda root: os.setxattr(root, "user.own", b"x"),
}
"""Without hard links, which an overlay treats in its own way."""


def _break_link(root: Path) -> None:
    _replace(root / "hard1", lambda path: write(path, b"two names", mtime_ns=OLD_NS))


def _link_twins(root: Path) -> None:
    _replace(root / "twin2", lambda path: os.link(root / "twin1", path))


def _link_others(root: Path) -> None:
    _replace(root / "hard2", lambda path: os.link(root / "twin1", path))
    os.link(root / "hard1", root / "dir2" / "hard3")


def _remove_links(root: Path) -> None:
    (root / "hard1").unlink()
    (root / "hard2").unlink()


LINK_CHANGES: dict[str, Callable[[Path], object]] = {
    "a link made": lambda root: os.link(root / "file", root / "dir" / "file too"),
    "a link made before the first": lambda root: os.link(root / "hard1", root / "a hard link"),
    "a link removed": lambda root: (root / "hard2").unlink(),
    "the first link removed": lambda root: (root / "hard1").unlink(),
    "all links removed": _remove_links,
    "a link broken": _break_link,
    "a link moved": lambda root: (root / "hard1").rename(root / "dir" / "hard1"),
    "files of the same content linked": _link_twins,
    "links between other files": _link_others,
    "a file written through a link": lambda root: write(root / "hard2", b"written through it"),
    "a mode changed through a link": lambda root: (root / "hard2").chmod(0o600),
    "a symlink linked": lambda root: os.link(root / "link", root / "link too", follow_symlinks=False),
}


def expected_changes(before: Listing, after: Listing, *, links: bool = True) -> Changes:
    """Return what became of one tree in another, as a plan tells it.

    Directories of which only the time moved do not count. With `links`, files that share an inode with others than
    before count as modified, and with one of them all.
    """
    common = before.keys() & after.keys()
    added = after.keys() - before.keys()
    modified = {path for path in common if _countable(before[path]) != _countable(after[path])}
    if links:
        modified |= {path for path in common if not _same_partners(before[path], after[path], common)}
        news = modified | added
        modified |= {
            path for path in common if any(each in news for each in after[path].links) and len(after[path].links) > 1
        }
    return Changes(added=_shown(added), modified=_shown(modified), removed=_shown(before.keys() - after.keys()))


def _countable(item: Item) -> Item:
    return replace(item, links=(), mtime_ns=0 if item.kind == "dir" else item.mtime_ns)


def _same_partners(before: Item, after: Item, common: set[bytes]) -> bool:
    return set(before.links) & common == set(after.links) & common


def _shown(paths: set[bytes]) -> tuple[str, ...]:
    return tuple(sorted(display(path) or "." for path in paths))


def wait_until_settled(root: Path) -> None:
    """Wait until every stamp in a tree is old enough to prove something."""
    latest = max(path.lstat().st_ctime_ns for path in (root, *root.rglob("*")))
    while time.time_ns() - latest <= 2 * CLOCK_GRAIN_NS:
        time.sleep(0.002)


class Step(NamedTuple):
    """One random change: what to do, to which of a few paths, and with what."""

    verb: str
    path: str
    other: str
    number: int


VERBS = (
    "write",
    "write",
    "edit unseen",
    "append",
    "mkdir",
    "symlink",
    "fifo",
    "remove",
    "remove",
    "rename",
    "rename",
    "remake",
    "chmod",
    "touch",
    "xattr",
    "copy",
)
LINK_VERBS = (*VERBS, "link", "link")
NAMES = ("a", "b", "c\n\udcff")
PATHS = tuple("/".join(parts) for one in NAMES for parts in ((one,), *((one, two) for two in NAMES)))
DEEP_PATHS = (*PATHS, "a/a/a", "a/b/a", "b/a/c")


def carry_out(root: Path, step: Step) -> None:
    """Carry out a random change, as far as the tree has what it needs."""
    path, other = root / step.path, root / step.other
    with suppress(OSError, shutil.Error):
        _VERBS[step.verb](path, other, step.number)


def _write(path: Path, other: Path, number: int) -> None:
    path.write_bytes(b"%d" % number * (number % 40))


def _edit_in_place(path: Path, other: Path, number: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        os.pwrite(fd, b"%d" % (number % 10), 0) if stat.S_ISREG(status.st_mode) and status.st_size else None
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)


def _append_to(path: Path, other: Path, number: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.write(fd, b"+%d" % number)
    finally:
        os.close(fd)


def _remove(path: Path, other: Path, number: int) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remake(path: Path, other: Path, number: int) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        path.mkdir()
        write(path / NAMES[number % 3], b"%d" % number)


def _touch(path: Path, other: Path, number: int) -> None:
    os.utime(path, ns=(number, number), follow_symlinks=False)


def _set_xattr(path: Path, other: Path, number: int) -> None:
    if not path.is_symlink():
        os.setxattr(path, f"user.{number % 2}", b"%d" % number)


def _copy(path: Path, other: Path, number: int) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, other, symlinks=True, ignore=_fifos)
    elif path.is_file():
        shutil.copy2(path, other)


def _fifos(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if stat.S_ISFIFO(os.lstat(os.path.join(folder, name)).st_mode)]


_VERBS: dict[str, Callable[[Path, Path, int], object]] = {
    "write": lambda path, other, number: None if _exists_unfit(path) else _write(path, other, number),
    "edit unseen": _edit_in_place,
    "append": _append_to,
    "mkdir": lambda path, other, number: path.mkdir(mode=(0o755, 0o700, 0o2775)[number % 3]),
    "symlink": lambda path, other, number: path.symlink_to(NAMES[number % 3]),
    "fifo": lambda path, other, number: os.mkfifo(path),
    "remove": _remove,
    "rename": lambda path, other, number: path.rename(other),
    "remake": _remake,
    "chmod": lambda path, other, number: None if path.is_symlink() else path.chmod((0o600, 0o755, 0)[number % 3]),
    "touch": _touch,
    "xattr": _set_xattr,
    "copy": _copy,
    "link": lambda path, other, number: os.link(path, other, follow_symlinks=False),
}


def _exists_unfit(path: Path) -> bool:
    """Whether writing to a path would block, or write to something else."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_file())
