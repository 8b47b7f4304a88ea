"""The mount table, and what can be renamed where."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from helpers.engine import opened
from sandpoint.engine import linux, mounts
from sandpoint.engine.mounts import Mount

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def mount_of(point: bytes, number: int = 1) -> Mount:
    return Mount(id=number, device="8:1", point=point, fstype="ext4", source="/dev/x")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs on a folder whose name the table has to escape."""
    point = tmp_path / "a b\tc\\040\nd - e"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "odd name", str(point)], check=True)
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_the_table_is_that_of_the_kernel() -> None:
    table = mounts.list_mounts()
    assert any(mount.point == b"/" for mount in table)
    assert any(mount.fstype == "proc" and mount.point == b"/proc" for mount in table)


@as_root
def test_odd_names_in_the_table(mounted: Path) -> None:
    found = mounts.mounts_at(os.fsencode(mounted), mounts.list_mounts())
    assert [(mount.fstype, mount.source) for mount in found] == [("tmpfs", "odd name")]


def _fstype(fd: int, table: Sequence[mounts.Mount]) -> str:
    mount = mounts.mount_of(fd, table)
    assert mount is not None
    return mount.fstype


@as_root
def test_a_descriptor_tells_its_filesystem(mounted: Path) -> None:
    table = mounts.list_mounts()
    with opened(mounted) as inside, opened(Path("/proc")) as proc:
        assert _fstype(inside, table) == "tmpfs"
        assert _fstype(proc, table) == "proc"
        assert mounts.mount_of(inside, []) is None


@as_root
def test_a_rename_works_within_one_mount_only(mounted: Path, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    with opened(mounted) as inside, opened(tmp_path) as outside, opened(tmp_path / "beside") as beside:
        assert mounts.same_mount(outside, beside)
        assert not mounts.same_mount(inside, outside)


@as_root
def test_a_bind_mount_is_another_mount_though_the_same_filesystem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    linux.bind(os.fsencode(tmp_path / "a"), os.fsencode(tmp_path / "b"))
    try:
        with opened(tmp_path / "a") as first, opened(tmp_path / "b") as second:
            assert os.fstat(first).st_dev == os.fstat(second).st_dev
            assert not mounts.same_mount(first, second)
    finally:
        linux.detach(os.fsencode(tmp_path / "b"))


def test_below_is_strictly_below() -> None:
    table = [mount_of(point) for point in (b"/", b"/a", b"/a/b", b"/ab", b"/a/b/c")]
    assert [mount.point for mount in mounts.mounts_below(b"/a", table)] == [b"/a/b", b"/a/b/c"]
    assert [mount.point for mount in mounts.mounts_below(b"/", table)] == [b"/a", b"/a/b", b"/ab", b"/a/b/c"]


def test_the_topmost_mount_comes_last() -> None:
    table = [mount_of(b"/a", 1), mount_of(b"/b", 2), mount_of(b"/a", 3)]
    assert [mount.id for mount in mounts.mounts_at(b"/a", table)] == [1, 3]


def test_memory_and_network_filesystems_prove_nothing() -> None:
    assert not mounts.STAMPED_FILESYSTEMS & {"tmpfs", "nfs", "nfs4", "fuse", "overlay", "9p", "cifs", ""}
