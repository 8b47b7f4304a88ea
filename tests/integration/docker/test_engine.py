"""The engine that the other tests of Docker stand on, and what they look at it with."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker.errors import APIError, ImageNotFound, NotFound

from helpers import dockerd
from helpers.docker import LABEL, Engine, Target, assert_no_more_left, leftovers, of
from helpers.dockerd import FIRST_REMAPPED_ID, daemon_apart
from helpers.place import mounted, mounts_in
from helpers.site import wait_until

Start = Callable[..., Target]


def test_a_container_without_capabilities_runs(start_container: Start) -> None:
    target = start_container(cap_drop=["ALL"], security_opt=["no-new-privileges"])

    assert b"CapEff:\t0000000000000000" in target.run("cat", "/proc/self/status")
    assert target.run("id", "-un", user="agent") == b"agent\n"
    assert target.run("ls", "-A", "/workspace") == b""
    assert (target.root / "bin" / "busybox").is_file()


def test_a_container_goes_with_its_anonymous_volumes_whatever_became_of_it(docker_engine: Engine, busybox: str) -> None:
    with docker_engine.container(busybox, volumes=["/kept"]) as target:
        [volume] = [mount["Name"] for mount in target.container.attrs["Mounts"]]
        target.container.pause()
    with docker_engine.container(busybox) as removed:
        removed.container.remove(force=True)

    for gone in (target, removed):
        with pytest.raises(NotFound):
            docker_engine.client.containers.get(gone.id)
    with pytest.raises(NotFound):
        docker_engine.client.volumes.get(volume)


def test_a_container_that_cannot_start_leaves_nothing(docker_engine: Engine, busybox: str) -> None:
    with pytest.raises(APIError), docker_engine.container(busybox, ["/no/such/program"], name="sandpoint-test-none"):
        pass

    with pytest.raises(NotFound):
        docker_engine.client.containers.get("sandpoint-test-none")


def test_files_go_in_and_out(start_container: Start, tmp_path: Path) -> None:
    target = start_container()
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    (tmp_path / "tree" / "folder" / "file").write_bytes(b"\0\xff")

    target.write("/workspace/new/a b", b"\n\0x")
    target.upload({"/workspace/deep/down": "text", "/workspace/other": b"\0"}, mode=0o600, uid=1000, mtime=1)
    target.copy_in(tmp_path / "tree", "/workspace")

    assert target.read("/workspace/new/a b") == target.download("/workspace/new/a b") == b"\n\0x"
    assert target.read("/workspace/folder/file") == b"\0\xff"
    assert target.run("stat", "-c", "%u %a %Y", "/workspace/deep/down") == b"1000 600 1\n"


def test_the_debian_image_has_what_tests_need(start_container: Start, debian: str) -> None:
    target = start_container(debian)

    target.run("python3", "-c", "import ctypes, tarfile, venv, pip")
    for argv in (["mksquashfs", "-version"], ["git", "version"], ["setpriv", "--version"]):
        assert target.attempt(*argv)[1]
    program = "/usr/lib/postgresql/15/bin"
    target.run(f"{program}/initdb", "/tmp/data", user="postgres")
    target.run(f"{program}/pg_ctl", "start", "-w", "-D", "/tmp/data", "-l", "/tmp/log", user="postgres")
    assert target.run("psql", "-Atc", "SELECT 6 * 7", user="postgres") == b"42\n"


def test_leftovers_tell_what_carries_sandpoints_names(
    docker_engine: Engine, start_container: Start, tmp_path: Path
) -> None:
    target = start_container()
    mine = {"test": tmp_path.name}
    before = leftovers(docker_engine, target, folders=(tmp_path,), labels=mine)
    image, point = tmp_path / "image", tmp_path / "point"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    device = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout
    helper = start_container(labels={"sandpoint.role": "helper", **mine})
    with (
        docker_engine.volume() as ordinary,
        mounted(point, "-t", "tmpfs", "sandpoint-some"),
    ):
        volume = docker_engine.client.volumes.create(labels={"sandpoint.role": "state", **mine})
        found = leftovers(docker_engine, target, folders=(tmp_path,), labels=mine)
        volume.remove()
    subprocess.run(["losetup", "-d", device.strip()], check=True)
    helper.container.remove(force=True)

    assert before == []
    assert found == sorted(
        [
            f"container {helper.name} (running)",
            f"loop device on {image}",
            f"mount sandpoint-some on {point} of this machine",
            f"volume {volume.name}",
        ]
    )
    assert str(ordinary.name) not in str(found)
    assert_no_more_left(before, docker_engine, target, folders=(tmp_path,), labels=mine)


def test_leftovers_tell_mounts_inside_a_container(docker_engine: Engine, start_container: Start) -> None:
    target = start_container(cap_add=["SYS_ADMIN"], security_opt=["apparmor=unconfined"])
    target.run("mount", "-t", "tmpfs", "sandpoint-inside", "/workspace")

    assert f"mount sandpoint-inside on /workspace of {target.name}" in leftovers(docker_engine, target)


def test_what_a_killed_run_left_goes_with_the_next(docker_engine: Engine, busybox: str, start_container: Start) -> None:
    script = f"""
