"""The archive way on a real engine: copies of a container's directory there and back, by Docker's API alone."""

import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from docker.errors import NotFound
from docker.models.containers import Container

from helpers.docker import Engine
from helpers.trees import (
    NAMES,
    SECOND,
    Item,
    Listing,
    assert_same,
    at,
    build_small,
    build_zoo,
    list_tree,
    write,
)
from sandpoint.errors import BackupRestoreError, InvalidBackupConfigError, SandboxUnavailableError
from sandpoint.models import Backup, Changes, Progress, RestoreResult
from sandpoint.sandboxes.docker import DockerSandbox
from sandpoint.sandboxes.docker.ways import WaySettings
from sandpoint.service import BackupService
from sandpoint.stores.local import LocalStore

LABEL = "sandpoint-test-archive"


class Box:
    """A container, a service that reaches it by the archive way, and what Sandpoint keeps of it here."""

    def __init__(self, container: Container, base: Path, dir: str) -> None:
        container.reload()
        self.container = container
        self.dir = dir
        self.state = base / "state"
        self.store = LocalStore(str(base / "store"))
        self.settings = WaySettings(
            state_dir=str(self.state), cache_bytes=1 << 30, relay=self.store.relay, helper_image="none"
        )
        self.sandbox = DockerSandbox(str(container.id), self.settings, way="archive")
        self.service = BackupService(self.sandbox, self.store)

    @asynccontextmanager
    async def directly(self) -> AsyncIterator[BackupService]:
        """A service that reaches it by the direct way."""
        sandbox = DockerSandbox(str(self.container.id), self.settings, way="direct")
        try:
            yield BackupService(sandbox, self.store)
        finally:
            await sandbox.close()

    @property
    def root(self) -> Path:
        """The container's own root, as the host sees it."""
        self.container.reload()
        return Path(f"/proc/{self.container.attrs['State']['Pid']}/root")

    @property
    def tree(self) -> Path:
        """The directory."""
        return self.root / self.dir.lstrip("/")

    def create(self, **options: Any) -> Backup:
        return anyio.run(partial(self.service.create, self.dir, **options))

    def restore(self, backup: str | Backup, **options: Any) -> RestoreResult:
        return anyio.run(partial(self.service.restore, backup if isinstance(backup, str) else backup.id, **options))

    def diff(self, backup: Backup) -> Changes:
        return anyio.run(self.service.diff, backup.id)

    def kept_here(self) -> list[str]:
        """What is left of an operation on this machine."""
        folder = self.state / "docker" / "sandboxes" / str(self.container.id)
        return sorted(name for name in os.listdir(folder) if name == "mirror") + sorted(os.listdir(folder / "work"))


Boxes = Callable[..., Box]


@pytest.fixture(scope="session")
def engine(docker_engine: Engine) -> docker.DockerClient:
    return docker_engine.client


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with busybox and no links to it."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "bin").mkdir()
    shutil.copy("/bin/busybox", folder / "bin" / "busybox")
    (folder / "workspace").mkdir()
    archive = folder.with_suffix(".tar")
    subprocess.run(["tar", "-C", str(folder), "-cf", str(archive), "bin", "workspace"], check=True)
    tag = uuid.uuid4().hex[:12]
    engine.api.import_image_from_file(str(archive), repository=LABEL, tag=tag)
    yield f"{LABEL}:{tag}"
    engine.images.remove(f"{LABEL}:{tag}", force=True)


@pytest.fixture
def boxes(engine: docker.DockerClient, image: str, tmp_path: Path) -> Iterator[Boxes]:
    with ExitStack() as stack:

        def make(
            dir: str = "/workspace", *, tools: bool = True, command: Sequence[str] = ("sleep", "1000"), **options: Any
        ) -> Box:
            name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
            container = engine.containers.run(
                image,
                ["/bin/busybox", *command],
                name=name,
                detach=True,
                network_mode="none",
                stop_signal="SIGKILL",
                **options,
            )
            stack.callback(_remove, engine, str(container.id))
            box = Box(container, tmp_path, dir)
            stack.callback(anyio.run, box.sandbox.close)
            if not tools:
                (box.root / "bin" / "busybox").unlink()
            return box

        yield make


