"""Trees for tests: an independent listing of one, and a builder of a zoo with every kind of thing.

Nothing here is shared with the engine, so that what it gets wrong is not got wrong alike.
"""

import errno
import hashlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"
SECOND = 1_000_000_000
LONG_NAME = b"n" * 255

NAMES = (
    b"plain",
    b"with space",
    b" leading blank",
    b"trailing blank ",
    b"\ttab first",
    b"#hash",
    b"-dash",
    b"--no-progress",
    b"quote\"s and 's",
    b"*[x]?",
    b"back\\slash",
    b"\\leading backslash",
    b"new\nline",
    b"\nnewline first",
    b"newline last\n",
    b"bytes \xff\xfe\x80",
    b"\xff",
    b"ctrl\x01\x1b\x7f",
    b"cr\r",
    b"!bang",
    b"...",
    b".hidden",
    b"caf\xc3\xa9",
    b"~",
    b"$(touch x)",
    b"a;b|c&d",
    LONG_NAME,
)


@dataclass(frozen=True)
class Item:
    """One entry of a tree; `links` are all paths of the tree with its inode."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    rdev: int
    sha256: str
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[bytes, ...]


Listing = dict[bytes, Item]

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "dir"),
    (stat.S_ISREG, "file"),
    (stat.S_ISLNK, "symlink"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "char"),
    (stat.S_ISBLK, "block"),
)


def list_tree(root: Path, *, skip: Iterable[str | bytes] = ()) -> Listing:
    """Return every entry by its path relative to the root, which itself is `b""`; `skip` leaves paths out."""
    left_out = {os.fsencode(path) for path in skip}
    found: dict[bytes, tuple[Item, tuple[int, int]]] = {}
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _list(fd, b"", left_out, found)
    finally:
        os.close(fd)
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, (item, inode) in found.items():
        if item.kind != "dir":
            groups.setdefault(inode, []).append(path)
    return {
        path: replace(item, links=tuple(sorted(groups.get(inode, ()))) if item.kind != "dir" else ())
        for path, (item, inode) in found.items()
    }


def _list(fd: int, path: bytes, skip: set[bytes], found: dict[bytes, tuple[Item, tuple[int, int]]]) -> None:
    found[path] = _item(fd, b".", os.fstat(fd))
    for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
        below = path + b"/" + name if path else name
        if below in skip:
            continue
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                _list(child, below, skip, found)
            finally:
                os.close(child)
        else:
            found[below] = _item(fd, name, status)


def _item(fd: int, name: bytes, status: os.stat_result) -> tuple[Item, tuple[int, int]]:
    kind = next(kind for holds, kind in _KINDS if holds(status.st_mode))
    where = b"/proc/self/fd/%d/%s" % (fd, name)
    item = Item(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == "file" else 0,
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(name, dir_fd=fd) if kind == "symlink" else b"",
        rdev=status.st_rdev if kind in {"char", "block"} else 0,
        sha256=_digest(fd, name) if kind == "file" else "",
        xattrs=_xattrs(where),
        links=(),
    )
    return item, (status.st_dev, status.st_ino)


def _xattrs(where: bytes) -> tuple[tuple[str, bytes], ...]:
    found = []
    try:
        for name in sorted(os.listxattr(where, follow_symlinks=False)):
            try:
                found.append((name, os.getxattr(where, name, follow_symlinks=False)))
            except OSError as error:
                if error.errno != errno.ENODATA:  # an overlay lists ACLs that were taken away
                    raise
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # a layer without any says so
            raise
    return tuple(found)


def _digest(fd: int, name: bytes) -> str:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
    with os.fdopen(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def differences(expected: Listing, found: Listing) -> list[str]:
    """Return a line for each path that differs, saying how."""
    lines = [f"missing: {path!r}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"extra: {path!r}" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        before, after = expected[path], found[path]
        lines += [
            f"{path!r}: {name} is {getattr(after, name)!r}, not {getattr(before, name)!r}"
            for name in Item.__dataclass_fields__
            if getattr(before, name) != getattr(after, name)
        ]
    return lines


def assert_same(expected: Listing, found: Listing) -> None:
    """Fail with the differences of two listings."""
    lines = differences(expected, found)
    assert not lines, "the trees differ:\n" + "\n".join(lines[:40])


def in_whole_seconds(listing: Listing) -> Listing:
    """Return a listing as a mounted squashfs shows it: times in whole seconds, counted in 32 bits from 1970 on."""

    def coarse(item: Item) -> Item:
        return replace(item, mtime_ns=item.mtime_ns // SECOND % 2**32 * SECOND)

    return {path: coarse(item) for path, item in listing.items()}


def as_fuse_shows(listing: Listing, *, acls: set[bytes]) -> Listing:
    """Return a listing less what squashfuse and fuse-overlayfs lose or change: ACLs and most xattrs.

    Squashfuse (0.1.105) shows `security.*` as `trusted.*`, the other way round, and no empty ones. Group bits of what
    had an ACL (`acls`) stand for its mask.
    """

    def plain(path: bytes, item: Item) -> Item:
        kept = tuple((name, value) for name, value in item.xattrs if name.startswith("user.") and value)
        return replace(item, xattrs=kept, mode=item.mode & ~0o070 if path in acls else item.mode)

    return {path: plain(path, item) for path, item in listing.items()}


def with_acls(listing: Listing) -> set[bytes]:
    """Return the paths that have ACLs."""
    return {path for path, item in listing.items() if any("posix_acl" in name for name, _ in item.xattrs)}


def inodes(root: Path) -> dict[str, int]:
    """Return the inode of each path below a directory that is no directory itself."""
    return {
        os.path.relpath(os.path.join(folder, name), root): os.lstat(os.path.join(folder, name)).st_ino
        for folder, _, names in os.walk(root)
        for name in names
    }


def make_acl(*, user: int, permissions: int = 0o6) -> bytes:
    """Return an ACL with a named user, as the kernel takes it."""
    undefined = 0xFFFFFFFF
    entries = (
        (0x01, 0o7, undefined),  # owner
        (0x02, permissions, user),
        (0x04, 0o4, undefined),  # group
        (0x10, 0o7, undefined),  # mask
        (0x20, 0o0, undefined),  # others
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def write(path: Path, content: bytes | str, *, mode: int = 0o644, mtime_ns: int | None = None) -> Path:
    """Write a file with its folders; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def at(root: Path, name: bytes) -> Path:
    """Return a path below a root, of any bytes."""
    return root / os.fsdecode(name)