import os, signal
from helpers.docker import Engine
with Engine() as engine, engine.volume() as volume, engine.container({busybox!r}) as target:
    print(target.id, volume.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    alive = start_container()
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    container, volume = killed.stdout.split()
    assert docker_engine.client.containers.get(container).labels[LABEL]

    docker_engine.remove_dead()

    with pytest.raises(NotFound):
        docker_engine.client.containers.get(container)
    with pytest.raises(NotFound):
        docker_engine.client.volumes.get(volume)
    assert alive.pid


def test_an_engine_of_our_own_serves_and_leaves_nothing(docker_engine: Engine) -> None:
    with daemon_apart() as daemon, of(daemon) as engine:
        pid, folder = daemon.pid, daemon.folder
        assert pid is not None
        with pytest.raises(ImageNotFound):
            engine.client.images.get("sandpoint-test/busybox")
        target = engine.client.containers.run(engine.busybox_image(), detach=True)
        target.pause()

    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()
    assert mounts_in(folder) == []
    assert docker_engine.client.ping()


def test_an_engine_can_map_the_ids_of_its_containers() -> None:
    with (
        daemon_apart(remap="nobody:nogroup") as daemon,
        of(daemon) as engine,
        engine.container(engine.busybox_image()) as target,
    ):
        assert Path(f"/proc/{target.pid}/uid_map").read_text().split() == ["0", str(FIRST_REMAPPED_ID), "65536"]


@pytest.mark.parametrize("died", ["tests", "engine"])
def test_an_engine_of_killed_tests_goes_with_the_next(died: str) -> None:
    script = """
import os, signal, sys
from helpers.docker import of
from helpers.dockerd import daemon_apart
with daemon_apart() as daemon, of(daemon) as engine:
    target = engine.client.containers.run(engine.busybox_image(), detach=True)
    target.reload()
    target.pause()
    print(daemon.folder, daemon.pid, target.attrs["State"]["Pid"], flush=True)
    if sys.argv[1] == "engine":
        os.kill(daemon.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, died], capture_output=True, text=True, env=_environment())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder, *pids = killed.stdout.split()
    assert Path(folder).exists()
    assert Path(f"/proc/{pids[1]}").exists()

    with daemon_apart():
        pass

    assert not Path(folder).exists()
    assert mounts_in(Path(folder)) == []
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert list(dockerd.BASE.glob(f"{Path(folder).name}*")) == []


def test_where_no_engine_answers_all_processes_share_one_that_the_last_stops(folder: Path) -> None:
    script = """
import os
from helpers.docker import engine
with engine() as found:
    print(os.environ["DOCKER_HOST"], found.client.info()["ID"], flush=True)
    input()
    print(found.client.ping(), flush=True)
    input()
print(os.environ["DOCKER_HOST"])
"""
    nowhere = "unix:///no/engine"
    environment = _environment() | {"DOCKER_HOST": nowhere, "SANDPOINT_TESTS_ENGINES": str(folder)}
    first, second = (
        subprocess.Popen(argv, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for argv in [["unshare", "--net", sys.executable, "-c", script]] * 2
    )
    with first, second:
        assert (said := _line(first)) == _line(second)
        assert said.startswith(f"unix://{folder}/shared/docker.sock ")
        assert first.communicate("\n\n")[0] == f"True\n{nowhere}\n"
        assert (folder / "shared").exists()
        assert second.communicate("\n\n")[0] == f"True\n{nowhere}\n"

    assert [path.name for path in folder.iterdir()] == ["turn"]
    assert mounts_in(folder) == []


def test_no_engine_is_started_where_another_would_lose_its_bridge(folder: Path, docker_engine: Engine) -> None:
    assert docker_engine.client.ping()
    script = "from helpers.docker import engine\nwith engine(): pass"
    environment = _environment() | {"DOCKER_HOST": "unix:///no/engine", "SANDPOINT_TESTS_ENGINES": str(folder)}

    refused = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    assert "Name its socket in DOCKER_HOST, or stop it" in refused.stderr
    assert [path.name for path in folder.iterdir()] == ["turn"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short name: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="sandpoint-", dir="/var/lib") as name:
        yield Path(name)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


def _environment() -> dict[str, str]:
    folders = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
    return os.environ | {"PYTHONPATH": ":".join(folders)}
