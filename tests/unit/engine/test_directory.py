"""The directory's own path: its form, what is allowed, and how it is opened."""

import os
from pathlib import Path

import pytest

from sandpoint.engine.directory import (
    check_allowed,
    create_directory,
    is_within,
    open_directory,
    parse_directory,
    remove_directories,
)
from sandpoint.errors import InvalidBackupConfigError


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("/work", "/work"),
        ("/work/", "/work"),
        ("//work///a//", "/work/a"),
        ("/", "/"),
        ("/a b/...", "/a b/..."),
        ("/caf\u00e9", "/caf\u00e9"),
        ("/-rf", "/-rf"),
    ],
)
def test_a_path_has_one_form(path: str, parsed: str) -> None:
    assert parse_directory(path) == parsed


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "is relative"),
        ("work", "did you mean .*/work"),
        ("./work", "is relative"),
        ("~/work", "is relative"),
        ("/work/..", "give the plain path, / if"),
        ("/work/../etc", "give the plain path, /etc if"),
        ("/./work", r"holds '\.' or"),
        ("/work/.", r"holds '\.' or"),
        ("/wo\0rk", "NUL"),
        ("/wo\udcffrk", "must be UTF-8"),
    ],
)
def test_a_path_that_is_none(path: str, why: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=why):
        parse_directory(path)


@pytest.mark.parametrize(
    ("path", "directory", "inside"),
    [
        ("/a", "/a", True),
        ("/a/b", "/a", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/a", "/", True),
        ("/a/b", "/a/", True),
    ],
)
def test_within(path: str, directory: str, inside: bool) -> None:
    assert is_within(path, directory) is inside


@pytest.mark.parametrize(
    "path",
    [
        "/", "/proc", "/proc/self", "/sys/fs", "/dev", "/dev/pts", "/dev/shm",
        "/bin", "/boot/x", "/etc", "/etc/cron.d", "/lib64", "/sbin", "/usr", "/usr/lib/x", "/usr/local", "/usr/src",
        "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/tmp", "/var",
    ],
)  # fmt: skip
def test_the_system_is_refused(path: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^dir: "):
        check_allowed(path, None, ())


@pytest.mark.parametrize(
    "path",
    ["/home/me", "/tmp/x", "/dev/shm/x", "/usr/local/x", "/usr/src/linux", "/var/lib/x", "/work", "/etcetera", "/root"],
)
def test_what_is_the_users_is_fine(path: str) -> None:
    check_allowed(path, None, ())


def test_a_system_directory_is_fine_where_it_is_named() -> None:
    check_allowed("/etc/nginx", ["/etc/nginx"], ())
    check_allowed("/srv", ["/srv"], ())


@pytest.mark.parametrize("path", ["/", "/proc/1", "/dev"])
def test_some_are_refused_even_if_named(path: str) -> None:
    with pytest.raises(InvalidBackupConfigError):
        check_allowed(path, [path, "/"], ())


@pytest.mark.parametrize("path", ["/b", "/ab", "/"])
def test_outside_the_allowed(path: str) -> None:
    with pytest.raises(InvalidBackupConfigError):
        check_allowed(path, ["/a"], ())


def test_nothing_is_allowed_by_an_empty_list() -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"outside the allowed directories \(none\)"):
        check_allowed("/a", [], ())


@pytest.mark.parametrize("path", ["/a/store", "/a", "/a/store/backups"])
def test_our_own_folders_are_kept_out(path: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match="a restore would destroy the backups"):
        check_allowed(path, ["/a"], ["/other", "/a/store"])
    check_allowed("/a/storekeeper", ["/a"], ["/a/store"])


def test_open(tmp_path: Path) -> None:
    fd = open_directory(str(tmp_path))
    try:
        assert os.fstat(fd).st_ino == tmp_path.stat().st_ino
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "does not exist"),
        ("missing/below", "does not exist"),
        ("file", "is not a directory"),
        ("file/below", "is not a directory"),
        ("fifo", "is not a directory"),
        ("link", "there is a symlink in .*link; use .*/real$"),
        ("link/below", "there is a symlink in"),
        ("dangling", "there is a symlink in"),
        ("loop", "there is a symlink in"),
        ("n" * 256, "longer than the system allows"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for link, target in (("link", "real"), ("dangling", "nowhere"), ("loop", "loop")):
        (tmp_path / link).symlink_to(target)
    with pytest.raises(InvalidBackupConfigError, match=why):
        open_directory(f"{tmp_path}/{name}")


def test_create_makes_parents_and_says_which(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert create_directory(f"{tmp_path}/a/b/c") == [f"{tmp_path}/a/b", f"{tmp_path}/a/b/c"]
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_create_of_what_is_there_makes_nothing(tmp_path: Path) -> None:
    assert create_directory(str(tmp_path)) == []


@pytest.mark.parametrize("name", ["file/a", "link/a", "link/a/b", "a/" + "n" * 256])
def test_a_failed_create_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(InvalidBackupConfigError):
        create_directory(f"{tmp_path}/{name}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "real"]


def test_remove_takes_back_only_what_is_empty(tmp_path: Path) -> None:
    made = create_directory(f"{tmp_path}/a/b/c")
    (tmp_path / "a" / "kept").touch()
    remove_directories(made)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]