def build_small(root: Path) -> None:
    """Build a few files, folders and links, such as any project has."""
    root.mkdir(parents=True, exist_ok=True)
    write(root / "README.md", "# read me\n")
    write(root / "src" / "app.py", "print('hello')\n", mtime_ns=1_600_000_000_123_456_789)
    write(root / "src" / "lib" / "util.py", "x = 1\n" * 100)
    write(root / "run.sh", "#!/bin/sh\n", mode=0o755)
    (root / "empty").mkdir()
    (root / "link").symlink_to("src/app.py")


def build_zoo(root: Path) -> None:
    """Build a tree with every kind of thing; as root only."""
    root.mkdir(parents=True, exist_ok=True)
    _build_names(root)
    _build_nesting(root / "nest")
    _build_links(root)
    _build_nodes(root / "nodes")
    _build_modes(root / "modes")
    _build_xattrs(root / "xattrs")
    _build_acls(root / "acls")
    (root / "empty").mkdir()
    (root / "empty" / "inner").mkdir()
    _build_contents(root / "contents")
    _build_times(root / "times")
    os.setxattr(root, "user.root", b"of the directory itself")
    os.chown(root, 12, 34)
    root.chmod(0o2751)
    os.utime(root, ns=(1, 1_234_567_890_987_654_321))


def _build_names(root: Path) -> None:
    for folder in ("names", "dirs"):
        (root / folder).mkdir()
    for index, name in enumerate(NAMES):
        at(root / "names", name).write_bytes(b"content %d\n" % index)
        at(root / "dirs", name).mkdir()
        at(root / "dirs", name + b"/" if len(name) < 255 else name).joinpath("inside").write_bytes(name)
        at(root, b"top" + name[:200]).write_bytes(b"at the top\n")
        if name not in {b"plain"} and len(name) < 255:
            at(root, name).write_bytes(b"odd at the top\n")


def _build_nesting(root: Path) -> None:
    deepest = root.joinpath(*[f"level{n}" for n in range(60)])
    deepest.mkdir(parents=True)
    (deepest / "bottom").write_text("deep\n")


