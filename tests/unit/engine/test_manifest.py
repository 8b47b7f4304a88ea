"""The manifest: its file format, what it refuses, and what it derives."""

import os
import stat
import struct
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.engine import HEADER, entry, folder, manifest
from sandpoint.engine.manifest import (
    MAGIC,
    Entry,
    Header,
    Manifest,
    display,
    has_acl,
    make_manifest,
    parent,
    read_header,
)
from sandpoint.errors import BackupIntegrityError

NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & set(b"/\0") and name not in {b".", b".."})
NUMBERS = st.integers(0, 2**32 - 2)
TIMES = st.integers(-(2**62), 2**62)
XATTRS = st.none() | st.dictionaries(st.sampled_from([b"user.a", b"user.\xff"]), st.binary(max_size=8), min_size=1)
KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])


@st.composite
def entries(draw: st.DrawFn) -> dict[bytes, Entry]:
    """Entries of a tree that could be: directories first, links between files of one kind."""
    tree = {b"": folder(b"")}
    directories = [b""]
    for name in draw(st.lists(NAMES, max_size=8)):
        holder = draw(st.sampled_from(directories))
        path = holder + b"/" + name if holder else name
        if path in tree:
            continue
        values: dict[str, Any] = {"uid": draw(NUMBERS), "mtime_ns": draw(TIMES), "xattrs": draw(XATTRS)}
        if draw(st.booleans()):
            tree[path] = folder(path, **values)
            directories.append(path)
        else:
            mode = draw(KINDS) | draw(st.integers(0, 0o7777))
            tree[path] = entry(path, mode, target=draw(st.binary(max_size=5)), **values)
    return tree


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests, of any header."""
    paths = st.lists(NAMES, max_size=3).map(tuple)
    header = Header(
        started_ns=draw(TIMES),
        stamps=draw(st.booleans()),
        excluded=draw(paths),
        mounts=draw(paths),
        unstable=draw(paths),
    )
    return make_manifest(header, draw(entries()).values())


SMALL = manifest(
    entry(b"a\xff\n", size=3, xattrs={b"user.x": b"\0\xff"}),
    folder(b"d"),
    entry(b"d/b", hardlink=b"a\xff\n", size=3),
    entry(b"link", stat.S_IFLNK | 0o777, target=b"/etc/passwd"),
).content


def pack(*listed: Entry, header: object = HEADER, magic: bytes = MAGIC) -> bytes:
    """A manifest file of any entries in any order."""
    head = msgspec.msgpack.encode(header)
    body = msgspec.msgpack.encode(list(listed))
    return zstandard.compress(magic + struct.pack(">I", len(head)) + head + body)


@given(manifests())
@settings(deadline=None, max_examples=150)
def test_what_is_written_is_read(written: Manifest) -> None:
    read = Manifest.from_bytes(written.content)
    assert (read.header, read.entries) == (written.header, written.entries)
    assert list(read.entries) == list(written.entries)
    assert read_header(written.content) == written.header


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_altered_bytes_are_found_or_change_nothing_that_matters(data: st.DataObject) -> None:
    content = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    _read_or_refuse(bytes(content))


@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=4))
@settings(deadline=None, max_examples=200)
def test_a_truncated_manifest_is_found(length: int, tail: bytes) -> None:
    if SMALL.startswith(SMALL[:length] + tail):
        tail = b""
    with pytest.raises(BackupIntegrityError):
        Manifest.from_bytes(SMALL[:length] + tail)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_refused_with_the_right_error(content: bytes) -> None:
    with pytest.raises(BackupIntegrityError):
        Manifest.from_bytes(content)
    with pytest.raises(BackupIntegrityError):
        read_header(content)


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_altered_bytes_below_the_compression_are_found_or_harmless(data: st.DataObject) -> None:
    content = bytearray(zstandard.decompress(SMALL))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _read_or_refuse(zstandard.compress(bytes(content[: data.draw(st.integers(0, len(content)))])))


def _read_or_refuse(content: bytes) -> None:
    try:
        read = Manifest.from_bytes(content)
    except BackupIntegrityError:
        return
    for path, each in read.entries.items():
        assert path == each.path
        assert b"\0" not in path
        assert not {b"", b".", b".."} & set(path.split(b"/")) or not path
        assert not path or read.entries[parent(path)].is_dir


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        zstandard.compress(b""),
        zstandard.compress(MAGIC),
        zstandard.compress(MAGIC + b"\xff\xff\xff\xff"),
        pack(folder(b""), magic=b"SNDPMAN2"),
        pack(folder(b""), header={"started_ns": "x"}),
        pack(folder(b""), header=[1, 2]),
        zstandard.compress(zstandard.decompress(SMALL) + b"more"),
        zstandard.ZstdCompressor(write_content_size=False).compress(zstandard.decompress(SMALL)),
    ],
)
def test_what_is_no_manifest(content: bytes) -> None:
    with pytest.raises(BackupIntegrityError, match="damaged"):
        Manifest.from_bytes(content)


@pytest.mark.parametrize(
    "path",
    [
        b"..", b".", b"/", b"/etc", b"/etc/passwd", b"../x", b"d/..", b"d/../..", b"d/.", b"d//x", b"d/", b"//",
        b"a\0b",         b"d/a\0", b"./d", b"d/./x", b"d/../../../etc/shadow",
    ],
)  # fmt: skip
def test_a_hostile_path_is_refused(path: bytes) -> None:
    with pytest.raises(BackupIntegrityError):
        Manifest.from_bytes(pack(folder(b""), folder(b"d"), entry(path)))
    with pytest.raises(BackupIntegrityError):
        Manifest.from_bytes(pack(folder(b""), folder(b"d"), folder(path), entry(path + b"/x")))


@pytest.mark.parametrize(
    "listed",
    [
        [],
        [entry(b"a")],
        [entry(b"")],
        [folder(b""), folder(b"")],
        [folder(b""), entry(b"a"), entry(b"a")],
        [folder(b""), entry(b"missing/x")],
        [folder(b""), entry(b"d/x"), folder(b"d")],
        [folder(b""), entry(b"file"), entry(b"file/x")],
        [folder(b""), entry(b"l", stat.S_IFLNK, target=b"/etc"), entry(b"l/x")],
        [folder(b""), entry(b"a", hardlink=b"missing")],
        [folder(b""), entry(b"a", hardlink=b"a")],
        [folder(b""), entry(b"a"), folder(b"b", hardlink=b"a")],
        [folder(b""), folder(b"d"), folder(b"e", hardlink=b"d")],
        [folder(b""), entry(b"a"), entry(b"b", hardlink=b"a"), entry(b"c", hardlink=b"b")],
        [folder(b""), entry(b"a"), entry(b"b", stat.S_IFLNK, hardlink=b"a")],
    ],
)
def test_an_impossible_tree_is_refused(listed: list[Entry]) -> None:
    with pytest.raises(BackupIntegrityError, match="the manifest is damaged"):
        Manifest.from_bytes(pack(*listed))


def test_an_unpacked_size_beyond_the_limit_is_not_unpacked() -> None:
    frame = bytearray(zstandard.compress(bytes(300)))
    header = zstandard.get_frame_parameters(bytes(frame))
    assert header.content_size == 300
    huge = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 62) + bytes(frame[7:])
    with pytest.raises(BackupIntegrityError, match="its size is said to be"):
        Manifest.from_bytes(huge)


def test_order_is_by_path_with_directories_before_what_they_hold() -> None:
    made = make_manifest(HEADER, [entry(b"d/a"), entry(b"d.x"), folder(b"d"), folder(b"")])
    assert list(made.entries) == [b"", b"d", b"d.x", b"d/a"]
    assert Manifest.from_bytes(made.content).entries == made.entries


def test_children_by_directory() -> None:
    made = manifest(folder(b"d"), folder(b"d/e"), entry(b"d/e/x"), entry(b"top"))
    assert made.children == {b"": [b"d", b"top"], b"d": [b"d/e"], b"d/e": [b"d/e/x"]}


def test_groups_of_hard_links() -> None:
    made = manifest(entry(b"a"), entry(b"b", hardlink=b"a"), entry(b"c", hardlink=b"a"), entry(b"d"))
    assert made.hardlink_groups == {b"a": [b"a", b"b", b"c"]}


def test_stamps_prove_nothing_where_the_filesystem_does_not_keep_them() -> None:
    assert make_manifest(Header(5_000_000_000, stamps=True), []).settled_before_ns == 4_980_000_000
    assert make_manifest(Header(5_000_000_000, stamps=False), []).settled_before_ns == 0


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"src/app.py", "src/app.py"),
        (b"caf\xc3\xa9", "caf\u00e9"),
        (b"\xff", "\\xff"),
        (b"a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        (b"\xe2\x80\xae", "\\u202e"),
        (b"a b", "a b"),
    ],
)
def test_a_path_for_people(path: bytes, shown: str) -> None:
    assert display(path) == shown


@pytest.mark.parametrize(("path", "above"), [(b"a/b/c", b"a/b"), (b"a", b""), (b"", b"")])
def test_parent(path: bytes, above: bytes) -> None:
    assert parent(path) == above


def test_acls_among_xattrs() -> None:
    assert has_acl({b"system.posix_acl_default": b""})
    assert not has_acl({b"user.posix_acl_x": b""})
    assert not has_acl(None)


def test_kinds() -> None:
    assert (folder(b"").is_dir, entry(b"").is_file, entry(b"", stat.S_IFLNK).is_symlink) == (True, True, True)
    assert entry(b"", os.stat("/dev/null").st_mode).kind == stat.S_IFCHR


def test_what_a_delta_brings_is_in_its_manifest_though_it_looks_as_before() -> None:
    unstamped = entry(b"file", size=3, ctime_ns=0, ino=0)
    older = manifest(entry(b"other"), unstamped)
    delta = manifest(entry(b"other"), entry(b"file", size=3, ctime_ns=0, ino=0)).since(older, {b"file"})

    assert delta.header.kept == ()
    assert Manifest.from_chain([older.content, delta.content]).layers == {b"file": 1}
