"""Containers, engines and directories that are not as one would wish: a known error with a remedy, and nothing left."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from helpers import docker
from helpers.docker import Engine, Target, assert_no_more_left, leftovers
from helpers.dockerd import daemon_apart
from helpers.kinds import Sandboxed
from helpers.place import tmpfs
from helpers.trees import assert_same, build_small, in_whole_seconds, write
from sandpoint.errors import BackupRestoreError, InvalidBackupConfigError, SandboxUnavailableError, SandpointError
from sandpoint.sandboxes.docker.host import DockerHost

Start = Callable[..., Target]


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Callable[[Target], Sandboxed]]:
    """Work on a container, in the directory with the tests' small tree."""
    with ExitStack() as stack:

        def entered(target: Target) -> Sandboxed:
            sandboxed = Sandboxed("direct", tmp_path, target)
            stack.callback(anyio.run, sandboxed.service.close)
            return sandboxed

        yield entered


Enter = Callable[[Target], Sandboxed]


def test_a_container_that_is_removed_or_stopped(start_container: Start, enter: Enter, docker_engine: Engine) -> None:
    here = enter(target := start_container())
    build_small(here.tree)
    here.create()
    target.container.stop(timeout=0)
    with pytest.raises(SandboxUnavailableError, match=f"docker start {target.name}"):
        here.create()
    docker_engine.remove_container(target.id)
    with pytest.raises(InvalidBackupConfigError, match="docker ps"):
        here.create()


def test_a_label_of_two_containers(start_container: Start, enter: Enter) -> None:
    labels = {"dattack": os.urandom(4).hex()}
    first, _ = start_container(labels=labels), start_container(labels=labels)
    here = enter(first)
    here.target = Target(first.container)
    here.target.name = f"label=dattack={labels['dattack']}"
    here.service = here.open()
    with pytest.raises(InvalidBackupConfigError, match="is that of 2"):
        here.create()


def test_a_directory_that_the_image_has_not(start_container: Start, enter: Enter) -> None:
    here = enter(start_container())
    with pytest.raises(InvalidBackupConfigError, match="does not exist; create it"):
        here.create("/workspace/missing")


def test_a_read_only_container(start_container: Start, enter: Enter) -> None:
    here = enter(target := start_container(read_only=True, tmpfs={"/workspace/work": ""}))
    write(here.tree / "file", "first\n")
    backup = here.create()
    write(here.tree / "file", "second\n")
    assert here.restore(backup.id, mode="auto").mode == "copy"
    assert target.read(f"{here.dir}/file") == b"first\n"

    with pytest.raises((BackupRestoreError, InvalidBackupConfigError), match="Read-only"):
        here.restore(backup.id, dir="/workspace/other")
    etc = here.create("/workspace")
    with pytest.raises(BackupRestoreError, match="Read-only"):
        here.restore(etc.id, dir="/root")


@pytest.mark.parametrize("kind", ["volume", "bind", "tmpfs"])
def test_a_directory_that_is_mounted_is_restored_in_place(
    start_container: Start, enter: Enter, docker_engine: Engine, tmp_path: Path, kind: str
) -> None:
    with ExitStack() as stack:
        bind = tmp_path / "host"
        bind.mkdir()
        if kind == "volume":
            bind = Path(stack.enter_context(docker_engine.volume()).attrs["Mountpoint"])
            name = bind.parent.name
        else:
            name = str(bind)
        engine = docker_engine
        options: dict[str, Any] = (
            {"tmpfs": {"/workspace/work": ""}}
            if kind == "tmpfs"
            else {"volumes": {name: {"bind": "/workspace/work", "mode": "rw"}}}
        )
        target = stack.enter_context(engine.container(engine.busybox_image(), **options))
        here = enter(target)
        build_small(here.tree)
        before = here.listing()
        backup = here.create()
        write(here.tree / "new", "new")
        (here.tree / "run.sh").unlink()
        assert here.restore(backup.id, mode="auto").mode == "copy"
        assert_same(before, here.listing())
        if kind != "tmpfs":
            assert sorted(os.listdir(bind)) == sorted(os.listdir(here.tree))
        anyio.run(here.service.close)


