"""Who still uses a directory: this process, its children and others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_sandpoint.holders import (
    Holder,
    describe,
    holders_of_directory,
    holders_of_mount,
    list_processes,
    written_from_before,
)
from sandpoint.engine import linux

WAITS = """
import os, sys
how, path = sys.argv[1:]
kept = [open(path, how)] if how in ("r", "w", "a") else os.chdir(path)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def user_of(path: Path, how: str) -> Iterator[int]:
    """Run a process that uses a path, and yield its id: with a mode of open(), or `cwd`."""
    argv = [sys.executable, "-c", WAITS, how, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("file")
    (tmp_path / "data beside").mkdir()
    (tmp_path / "data beside" / "file").write_text("file")
    return folder


@pytest.mark.parametrize("how", ["r", "w"])
def test_a_process_with_a_file_open_is_found(directory: Path, how: str) -> None:
    before = list_processes()
    with user_of(directory / "file", how) as pid:
        [holder] = holders_of_directory(str(directory), list_processes() - before)
        assert (holder.pid, holder.uses) == (pid, f"has {directory}/file open")
        assert str(holder) == f"process {pid} ({holder.name}) has {directory}/file open"
        assert holder.name.startswith("python")
    assert not holders_of_directory(str(directory), [pid])


@pytest.mark.parametrize("where", [".", "sub"])
def test_a_process_that_works_there_is_found(directory: Path, where: str) -> None:
    with user_of(directory / where, "cwd") as pid:
        [holder] = holders_of_directory(str(directory), [pid])
        assert holder.uses == f"works in {directory / where}"


def test_a_process_beside_it_is_not_found(directory: Path) -> None:
    with user_of(directory.parent / "data beside" / "file", "r") as pid, user_of(directory.parent, "cwd") as other:
        assert not holders_of_directory(str(directory), [pid, other])


def test_processes_of_a_mount_are_told_by_its_number(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        number = linux.mount_id(fd)
        assert os.getpid() in {holder.pid for holder in holders_of_mount(number)}
        assert not holders_of_mount(2**31 - 1)
    finally:
        os.close(fd)


def test_files_open_for_writing_are_found_in_this_process_and_its_children(directory: Path) -> None:
    assert not written_from_before(str(directory))
    with (directory / "file").open():
        assert not written_from_before(str(directory))
    with (directory / "file").open("a"), user_of(directory / "sub" / "of a child", "w") as pid:
        found = {(holder.pid, holder.uses) for holder in written_from_before(str(directory))}
    assert found == {
        (os.getpid(), f"has {directory}/file open for writing"),
        (pid, f"has {directory}/sub/of a child open for writing"),
    }
    reach = os.open(directory / "file", os.O_PATH)
    try:
        assert not written_from_before(str(directory))
    finally:
        os.close(reach)


def test_descriptions_are_short() -> None:
    holders = [Holder(number, "program", "works in /x") for number in (2**30 + 1, 2**30 + 2, 2**30 + 3, 2**30 + 4)]
    assert describe([]) == ""
    assert describe(holders[:1]) == "process 1073741825 (program) works in /x"
    assert describe(holders).count("works in") == 3
    assert describe(holders).endswith(" and 1 more")
    assert str(Holder(os.getpid(), "python", "works in /x")) == f"this process ({os.getpid()}) works in /x"


def test_a_process_that_has_ended_has_no_name_and_uses_nothing(directory: Path) -> None:
    with user_of(directory, "cwd") as pid:
        assert pid in list_processes()
    assert pid not in list_processes()
    assert holders_of_directory(str(directory), [pid]) == []
