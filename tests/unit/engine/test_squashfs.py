"""Layers: odd names in and out, exact excludes, and what the tools complain about."""

import os
import stat
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from helpers.engine import Stopped, look, never, opened, stop, without_inodes
from sandpoint.engine import squashfs, tools
from sandpoint.models import Compression

ODD = (
    b"new\nline", b"\nfirst", b"last\n", b"#hash", b" blank", b"\ttab", b"trailing ", b"-dash", b"--help", b"-e",
    b"back\\slash", b"\\first", b"quote\"'", b"*", b"?", b"[a]", b"a*", b"\xff\xfe", b"caf\xc3\xa9", b"...", b"!bang",
    b"\r", b"\x0bvt", b"\x01", b"~", b"$(id)", b"a;b", b"n" * 255, b"plain", b"; x", b"!", b"^", b"(", b"a\tb",
)  # fmt: skip
EVERY_NAME = pytest.mark.parametrize("name", ODD, ids=repr)


def put(root: Path, path: bytes, content: bytes = b"x") -> None:
    full = os.path.join(os.fsencode(root), path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(content)


def build(root: Path, out: Path, *excluded: bytes, compression: Compression = "zstd") -> list[str]:
    scratch = out.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    with opened(root) as fd:
        made = squashfs.Build(fd, str(out), excluded=excluded, compression=compression, scratch=str(scratch))
        return made.finish(never)


def unpack(layer: Path, into: Path, *wanted: bytes) -> set[bytes]:
    scratch = into.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    squashfs.extract(str(layer), str(into), wanted or None, scratch=str(scratch), check=never)
    return {os.fsencode(path.relative_to(into)) for path in into.rglob("*")} if into.exists() else set()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd") / "tree"
    for name in ODD:
        put(root, name, name)
        put(root, b"d/" + name, b"below " + name)
        put(root, b"dirs/" + name[:200] + b"/inside", b"inside " + name)
    return root


@pytest.fixture(scope="module")
def layer(tree: Path) -> Path:
    out = tree.parent / "layer"
    assert build(tree, out) == []
    return out


def listed(root: Path) -> set[bytes]:
    return {os.fsencode(path.relative_to(root)) for path in root.rglob("*")}


def test_every_name_goes_in_and_comes_out(tree: Path, layer: Path, tmp_path: Path) -> None:
    assert unpack(layer, tmp_path / "out") == listed(tree)


@EVERY_NAME
def test_one_name_comes_out_alone(layer: Path, tmp_path: Path, name: bytes) -> None:
    assert unpack(layer, tmp_path / "out", name) == {name}
    assert (tmp_path / "out" / os.fsdecode(name)).read_bytes() == name


def test_names_below_directories_come_out_together(layer: Path, tmp_path: Path) -> None:
    wanted = {b"d/" + name for name in ODD}
    assert unpack(layer, tmp_path / "out", *sorted(wanted)) == wanted | {b"d"}


def test_directories_come_out_with_all_below(layer: Path, tmp_path: Path) -> None:
    wanted = {b"dirs/" + name[:200] for name in ODD}
    found = unpack(layer, tmp_path / "out", *sorted(wanted))
    assert found == wanted | {name + b"/inside" for name in wanted} | {b"dirs"}


@EVERY_NAME
def test_one_name_is_left_out_and_no_other(tmp_path: Path, name: bytes) -> None:
    root = tmp_path / "tree"
    names = {name, b"other", b"d/" + name, name[:200] + b".d/" + name}
    for path in names:
        put(root, path)
    assert build(root, tmp_path / "layer", name) == []
    assert unpack(tmp_path / "layer", tmp_path / "out") == listed(root) - {name}


def test_all_odd_names_are_left_out_at_once(tree: Path, tmp_path: Path) -> None:
    build(tree, tmp_path / "layer", *ODD, *(b"dirs/" + name[:200] for name in ODD))
    found = unpack(tmp_path / "layer", tmp_path / "out")
    assert found == {b"d", b"dirs", *(b"d/" + name for name in ODD)}


def test_a_path_that_is_not_there_is_no_error(layer: Path, tree: Path, tmp_path: Path) -> None:
    assert unpack(layer, tmp_path / "out", b"missing", b"#missing", b"plain") == {b"plain"}
    assert build(tree, tmp_path / "again", b"missing", b"#missing") == []


def test_nothing_wanted_extracts_nothing(layer: Path, tmp_path: Path) -> None:
    squashfs.extract(str(layer), str(tmp_path / "out"), [], scratch=str(tmp_path), check=never)
    assert not (tmp_path / "out").exists()


def test_many_odd_names_are_taken_in_batches(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    names = [b"#" + bytes([97 + n % 26]) * 200 + b"%d" % n for n in range(900)]
    for name in names:
        put(root, name)
    put(root, b"plain")
    build(root, tmp_path / "layer")
    assert unpack(tmp_path / "layer", tmp_path / "out", *names) == set(names)
    with pytest.raises(tools.ToolFailedError, match=r"900 excluded names .*exclude their directory instead"):
        build(root, tmp_path / "more", *names)


def test_many_plain_names_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    names = [b"d/" + b"x" * 100 + b"%d" % n for n in range(3000)]
    for name in (*names, b"d/kept"):
        put(root, name)
    build(root, tmp_path / "layer", *names)
    assert unpack(tmp_path / "layer", tmp_path / "out") == {b"d", b"d/kept"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make and extract these")
def test_every_kind_of_entry_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    put(root, b"f", b"content")
    (root / "f").chmod(0o4755)
    (root / "empty").mkdir(mode=0o700)
    (root / "l").symlink_to("dangling")
    os.link(root / "f", root / "hard")
    os.mkfifo(root / "fifo")
    os.mknod(root / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown(root / "f", 12, 34)
    (root / "f").chmod(0o4755)
    os.setxattr(root / "f", "user.x", b"\0y")
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    build(root, tmp_path / "layer")
    unpack(tmp_path / "layer", tmp_path / "out")
    found, expected = without_inodes(look(tmp_path / "out")), without_inodes(look(root))
    assert {name: value for name, value in found.items() if name != "."} == {
        name: value for name, value in expected.items() if name != "."
    }
    assert os.getxattr(tmp_path / "out" / "f", "user.x") == b"\0y"


@pytest.mark.parametrize("compression", get_args(Compression))
def test_each_compression_is_the_one_asked_for(tmp_path: Path, compression: Compression) -> None:
    put(tmp_path / "tree", b"f", b"x" * 10_000)
    build(tmp_path / "tree", tmp_path / "layer", compression=compression)
    said = subprocess.run(["unsquashfs", "-s", tmp_path / "layer"], capture_output=True, text=True, check=True).stdout
    assert f"Compression {compression}" in said


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_level_is_given_where_there_are_levels(compression: Compression) -> None:
    options = squashfs.build_options(compression)
    assert compression == "lz4" or "-Xcompression-level" in options


def test_a_name_that_vanishes_is_complained_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mksquashfs").write_text(
        "#!/bin/sh\necho 'Failed to read file ./a b, creating empty file' >&2\n"
        "echo 'Unrecognised xattr prefix system.posix_acl_access' >&2\necho 'something else' >&2\n"
    )
    (tmp_path / "mksquashfs").chmod(0o755)
    monkeypatch.setitem(tools.ENVIRONMENT, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "tree").mkdir()
    assert build(tmp_path / "tree", tmp_path / "layer") == ["Failed to read file ./a b, creating empty file"]


def test_a_failure_carries_what_the_tool_said(tmp_path: Path) -> None:
    for name in ("tree", "layer"):
        (tmp_path / name).mkdir()
    with pytest.raises(tools.ToolFailedError, match=r"^mksquashfs failed with status 1: .*[Dd]estination"):
        build(tmp_path / "tree", tmp_path / "layer")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"hsqs" + bytes(200)])
def test_what_is_no_layer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "layer").write_bytes(content)
    with pytest.raises(tools.ToolFailedError, match=r"^unsquashfs "):
        unpack(tmp_path / "layer", tmp_path / "out")


def test_a_truncated_layer_is_refused(layer: Path, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(layer.read_bytes()[:-2000])
    with pytest.raises(tools.ToolFailedError):
        unpack(tmp_path / "layer", tmp_path / "out")


def test_a_stop_ends_the_tool(tree: Path, tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"big{n}").write_bytes(os.urandom(2_000_000))
    with opened(tmp_path) as fd:
        made = squashfs.Build(
            fd, str(tmp_path / "layer"), excluded=[b"layer"], compression="zstd", scratch=str(tmp_path)
        )
        with pytest.raises(Stopped):
            made.finish(stop)
    assert subprocess.run(["pgrep", "-f", str(tmp_path / "layer")], check=False, capture_output=True).stdout == b""


def test_a_missing_tool_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(tools.ToolMissingError, match="apt-get install squashfs-tools"):
        build(tmp_path, tmp_path / "layer")