def test_a_volume_inside_the_directory_is_left_alone(
    start_container: Start, enter: Enter, docker_engine: Engine
) -> None:
    with docker_engine.volume() as volume, ExitStack() as stack:
        options: dict[str, Any] = {"volumes": {volume.name: {"bind": "/workspace/work/data", "mode": "rw"}}}
        here = enter(stack.enter_context(docker_engine.container(docker_engine.busybox_image(), **options)))
        write(here.tree / "file", "first\n")
        write(here.tree / "data" / "kept", "kept\n")
        backup = here.create()
        write(here.tree / "file", "second\n")
        restored = here.restore(backup.id, mode="auto")
        assert (restored.mode, restored.skipped_mounts) == ("copy", ("data",))
        assert (here.tree / "file").read_text() == "first\n"
        assert (here.tree / "data" / "kept").read_text() == "kept\n"
        with pytest.raises(BackupRestoreError, match="would hide; use mode 'copy'"):
            here.restore(backup.id, mode="overlay")
        anyio.run(here.service.close)


def test_an_overlay_inside_another(start_container: Start, enter: Enter) -> None:
    here = enter(target := start_container(cap_drop=["ALL"]))
    build_small(here.tree)
    before = in_whole_seconds(here.listing())
    outer = here.create()
    inner = here.create(f"{here.dir}/src")
    here.restore(outer.id, mode="overlay", undo=False)
    here.restore(inner.id, mode="overlay", undo=False)
    write(here.tree / "src" / "app.py", "inside\n")
    undo = here.restore(outer.id, mode="overlay").undo_id
    assert undo is not None
    assert_same(before, in_whole_seconds(here.listing()))
    assert [line.point for line in target.mounts() if line.source.startswith("sandpoint-")] == [here.dir]
    here.restore(undo, mode="overlay", undo=False)
    assert target.read(f"{here.dir}/src/app.py") == b"inside\n"


def fill(folder: Path) -> None:
    with suppress(OSError), open(folder / "full", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_no_room_for_the_state(
    start_container: Start, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = enter(target := start_container())
    write(here.tree / "file", os.urandom(3 << 20))
    with tmpfs(tmp_path / "volume", size="1m") as volume:
        monkeypatch.setattr(DockerHost, "state_volume", lambda _self: str(volume))
        backup = here.create()
        write(here.tree / "file", "small\n")
        fill(volume)
        with pytest.raises(SandpointError, match=r"free some space|No space"):
            here.restore(backup.id, mode="overlay", undo=False)
        assert (here.tree / "file").read_text() == "small\n"
        assert [line for line in target.mounts() if line.source.startswith("sandpoint-")] == []
        anyio.run(here.service.close)


def test_no_room_in_the_directory(start_container: Start, enter: Enter) -> None:
    here = enter(start_container(tmpfs={"/workspace/work": "size=2m"}))
    write(here.tree / "file", os.urandom(1 << 20))
    backup = here.create()
    write(here.tree / "file", "small\n")
    write(here.tree / "other", os.urandom(1500 << 10))
    before = here.listing()
    with pytest.raises(BackupRestoreError, match=r"(?i)no space"):
        here.restore(backup.id, undo=False, paths=["file"])
    assert_same(before, here.listing())


def test_state_that_somebody_removed_while_an_overlay_is_mounted(
    start_container: Start, enter: Enter, docker_engine: Engine
) -> None:
    here = enter(target := start_container())
    build_small(here.tree)
    backup = here.create()
    before = leftovers(docker_engine, target, folders=(target.state,))
    here.restore(backup.id, mode="overlay", undo=False)
    volume = docker_engine.client.volumes.get("sandpoint-state").attrs["Mountpoint"]
    shutil.rmtree(Path(volume) / "sandboxes" / target.id / "overlays")

    here.restore(backup.id, mode="overlay", undo=False)
    write(here.tree / "new", "new")
    here.run(here.service.unmount, here.dir)
    target.container.restart(timeout=0)
    here.restore(backup.id)
    assert_no_more_left(before, docker_engine, target, folders=(target.state,))


def test_an_engine_whose_users_are_mapped(tmp_path: Path) -> None:
    with daemon_apart(remap="nobody:nogroup") as daemon, docker.of(daemon) as engine, ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("DOCKER_HOST", daemon.url)
        with engine.container(engine.busybox_image(), cap_drop=["ALL"]) as target:
            here = Sandboxed("direct", tmp_path, target)
            target.run("mkdir", "/workspace/work")
            target.write(f"{here.dir}/file", "first\n")
            before = here.listing()
            backup = here.create()
            target.write(f"{here.dir}/file", "second\n")
            here.restore(backup.id, mode="copy", undo=False)
            assert_same(before, here.listing())
            target.write(f"{here.dir}/file", "third\n")
            here.restore(backup.id, mode="overlay", undo=False)
            assert target.read(f"{here.dir}/file") == b"first\n"
            target.write(f"{here.dir}/file", "fourth\n")
            here.run(here.service.unmount, here.dir)
            assert target.read(f"{here.dir}/file") == b"third\n"
            anyio.run(here.service.close)
