"""Unpacking tar streams that an engine made, and such as only an enemy makes."""

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from helpers.trees import assert_same, build_zoo, list_tree
from sandpoint.engine.ignore import Rules
from sandpoint.engine.walk import walk_tree
from sandpoint.sandboxes.docker.pack import can_be_sent, pack
from sandpoint.sandboxes.docker.unpack import HostileArchiveError, TornArchiveError, unpack


def never() -> None:
    """Let it go on."""


def member(name: str, type: bytes = tarfile.REGTYPE, content: bytes = b"", **attributes: object) -> bytes:
    """Return one entry of a stream."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = type, len(content), 0o755
    for key, value in attributes.items():
        setattr(info, key, value)
    padding = bytes(-len(content) % 512)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + padding


TOP = member("top/", tarfile.DIRTYPE)
END = bytes(1024)


def unpacked(into: Path, *members: bytes, end: bytes = END, boundaries: Sequence[bytes] = ()) -> Path:
    """Unpack a stream below a folder, and return where."""
    folder = into / "mirror"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        stream = b"".join(members) + end
        chunks = (stream[start : start + 700] for start in range(0, len(stream), 700))
        unpack(chunks, fd, b"top", boundaries=frozenset(boundaries), check=never)
    finally:
        os.close(fd)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "/etc/evil",
        "top/../../evil",
        "top/..",
        "top/./evil",
        "top//evil",
        "../evil",
        "other/evil",
        "evil",
        "topper/evil",
        "/top/evil",
    ],
)
def test_a_name_outside_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostileArchiveError, match="not in the directory"):
        unpacked(tmp_path, TOP, member(name, content=b"x"))
    assert not list(tmp_path.rglob("evil"))


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link = member("top/link", tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))
    with pytest.raises(OSError, match=r"symbolic links|Invalid cross-device|Not a directory"):
        unpacked(tmp_path, TOP, link, member("top/link/evil", content=b"x"))
    assert os.listdir(tmp_path / "outside") == []


def test_a_link_is_replaced_by_a_file_of_its_name_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("safe")
    link = member("top/link", tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))
    folder = unpacked(tmp_path, TOP, link, member("top/link", content=b"x"))
    assert (tmp_path / "outside").read_text() == "safe"
    assert (folder / "link").read_bytes() == b"x"
    assert not (folder / "link").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "top/../../etc/passwd", "other", "top", "top/self"])
def test_a_hard_link_to_what_lies_outside_or_is_no_file_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(HostileArchiveError):
        unpacked(tmp_path, TOP, member("top/self", tarfile.LNKTYPE, linkname=target))


def test_a_hard_link_through_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    link = member("top/link", tarfile.SYMTYPE, linkname=str(tmp_path))
    with pytest.raises(OSError, match=r"symbolic links|Invalid cross-device|Not a directory"):
        unpacked(tmp_path, TOP, link, member("top/got", tarfile.LNKTYPE, linkname="top/link/secret"))
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_hard_link_to_a_symlink_links_the_symlink(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    link = member("top/link", tarfile.SYMTYPE, linkname=str(tmp_path / "secret"))
    folder = unpacked(tmp_path, TOP, link, member("top/same", tarfile.LNKTYPE, linkname="top/link"))
    assert (folder / "same").is_symlink()


def test_a_directory_and_something_else_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HostileArchiveError, match="twice"):
        unpacked(tmp_path, TOP, member("top/a", tarfile.DIRTYPE), member("top/a", content=b"x"))


def test_a_size_beyond_the_filesystem_is_no_room_before_anything_is_written(tmp_path: Path) -> None:
    info = tarfile.TarInfo("top/huge")
    info.size = 1 << 60
    with pytest.raises(OSError, match="No space left"):
        unpacked(tmp_path, TOP, info.tobuf(tarfile.PAX_FORMAT))
    assert not (tmp_path / "mirror" / "huge").exists()


def test_what_is_said_about_one_entry_does_not_fill_the_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(HostileArchiveError, match="says"):
        unpacked(tmp_path, TOP, info.tobuf(tarfile.GNU_FORMAT))


@pytest.mark.parametrize("type", [tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_types_that_engines_do_not_send_are_refused(tmp_path: Path, type: bytes) -> None:
    with pytest.raises(HostileArchiveError, match="type"):
        unpacked(tmp_path, TOP, member("top/odd", type))


@pytest.mark.parametrize("mtime", ["1e400", "NaN", "1e30", "-1e30", "soon"])
def test_times_that_cannot_be_are_refused(tmp_path: Path, mtime: str) -> None:
    with pytest.raises(HostileArchiveError, match="time"):
        unpacked(tmp_path, TOP, member("top/f", pax_headers={"mtime": mtime}))


def test_devices_and_setuid_are_what_the_archive_says_in_a_folder_of_our_own(tmp_path: Path) -> None:
    folder = unpacked(
        tmp_path,
        TOP,
        member("top/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("top/tool", content=b"x", mode=0o4755, uid=7, gid=8),
    )
    found = list_tree(folder)
    assert (found[b"null"].kind, found[b"null"].rdev) == ("char", os.makedev(1, 3))
    assert (found[b"tool"].mode, found[b"tool"].uid, found[b"tool"].gid) == (0o4755, 7, 8)


def _torn() -> Iterator[tuple[str, list[bytes], bytes]]:
    yield "before the end", [TOP, member("top/a", content=b"x" * 3000)], b""
    yield "half an end", [TOP], bytes(512)
    yield "within a file", [TOP, member("top/a", content=b"x" * 3000)[:1500]], b""
    yield "within a header", [TOP, member("top/a", content=b"x")[:100]], b""
    yield "at once", [], b""


@pytest.mark.parametrize(("members", "end"), [case[1:] for case in _torn()], ids=[case[0] for case in _torn()])
def test_a_stream_that_ends_too_early_is_torn(tmp_path: Path, members: list[bytes], end: bytes) -> None:
    with pytest.raises(TornArchiveError):
        unpacked(tmp_path, *members, end=end)


def test_an_archive_without_its_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostileArchiveError, match="directory"):
        unpacked(tmp_path, member("top", content=b"x"))


def test_what_lies_on_other_filesystems_is_left_out(tmp_path: Path) -> None:
    folder = unpacked(
        tmp_path,
        TOP,
        member("top/volume", tarfile.DIRTYPE),
        member("top/volume/inside", content=b"x"),
        member("top/bound", content=b"host's"),
        member("top/own", content=b"x"),
        boundaries=[b"volume", b"bound"],
    )
    assert {path: item.size for path, item in list_tree(folder).items() if path} == {
        b"volume": 0,
        b"bound": 0,
        b"own": 1,
    }


def test_what_is_packed_is_unpacked_to_the_same(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    build_zoo(tree)
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = list(walk_tree(fd, Rules(), started_ns=0, stamps=False).entries.values())
        stream = b"".join(pack([each for each in entries if can_be_sent(each)], fd, b"top", never))
    finally:
        os.close(fd)
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        assert tar.getmembers()
    folder = unpacked(tmp_path, stream, end=b"")

    expected = {path: item for path, item in list_tree(tree).items() if item.kind != "socket"}
    found = list_tree(folder)
    for path in [path for path, item in expected.items() if item.mtime_ns < 0]:
        assert found.pop(path).mtime_ns == 0
        del expected[path]
    assert_same(expected, found)