def _remove(engine: docker.DockerClient, name: str) -> None:
    with suppress(NotFound):
        engine.api.remove_container(name, v=True, force=True)


def as_docker_shows(listing: Listing) -> Listing:
    """Return a listing less what Docker's archives lose."""
    return {
        path: replace(
            item,
            mtime_ns=max(item.mtime_ns, 0) // SECOND * SECOND,
            xattrs=tuple(pair for pair in item.xattrs if pair[0] == "security.capability"),
        )
        for path, item in listing.items()
        if item.kind != "socket"
    }


def assert_restored(expected: Listing, found: Listing) -> None:
    assert_same(as_docker_shows(expected), as_docker_shows(found))


def test_a_tree_of_every_kind_of_thing_comes_back_after_all_of_it_was_removed(boxes: Boxes) -> None:
    box = boxes(cap_drop=["ALL"])
    build_zoo(box.tree / "zoo")
    before = list_tree(box.tree)
    backup = box.create()
    for name in os.listdir(box.tree / "zoo"):
        path = box.tree / "zoo" / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    result = box.restore(backup)

    assert_restored(before, list_tree(box.tree))
    assert result.mode == "copy"
    assert not box.diff(backup)
    assert box.kept_here() == []


def test_what_was_added_goes_whatever_it_is_called_and_whoever_owns_it(boxes: Boxes) -> None:
    box = boxes(cap_drop=["ALL"])
    build_small(box.tree)
    os.chown(box.tree / "src", 1000, 1000)
    before = list_tree(box.tree)
    backup = box.create()
    build_zoo(box.tree / "zoo")
    for name in NAMES:
        at(box.tree / "src", name).write_bytes(name)
        os.chown(at(box.tree / "src", name), 77, 77)
    (box.tree / "src").chmod(0o555)

    result = box.restore(backup)

    assert_restored(before, list_tree(box.tree))
    undo = result.undo_id
    assert undo is not None
    box.restore(undo)
    assert at(box.tree / "src", b"\xff").read_bytes() == b"\xff"
    assert (box.tree / "zoo" / "contents" / "sparse").stat().st_size == 5_000_000