def _build_links(root: Path) -> None:
    links = root / "links"
    links.mkdir()
    for name, target in (
        ("dangling", "nowhere"),
        ("absolute", "/etc/hostname"),
        ("to-dir", "../dirs"),
        ("to-self", "to-self"),
        ("up", "../../../../.."),
        ("long", "x" * 3000),
    ):
        (links / name).symlink_to(target)
    os.symlink(b"bytes \xff\n", os.fsencode(links / "bytes"))
    os.lchown(links / "dangling", 7, 8)
    os.utime(links / "dangling", ns=(1, 1_500_000_000_000_000_001), follow_symlinks=False)
    (root / "hard").mkdir()
    (root / "hard" / "a").write_text("one inode, four names\n")
    (root / "hard" / "sub").mkdir()
    os.link(root / "hard" / "a", root / "hard" / "sub" / "b")
    os.link(root / "hard" / "a", root / "links" / "c")
    os.link(root / "hard" / "a", at(root, b"#hard\nlink"))
    (root / "hard" / "empty").write_bytes(b"")
    os.link(root / "hard" / "empty", root / "hard" / "empty too")
    os.mkfifo(root / "hard" / "fifo")
    os.link(root / "hard" / "fifo", root / "hard" / "fifo too")
    (root / "hard" / "symlink").symlink_to("a")
    os.link(root / "hard" / "symlink", root / "hard" / "symlink too", follow_symlinks=False)


def _build_nodes(root: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.open(root, os.O_RDONLY)
        try:
            unix.bind(f"/proc/self/fd/{here}/socket")  # the address of a socket has room for 107 bytes
        finally:
            os.close(here)
    os.mknod(root / "char", stat.S_IFCHR | 0o620, os.makedev(1, 7))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(7, 200))


def _build_modes(root: Path) -> None:
    root.mkdir()
    for mode in (0o000, 0o200, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711):
        (root / f"file{mode:o}").write_text(f"{mode:o}\n")
        (root / f"dir{mode:o}").mkdir()
        (root / f"dir{mode:o}" / "inside").write_text("inside\n")
    for number, mode in enumerate((0o000, 0o200, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711)):
        for name in (f"file{mode:o}", f"dir{mode:o}"):
            os.chown(root / name, 1000 + number, 2000 + number)
            (root / name).chmod(mode)


def _build_xattrs(root: Path) -> None:
    root.mkdir()
    for name in ("user.note", "security.note", "trusted.note"):
        (root / name).write_text("x\n")
        os.setxattr(root / name, name, b"value \x00\xff of " + name.encode())
        (root / f"dir.{name}").mkdir()
        os.setxattr(root / f"dir.{name}", name, b"")
    (root / "many").write_text("x\n")
    for number in range(20):
        os.setxattr(root / "many", f"user.number{number}", b"%d" % number * 20)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep
    (root / "capable").write_text("x\n")
    os.setxattr(root / "capable", "security.capability", capability)
    (root / "symlink").symlink_to("nowhere")
    os.setxattr(root / "symlink", "trusted.note", b"of a link", follow_symlinks=False)


def _build_acls(root: Path) -> None:
    root.mkdir()
    (root / "file").write_text("x\n")
    os.setxattr(root / "file", ACL_ACCESS, make_acl(user=4242))
    (root / "inheriting").mkdir()
    os.setxattr(root / "inheriting", ACL_DEFAULT, make_acl(user=4243, permissions=0o7))
    (root / "inheriting" / "heir").write_text("x\n")
    (root / "inheriting" / "heirs").mkdir()
    (root / "both").mkdir()
    os.setxattr(root / "both", ACL_ACCESS, make_acl(user=4244))
    os.setxattr(root / "both", ACL_DEFAULT, make_acl(user=4245))
    (root / "both" / "plain").write_text("x\n")
    os.removexattr(root / "both" / "plain", ACL_ACCESS)


def _build_contents(root: Path) -> None:
    root.mkdir()
    (root / "empty").write_bytes(b"")
    (root / "one").write_bytes(b"1")
    (root / "block").write_bytes(bytes(131_072))
    (root / "block and one").write_bytes(bytes(range(256)) * 512 + b"1")
    (root / "random").write_bytes(hashlib.shake_256(b"zoo").digest(400_000))
    with open(root / "sparse", "wb") as sparse:
        sparse.seek(3_000_000)
        sparse.write(b"end of a hole")
        sparse.truncate(5_000_000)


def _build_times(root: Path) -> None:
    root.mkdir()
    for name, mtime_ns in (
        ("nanoseconds", 1_700_000_000_000_000_001),
        ("before 1970", -1_000_000_000_000_000_000 + 5),
        ("just before 1970", -1),
        ("1970", 0),
        ("far future", 7_000_000_000 * SECOND + 999_999_999),
    ):
        (root / name).write_text("x\n")
        os.utime(root / name, ns=(0, mtime_ns))
        (root / f"dir {name}").mkdir()
        os.utime(root / f"dir {name}", ns=(0, mtime_ns))
