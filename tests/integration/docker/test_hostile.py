"""An attacker who is root in the container, against an engine that is root on its host: nothing of the host is reached.

He swaps what is in the directory as fast as he can while it is captured and restored.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from helpers import intruder as attacks
from helpers.docker import Engine, Target
from helpers.intruder import Attack, intruder
from helpers.kinds import Sandboxed
from helpers.trees import assert_same, list_tree, write
from sandpoint.engine.contents import open_regular
from sandpoint.engine.removal import remove_tree
from sandpoint.errors import SandpointError
from sandpoint.models import Backup

Start = Callable[..., Target]

SECRET = b"TOP SECRET, of the host\n"
ROUNDS = 3
MOST_SECONDS = 60.0


@pytest.fixture
def here(tmp_path: Path, start_container: Start) -> Iterator[Sandboxed]:
    sandboxed = Sandboxed("direct", tmp_path, start_container())
    build(sandboxed.tree)
    yield sandboxed
    anyio.run(sandboxed.service.close)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Of this machine: the names are those in the container."""
    outside = tmp_path / "outside"
    for folder in range(20):
        write(outside / f"dir{folder}" / "src" / "file0", SECRET)
        write(outside / "src" / f"file{folder}", SECRET)
    return outside


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A block device of this machine, by its number."""
    image = tmp_path / "disk"
    image.write_bytes(SECRET * 10_000)
    device = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(image)], check=True, capture_output=True, text=True
    ).stdout.strip()
    yield str(os.stat(device).st_rdev)
    subprocess.run(["losetup", "--detach", device], check=True)


def build(tree: Path) -> None:
    for folder in range(20):
        for file in range(5):
            write(tree / f"dir{folder}" / "src" / f"file{file}", "harmless\n" * 500)


def rebuild(tree: Path) -> None:
    subprocess.run(["find", tree, "-mindepth", "1", "-delete"], check=True)
    build(tree)


def put_back(here: Sandboxed) -> None:
    """Undo what an attack had begun on the directory itself when it was ended."""
    aside = here.tree.with_name(f"~{here.tree.name}")
    if here.tree.is_symlink():
        attacks.exchange(here.tree, aside)
    aside.unlink(missing_ok=True)


def try_to_create(here: Sandboxed) -> list[Backup]:
    began = time.monotonic()
    made = []
    for _ in range(ROUNDS):
        with suppress(SandpointError):
            made.append(here.create(full=True))
    assert time.monotonic() - began < MOST_SECONDS
    return made


def assert_no_secret(here: Sandboxed, backups: list[Backup]) -> None:
    for backup in backups:
        into = here.base / backup.id
        layer = here.store / "backups" / backup.id / "data.sqsh"
        subprocess.run(["unsquashfs", "-q", "-n", "-d", str(into), str(layer)], check=True, capture_output=True)
        for path in into.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert SECRET not in path.read_bytes(), f"{path} holds what is the host's"
        assert SECRET not in (here.store / "backups" / backup.id / "manifest.zst").read_bytes()


def assert_nothing_left(here: Sandboxed) -> None:
    assert here.target is not None
    state = here.target.state
    assert list((state / "work").iterdir()) == []
    assert str(state) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("attack", [attacks.links_for_folders, attacks.the_directory])
def test_no_link_leads_a_backup_to_the_host(here: Sandboxed, outside: Path, attack: Attack) -> None:
    assert here.target is not None
    before = list_tree(outside)
    with intruder(here.target, attack, here.dir, str(outside)):
        made = try_to_create(here)
    put_back(here)
    rebuild(here.tree)
    made.append(here.create())
    assert_no_secret(here, made)
    assert_same(before, list_tree(outside))
    assert_nothing_left(here)


def test_no_device_of_the_host_is_read_into_a_backup(here: Sandboxed, disk: str) -> None:
    assert here.target is not None
    with intruder(here.target, attacks.devices_for_files, here.dir, disk):
        made = try_to_create(here)
    assert_no_secret(here, made)
    assert_nothing_left(here)


def test_a_pipe_in_place_of_a_file_holds_nobody_up(here: Sandboxed) -> None:
    assert here.target is not None
    with intruder(here.target, attacks.pipes_for_files, here.dir, "/"):
        try_to_create(here)
    rebuild(here.tree)
    assert here.create().file_count == 100
    assert_nothing_left(here)


def test_a_pipe_that_git_would_read_rules_from_holds_nobody_up(here: Sandboxed) -> None:
    (here.tree / ".git").mkdir()
    os.mkfifo(here.tree / ".gitignore")
    os.mkfifo(here.tree / ".git" / "HEAD")
    began = time.monotonic()
    with suppress(SandpointError):
        here.create(use_gitignore=True)
    assert time.monotonic() - began < MOST_SECONDS


@pytest.mark.parametrize(
    "attack",
    [attacks.links_in_staging, attacks.staging_itself, attacks.links_for_folders, attacks.the_directory],
    ids=lambda attack: attack.__name__,
)
@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_nothing_of_the_host_is_written_by_a_restore(here: Sandboxed, outside: Path, attack: Attack, mode: str) -> None:
    assert here.target is not None
    backup = here.create()
    before = list_tree(outside)
    stamps = ctimes(outside)
    began = time.monotonic()
    for _ in range(ROUNDS):
        with suppress(SandpointError):
            here.run(here.service.unmount, here.dir)
        subprocess.run(["find", here.tree, "-mindepth", "1", "-delete"], check=True)
        with intruder(here.target, attack, here.dir, str(outside)), suppress(SandpointError):
            here.restore(backup.id, mode=mode, undo=False)
        put_back(here)
        assert_same(before, list_tree(outside))
        assert ctimes(outside) == stamps
    assert time.monotonic() - began < MOST_SECONDS
    here.restore(backup.id, mode=mode, undo=False)
    assert not here.diff(backup.id)
    assert_nothing_left(here)


def ctimes(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_ctime_ns for path in (folder, *folder.rglob("*"))}


def test_only_regular_files_are_opened(tmp_path: Path, disk: str) -> None:
    os.mknod(tmp_path / "device", 0o60666, int(disk))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    try:
        for name in (b"device", b"pipe", b"link"):
            with pytest.raises(OSError, match=r"regular file|symbolic links"):
                open_regular(root, name)
    finally:
        os.close(root)


def test_a_folder_that_is_filled_while_it_is_removed_takes_nothing_else_along(here: Sandboxed, outside: Path) -> None:
    assert here.target is not None
    before = list_tree(outside)

    def refill(directory: Path, link: str, number: int) -> None:
        folder = directory / "full"
        for name in ("src", "deeper"):
            with suppress(OSError):
                (folder / name).mkdir(parents=True)
        with suppress(OSError):
            (folder / "src" / f"file{number % 50}").touch()
            (folder / "link").symlink_to(link)
        with suppress(OSError):
            attacks.exchange(folder / "src", folder / "link")

    with intruder(here.target, refill, here.dir, str(outside)):
        for _ in range(20):
            with suppress(OSError):
                remove_tree(str(here.tree / "full"))
    remove_tree(str(here.tree / "full"))
    assert_same(before, list_tree(outside))


def test_nothing_of_ours_can_be_seen_in_the_container(here: Sandboxed, docker_engine: Engine) -> None:
    assert here.target is not None
    backup = here.create()
    processes = here.target.run("ps", "-o", "pid,args")
    here.restore(backup.id, mode="overlay", undo=False)

    assert here.target.run("ps", "-o", "pid,args").count(b"\n") == processes.count(b"\n")
    assert b"SANDPOINT" not in here.target.run("env")
    assert here.target.attempt("test", "-e", "/var/run/docker.sock")[0] != 0
    (line,) = [line for line in here.target.mounts() if line.source.startswith("sandpoint-")]
    paths = [part.partition("=")[2] for part in line.options.split(",") if "=/" in part]
    volume = docker_engine.client.volumes.get("sandpoint-state").attrs["Mountpoint"]
    assert [path for path in paths if not path.startswith((volume, "/proc/self/fd/"))] == []
    assert here.target.attempt("ls", volume)[0] != 0