def test_what_changed_its_type_or_its_attributes_comes_back_and_the_rest_is_not_touched(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    (box.tree / "tool").write_text("x")
    (box.tree / "tool").chmod(0o4755)
    os.link(box.tree / "run.sh", box.tree / "linked")
    before = list_tree(box.tree)
    backup = box.create()
    untouched = (box.tree / "README.md").stat().st_ino
    shutil.rmtree(box.tree / "src")
    write(box.tree / "src", "a file now")
    (box.tree / "link").unlink()
    (box.tree / "link").mkdir()
    write(box.tree / "link" / "inside", "x")
    (box.tree / "empty").rmdir()
    (box.tree / "empty").symlink_to("/etc")
    (box.tree / "linked").unlink()
    write(box.tree / "linked", "no link now")
    (box.tree / "tool").chmod(0o600)
    box.tree.chmod(0o1777)
    os.chown(box.tree, 5, 6)

    box.restore(backup)

    assert_restored(before, list_tree(box.tree))
    assert (box.tree / "README.md").stat().st_ino == untouched


def test_times_of_parts_of_a_second_and_attributes_are_no_differences(boxes: Boxes) -> None:
    box = boxes()
    build_zoo(box.tree)
    backup = box.create()

    assert not box.diff(backup)
    for path in (box.tree / "times" / "nanoseconds", box.tree / "empty"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns // SECOND * SECOND + 5))
    os.setxattr(box.tree / "xattrs" / "many", "user.more", b"x")
    assert not box.diff(backup)
    result = box.restore(backup)
    assert result.undo_id is None


def test_a_directory_that_is_gone_is_made_again_with_those_that_lead_to_it(boxes: Boxes) -> None:
    box = boxes("/a/b/c")
    build_small(box.tree)
    before = list_tree(box.tree)
    backup = box.create()
    shutil.rmtree(box.root / "a")

    box.restore(backup)

    assert_restored(before, list_tree(box.tree))


def test_volumes_and_other_mounts_below_are_left_out_and_never_touched(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    write(tmp_path / "bound" / "host", "of the host")
    box = boxes(
        volumes={str(tmp_path / "bound"): {"bind": "/workspace/deep/bound", "mode": "rw"}},
        tmpfs={"/workspace/tmp": ""},
    )
    build_small(box.tree / "own")
    write(box.tree / "tmp" / "fleeting", "x")
    backup = box.create()
    assert set(backup.skipped_mounts) == {"deep/bound", "tmp"}
    write(box.tree / "own" / "more", "x")
    write(tmp_path / "bound" / "host", "changed")

    result = box.restore(backup)

    assert set(result.changes.removed if result.changes else ()) == {"own/more"}
    assert (tmp_path / "bound" / "host").read_text() == "changed"
    assert (box.tree / "tmp" / "fleeting").read_text() == "x"


def test_a_container_without_any_program_can_be_restored_if_nothing_is_to_be_removed(boxes: Boxes) -> None:
    box = boxes(tools=False)
    build_small(box.tree)
    before = list_tree(box.tree)
    backup = box.create()
    write(box.tree / "README.md", "other")
    shutil.rmtree(box.tree / "src")

    box.restore(backup)
    assert_restored(before, list_tree(box.tree))

    write(box.tree / "README.md", "other")
    write(box.tree / "extra", "x")
    changed = list_tree(box.tree)
    with pytest.raises(BackupRestoreError, match=r"extra.*neither rm nor busybox.*Nothing was changed") as caught:
        box.restore(backup)
    assert not caught.value.partly
    assert_same(changed, list_tree(box.tree))


def test_a_read_only_root_is_refused_before_anything_and_its_volume_is_restored(
    boxes: Boxes, engine: docker.DockerClient
) -> None:
    volume = engine.volumes.create(f"{LABEL}-{uuid.uuid4().hex[:12]}")
    try:
        box = boxes(read_only=True)
        backup = box.create()
        (Path(box.container.attrs["GraphDriver"]["Data"]["MergedDir"]) / "workspace" / "new").write_text("x")
        with pytest.raises(BackupRestoreError, match="read-only"):
            box.restore(backup)
        box.container.remove(force=True)
        box = boxes("/data", read_only=True, volumes={volume.name: {"bind": "/data", "mode": "rw"}})
        build_small(box.tree)
        before = list_tree(box.tree)
        backup = box.create()
        write(box.tree / "more", "x")
        (box.tree / "README.md").unlink()
        box.restore(backup)
        expected, found = as_docker_shows(before), as_docker_shows(list_tree(box.tree))
        expected.pop(b""), found.pop(b"")
        assert_same(expected, found)
        box.container.remove(force=True)
    finally:
        volume.remove(force=True)


def test_a_paused_container_is_captured_and_restored_but_nothing_is_removed_from_it(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    box.container.pause()
    backup = box.create()
    write(box.tree / "README.md", "other")
    box.restore(backup)
    assert (box.tree / "README.md").read_text() == "# read me\n"
    write(box.tree / "extra", "x")
    with pytest.raises(BackupRestoreError, match="unpause"):
        box.restore(backup)
    assert (box.tree / "extra").exists()
    box.container.unpause()
    box.restore(backup)
    assert not (box.tree / "extra").exists()


def test_a_link_on_the_way_to_the_directory_is_not_followed(boxes: Boxes) -> None:
    box = boxes("/workspace/link/deep")
    write(box.root / "workspace" / "real" / "deep" / "file", "x")
    (box.root / "workspace" / "link").symlink_to("real")
    with pytest.raises(InvalidBackupConfigError, match="symlink"):
        box.create()
    (box.root / "workspace" / "link").unlink()
    (box.root / "workspace" / "link").write_text("x")
    with pytest.raises(InvalidBackupConfigError, match="not a directory"):
        box.create()
    (box.root / "workspace" / "link").unlink()
    with pytest.raises(InvalidBackupConfigError, match="does not exist"):
        box.create()


def test_a_directory_that_the_api_does_not_show_is_refused(boxes: Boxes) -> None:
    box = boxes("/scratch/below", tmpfs={"/scratch": ""})
    build_small(box.tree)
    with pytest.raises(InvalidBackupConfigError, match="/scratch"):
        box.create()


def test_a_container_that_is_removed_in_the_middle_is_named_and_nothing_is_left_here(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    backup = box.create()
    write(box.tree / "README.md", "other")

    async def remove_at(progress: Progress) -> None:
        if progress.phase == "sending":
            await anyio.to_thread.run_sync(partial(box.container.remove, force=True))

    with pytest.raises((BackupRestoreError, SandboxUnavailableError), match=str(box.container.name)):
        box.restore(backup, report=remove_at)
    assert box.kept_here() == []


def test_a_restore_that_is_cancelled_while_it_sends_is_undone(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    backup = box.create()
    write(box.tree / "README.md", "other")
    write(box.tree / "extra" / "file", "x")
    before = list_tree(box.tree)

    async def cancelled() -> bool:
        with anyio.CancelScope() as scope:

            async def cancel_at(progress: Progress) -> None:
                if progress.phase == "sending":
                    scope.cancel()

            await box.service.restore(backup.id, report=cancel_at)
        return scope.cancelled_caught

    assert anyio.run(cancelled)
    assert_restored(before, list_tree(box.tree))
    assert box.kept_here() == []


def test_a_restore_in_mode_overlay_is_refused(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    backup = box.create()
    with pytest.raises(BackupRestoreError, match="direct"):
        box.restore(backup, mode="overlay")


def test_a_file_that_is_written_to_meanwhile_is_no_success(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    backup = box.create()
    write(box.tree / "README.md", "other")

    async def write_at(progress: Progress) -> None:
        if progress.phase == "sending":
            write(box.tree / "run.sh", "written meanwhile")

    with pytest.raises(BackupRestoreError, match=r"run\.sh") as caught:
        box.restore(backup, report=write_at)
    assert caught.value.partly
    assert (box.tree / "README.md").read_text() == "# read me\n"


def test_a_restore_for_which_there_is_no_room_puts_back_what_was(boxes: Boxes, engine: docker.DockerClient) -> None:
    volume = engine.volumes.create(
        f"{LABEL}-{uuid.uuid4().hex[:12]}",
        driver="local",
        driver_opts={"type": "tmpfs", "device": "tmpfs", "o": "size=2m"},
    )
    try:
        box = boxes("/data/project", volumes={volume.name: {"bind": "/data", "mode": "rw"}}, cap_drop=["ALL"])
        write(box.tree / "big", os.urandom(900_000))
        write(box.tree / "small", "small\n")
        backup = box.create()
        (box.tree / "big").unlink()
        write(box.tree / "small", "changed\n")
        write(box.tree / "added" / "deep", "x")
        write(box.root / "data" / "elsewhere", os.urandom(1_500_000))
        before = list_tree(box.tree)

        with pytest.raises(BackupRestoreError, match=r"no space left on device.*is as before") as caught:
            box.restore(backup)

        assert not caught.value.partly
        assert_restored(before, list_tree(box.tree))
        assert box.kept_here() == []

        shutil.rmtree(box.tree)
        write(box.root / "data" / "elsewhere", os.urandom(1_900_000))
        with pytest.raises(BackupRestoreError, match=r"no space left on device.*is as before"):
            box.restore(backup)
        assert os.listdir(box.root / "data") == ["elsewhere"]
        box.container.remove(force=True)
    finally:
        volume.remove(force=True)


def test_what_a_killed_server_left_is_cleared_by_the_next_operation(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    box.create()
    folder = box.state / "docker" / "sandboxes" / str(box.container.id)
    write(folder / "mirror" / "root" / "workspace" / "left", "x")
    write(folder / "work" / "dead" / "left", "x")
    backup = box.create()
    assert box.kept_here() == []
    assert not box.diff(backup)


def test_processes_go_on_in_a_directory_that_is_restored(boxes: Boxes) -> None:
    box = boxes(command=("sh", "-c", "cd /workspace && exec /bin/busybox sleep 1000"))
    build_small(box.tree)
    backup = box.create()
    write(box.tree / "README.md", "other")
    write(box.tree / "extra", "x")
    inode = box.tree.stat().st_ino
    box.restore(backup)
    assert box.tree.stat().st_ino == inode
    pid = box.container.attrs["State"]["Pid"]
    assert sorted(os.listdir(f"/proc/{pid}/cwd")) == sorted(os.listdir(box.tree))


def test_some_paths_are_restored_and_a_dry_run_changes_nothing(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    backup = box.create()
    write(box.tree / "README.md", "other")
    (box.tree / "run.sh").unlink()
    before = list_tree(box.tree)
    planned = box.restore(backup, dry_run=True)
    assert planned.changes is not None
    assert (planned.changes.added, planned.changes.modified) == (("run.sh",), ("README.md",))
    assert_same(before, list_tree(box.tree))
    box.restore(backup, paths=["run.sh"])
    assert (box.tree / "run.sh").read_text() == "#!/bin/sh\n"
    assert (box.tree / "README.md").read_text() == "other"


def test_an_excluded_file_stays_in_a_directory_that_would_go(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)
    backup = box.create(excludes=["*.log"])
    write(box.tree / "new" / "kept.log", "log")
    write(box.tree / "new" / "gone", "x")
    result = box.restore(backup)
    assert result.kept_paths == ("new",)
    assert (box.tree / "new" / "kept.log").read_text() == "log"
    assert not (box.tree / "new" / "gone").exists()


def test_a_doctor_says_what_this_way_can_and_cannot(boxes: Boxes) -> None:
    box = boxes()
    found = anyio.run(box.sandbox.capabilities)
    items = {item.name: item for item in found.items}
    assert found.overlay is None
    assert items["archive way"].available
    assert items["rm in the container"].detail == "/bin/busybox rm"
    assert not items["times in parts of a second, extended attributes, sockets"].available
    assert not items["overlay restore"].available


def _sendable(item: Item) -> Item:
    """Return an entry less what no archive can bring: times before 1970, attributes without a value."""
    return replace(item, mtime_ns=max(item.mtime_ns, 0), xattrs=tuple(pair for pair in item.xattrs if pair[1]))


def test_a_backup_of_another_way_comes_back_with_all_that_docker_takes(boxes: Boxes) -> None:
    box = boxes()
    build_zoo(box.tree)
    before = list_tree(box.tree)

    async def create() -> Backup:
        async with box.directly() as service:
            return await service.create(box.dir)

    backup = anyio.run(create)
    assert not box.diff(backup)
    for name in ("xattrs", "acls", "times", "hard"):
        shutil.rmtree(box.tree / name)

    box.restore(backup, undo=False)

    found = list_tree(box.tree)
    assert_same({path: _sendable(item) for path, item in before.items()}, found)
    assert not box.diff(backup)


def test_an_overlay_that_another_way_made_is_not_taken_for_the_directory(boxes: Boxes) -> None:
    box = boxes()
    build_small(box.tree)

    async def overlay() -> None:
        async with box.directly() as service:
            backup = await service.create(box.dir)
            await service.restore(backup.id, mode="overlay")

    anyio.run(overlay)
    try:
        with pytest.raises(InvalidBackupConfigError, match="does not show"):
            box.create()
    finally:

        async def unmount() -> None:
            async with box.directly() as service:
                await service.unmount(box.dir, undo=False)

        anyio.run(unmount)
    box.create()
