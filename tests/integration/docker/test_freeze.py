"""A container is paused for the moment of a capture: the backup is of one instant, and the container goes on always."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from helpers.changes import CHANGES, build_varied
from helpers.docker import Engine, Target
from helpers.kinds import Sandboxed, opened
from helpers.place import unmount_all
from helpers.trees import Listing, assert_same, in_whole_seconds, list_tree, write
from sandpoint.engine import capture_deltas, freezing
from sandpoint.errors import BackupCreateError, InvalidBackupConfigError, SandboxUnavailableError
from sandpoint.models import Backup
from sandpoint.sandboxes.docker import freezer as freezers
from sandpoint.sandboxes.docker.cgroup import Cgroup
from sandpoint.sandboxes.docker.freezer import ContainerFreezer
from sandpoint.sandboxes.docker.host import DockerHost

Start = Callable[..., Target]
Hook = Callable[[], object]

TRIES = 50
PATIENCE_S = 30.0

WRITER = """
import mmap, os, struct, zlib
folder = "/workspace/work/db"
os.makedirs(folder, exist_ok=True)
first = os.open(folder + "/a", os.O_RDWR | os.O_CREAT)
second = os.open(folder + "/z", os.O_RDWR | os.O_CREAT)
middle = os.open(folder + "/m", os.O_RDWR | os.O_CREAT)
os.ftruncate(middle, 4096)
mapped = mmap.mmap(middle, 4096)
logs = [os.open(f"{folder}/log{n}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) for n in (1, 2)]
number = 0
while True:
    number += 1
    packed = struct.pack("<Q", number)
    os.pwrite(first, packed, 0)
    mapped[0:8] = packed
    os.pwrite(second, packed, 0)
    if number % 50 == 0:
        record = packed + struct.pack("<I", zlib.crc32(packed))
        for log in logs:
            os.write(log, record)
        if os.fstat(log).st_size > 1 << 18:
            for log in logs:
                os.ftruncate(log, 0)
"""
"""At each instant: a >= m >= z >= a - 1, the first log is as the second or has one record more, or, as they are being
emptied, is empty."""


@pytest.fixture
def here(tmp_path: Path, start_container: Start) -> Iterator[Sandboxed]:
    with opened("direct", tmp_path, start_container) as sandboxed:
        sandboxed.tree.mkdir(parents=True)
        for number in range(60):
            write(sandboxed.tree / f"dir{number % 6}" / f"file{number}", f"content {number}\n")
        yield sandboxed
    unmount_all(tmp_path)


def before_the_pause(monkeypatch: pytest.MonkeyPatch, hook: Hook) -> None:
    """Do something after the walk, just before the container is paused."""
    pause = ContainerFreezer.pause

    def hooked(self: ContainerFreezer) -> None:
        hook()
        pause(self)

    monkeypatch.setattr(ContainerFreezer, "pause", hooked)


def in_the_pause(monkeypatch: pytest.MonkeyPatch, hook: Hook) -> None:
    """Do something while the container is paused, before anything is looked at again."""
    look_again = freezing.look_again

    def hooked(*args: object) -> object:
        hook()
        return look_again(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(capture_deltas, "look_again", hooked)


def after_the_pause(monkeypatch: pytest.MonkeyPatch, look: Hook, hook: Hook) -> None:
    """Look at what a pause leaves, and do something as soon as it is over."""
    unpause = ContainerFreezer.unpause

    def hooked(self: ContainerFreezer) -> float:
        look()
        seconds = unpause(self)
        hook()
        return seconds

    monkeypatch.setattr(ContainerFreezer, "unpause", hooked)


def target_of(here: Sandboxed) -> Target:
    assert here.target is not None
    return here.target


def status_of(here: Sandboxed) -> str:
    container = target_of(here).container
    container.reload()
    return str(container.status)


def cgroup_of(here: Sandboxed) -> Cgroup:
    return cgroup_at(target_of(here))


def cgroup_at(target: Target) -> Cgroup:
    found = Cgroup.of(DockerHost().find(target.name))
    assert found is not None
    return found


def notes(docker_engine: Engine, target: Target) -> list[str]:
    found = docker_engine.client.api.volumes(filters={"label": f"sandpoint.target={target.id}"})["Volumes"] or []
    return [note["Name"] for note in found]


def assert_goes_on(here: Sandboxed, docker_engine: Engine) -> None:
    """Fail unless the container runs, and nothing says that it was paused."""
    assert not cgroup_of(here).is_frozen
    assert status_of(here) == "running"
    assert target_of(here).run("echo", "alive") == b"alive\n"
    assert notes(docker_engine, target_of(here)) == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def only_backup(here: Sandboxed) -> Backup:
    (found,) = here.run(here.service.list).backups
    return found


def assert_brings_back(here: Sandboxed, backup: Backup, base: str = "/workspace/out") -> None:
    """Fail unless a backup is just what is in the directory now."""
    here.restore(backup.id, dir=base, undo=False)
    assert_same(here.listing(), here.listing(base))
    assert here.run(here.service.verify, backup.id).ok


def test_a_sandbox_that_is_this_machine_is_not_stopped(tmp_path: Path) -> None:
    here = Sandboxed("local", tmp_path, None)
    here.tree.mkdir()

    with pytest.raises(InvalidBackupConfigError, match=r"freeze: only what runs in a container .*docker:NAME"):
        here.create(freeze=True)

    assert here.run(here.service.list).backups == ()


def test_the_first_frozen_backup_of_a_directory_stands_alone(here: Sandboxed, docker_engine: Engine) -> None:
    backup = here.create(freeze=True, name="first", metadata={"k": "v"})

    assert backup.frozen_seconds is not None
    assert 0 < backup.frozen_seconds < PATIENCE_S
    assert (only_backup(here).id, only_backup(here).name, only_backup(here).metadata) == (
        backup.id,
        "first",
        {"k": "v"},
    )
    assert_brings_back(here, backup)
    assert_goes_on(here, docker_engine)
    here.run(here.service.delete, backup.id)
    assert list((here.store / "backups").glob("*/*")) == []


def test_what_changed_before_the_pause_is_in_it(here: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> None:
    first = here.create()
    write(here.tree / "dir0" / "file0", "before the walk")

    def change() -> None:
        write(here.tree / "dir0" / "file0", "after the walk, and longer")
        write(here.tree / "dir1" / "file1", "after the walk")
        write(here.tree / "new" / "deep" / "file", "new")
        (here.tree / "dir2" / "file2").unlink()
        (here.tree / "dir3").rename(here.tree / "renamed")

    before_the_pause(monkeypatch, change)
    backup = here.create(freeze=True)

    assert (backup.kind, backup.parent_id) == ("delta", first.id)
    assert backup.unstable_paths == ()
    assert_brings_back(here, backup)
    monkeypatch.undo()
    # What was read in the pause proves nothing for later: the next capture sees each change of it all the same.
    write(here.tree / "dir1" / "file1", "after the WALK")
    assert_brings_back(here, here.create(freeze=True), "/workspace/out2")


@pytest.mark.parametrize("on_overlay", [False, True], ids=["directory", "overlay"])
def test_what_is_written_after_the_pause_is_not_in_it(
    here: Sandboxed, monkeypatch: pytest.MonkeyPatch, on_overlay: bool
) -> None:
    first = here.create()
    if on_overlay:
        here.restore(first.id, mode="overlay")
    files = [here.tree / name for name in ("dir0/file0", "dir1/file1", "dir2/file2", "dir3/file3", "new/file")]
    write(files[0], "copied before the pause")

    def change() -> None:
        for file in files[:2]:
            os.truncate(file, 0)
        write(files[2], "written before the pause")
        write(files[4], "")

    paused: list[Listing] = []
    before_the_pause(monkeypatch, change)
    after_the_pause(
        monkeypatch,
        lambda: paused.append(here.listing()),
        lambda: [write(file, "written after the pause") for file in files],
    )
    backup = here.create(freeze=True)

    assert backup.kind == "delta"
    assert backup.unstable_paths == ()
    here.restore(backup.id, dir="/workspace/out", undo=False)
    assert_same(in_whole_seconds(paused[0]), in_whole_seconds(here.listing("/workspace/out")))
    assert here.run(here.service.verify, backup.id).ok


def test_what_is_read_in_the_pause_is_in_each_backup_though_its_size_and_time_are_as_in_the_one_before(
    here: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.create()
    file = here.tree / "dir0" / "file0"

    def change(content: str) -> None:
        write(file, content)
        os.utime(file, (1_700_000_000, 1_700_000_000))

    for number, content in enumerate(("first", "later")):
        with monkeypatch.context() as patch:
            before_the_pause(patch, partial(change, content))
            backup = here.create(freeze=True)
        assert backup.kind == "delta"
        assert_brings_back(here, backup, f"/workspace/out{number}")


def test_hard_links_whose_directory_is_renamed_before_the_pause_are_as_they_were_in_it(
    here: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.link(here.tree / "dir0" / "file0", here.tree / "dir1" / "link")
    here.create()
    paused: list[Listing] = []
    before_the_pause(monkeypatch, lambda: (here.tree / "dir1").rename(here.tree / "renamed"))
    after_the_pause(
        monkeypatch,
        lambda: paused.append(here.listing()),
        lambda: write(here.tree / "dir0" / "file0", "written after the pause"),
    )
    backup = here.create(freeze=True)

    assert (backup.kind, backup.unstable_paths) == ("delta", ())
    here.restore(backup.id, dir="/workspace/out", undo=False)
    assert_same(paused[0], here.listing("/workspace/out"))


def test_a_file_that_was_a_link_at_the_walk_and_is_alone_in_the_pause_has_the_bytes_of_then(
    here: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = here.tree / "dir0" / "file0", here.tree / "dir1" / "file1"
    write(file, "before")
    write(other, "behind")
    for path in (file, other):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    here.create()
    file.unlink()
    os.link(other, file)
    before_the_pause(monkeypatch, lambda: other.parent.rename(here.outside("/workspace/elsewhere")))
    backup = here.create(freeze=True)

    assert backup.kind == "delta"
    assert_brings_back(here, backup)


def test_a_database_of_one_file_that_never_rests_is_not_read_whole_in_the_pause(
    here: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here.tree / "db", os.urandom(3 << 20))
    before_the_pause(monkeypatch, lambda: write(here.tree / "db", os.urandom(3 << 20)))

    backup = here.create(freeze=True)

    assert backup.kind == "delta"
    assert only_backup(here).id == backup.id
    assert_brings_back(here, backup)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_each_kind_of_change_before_the_pause_is_in_it(
    varied: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = Sandboxed("direct", tmp_path, varied)
    here.dir = f"/workspace/{sorted(CHANGES).index(name)}"
    build_varied(here.tree)
    try:
        here.create()
        before_the_pause(monkeypatch, lambda: CHANGES[name](here.tree))
        backup = here.create(freeze=True)
        assert backup.kind == "delta"
        state = list_tree(here.tree)
        monkeypatch.undo()
        here.restore(backup.id, undo=False)
        assert_same(state, list_tree(here.tree))
        assert here.diff(backup.id).added == ()
    finally:
        here.run(here.service.close)


@pytest.fixture(scope="module")
def varied(docker_engine: Engine, busybox: str) -> Iterator[Target]:
    with docker_engine.container(busybox) as target:
        yield target


def test_on_an_overlay(here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine) -> None:
    first = here.create()
    here.restore(first.id, mode="overlay")
    target_of(here).run("sh", "-c", "echo one > /workspace/work/dir1/file1; rm /workspace/work/dir0/file0")

    def change() -> None:
        target_of(here).run("sh", "-c", "cd /workspace/work; echo two > dir1/file1; echo new > new; rm dir2/file2")

    before_the_pause(monkeypatch, change)
    backup = here.create(freeze=True)

    assert (backup.kind, backup.parent_id) == ("delta", first.id)
    assert backup.frozen_seconds is not None
    here.restore(backup.id, dir="/workspace/out", undo=False)
    assert_same(in_whole_seconds(here.listing()), in_whole_seconds(here.listing("/workspace/out")))
    assert_goes_on(here, docker_engine)


def test_a_directory_of_which_stamps_prove_nothing_is_read_whole_in_the_pause(
    tmp_path: Path, start_container: Start
) -> None:
    with opened("direct", tmp_path, start_container, tmpfs={"/memory": ""}) as here:
        here.dir = "/memory"
        write(here.tree / "file", "content")
        backup = here.create(freeze=True)
        assert backup.kind == "full"
        assert backup.frozen_seconds is not None
        assert only_backup(here).id == backup.id


def test_a_container_that_is_paused_already_stays_so(here: Sandboxed, docker_engine: Engine) -> None:
    here.create()
    target_of(here).container.pause()

    backup = here.create(freeze=True)

    assert backup.frozen_seconds == 0
    assert status_of(here) == "paused"
    target_of(here).container.unpause()
    assert_goes_on(here, docker_engine)


@pytest.mark.parametrize("by_cgroup", [True, False], ids=["cgroup", "api"])
class TestWhicheverFreezer:
    @pytest.fixture(autouse=True)
    def freezer(self, by_cgroup: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not by_cgroup:
            monkeypatch.setattr(Cgroup, "of", classmethod(lambda _cls, _target: None))

    def test_the_container_stands_still_in_the_pause(
        self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine, by_cgroup: bool
    ) -> None:
        here.create()
        stopped = []
        state = f"/sys/fs/cgroup/freezer/docker/{target_of(here).id}/freezer.state"

        def look() -> None:
            stopped.append((Path(state).read_text().strip(), status_of(here)))

        in_the_pause(monkeypatch, look)
        backup = here.create(freeze=True)

        assert stopped == [("FROZEN", "running" if by_cgroup else "paused")]
        assert backup.size_bytes == 0
        monkeypatch.undo()
        assert_goes_on(here, docker_engine)

    def test_an_error_in_the_pause_ends_it(
        self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine
    ) -> None:
        kept = here.create()

        def fail() -> None:
            raise OSError(28, os.strerror(28), "copies")

        in_the_pause(monkeypatch, fail)
        with pytest.raises(BackupCreateError, match="No space left on device"):
            here.create(freeze=True)

        monkeypatch.undo()
        assert only_backup(here).id == kept.id
        assert_goes_on(here, docker_engine)

    def test_a_cancelled_backup_ends_it(
        self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine
    ) -> None:
        kept = here.create()

        async def cancelled() -> bool:
            with anyio.CancelScope() as scope:
                in_the_pause(monkeypatch, lambda: anyio.from_thread.run_sync(scope.cancel))
                await here.service.create(here.dir, freeze=True)
            return scope.cancelled_caught

        assert anyio.run(cancelled)
        monkeypatch.undo()
        assert only_backup(here).id == kept.id
        assert_goes_on(here, docker_engine)

    def test_another_who_unpauses_it_fails_the_backup(
        self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine, by_cgroup: bool
    ) -> None:
        kept = here.create()
        unpause = cgroup_of(here).thaw if by_cgroup else target_of(here).container.unpause
        in_the_pause(monkeypatch, unpause)

        with pytest.raises(BackupCreateError, match="was unpaused or started anew by somebody else"):
            here.create(freeze=True)

        monkeypatch.undo()
        assert only_backup(here).id == kept.id
        assert_goes_on(here, docker_engine)

    def test_a_container_that_is_killed_in_the_pause_fails_the_backup(
        self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine
    ) -> None:
        kept = here.create()
        in_the_pause(monkeypatch, lambda: target_of(here).container.remove(force=True))

        with pytest.raises((BackupCreateError, SandboxUnavailableError), match="somebody else"):
            here.create(freeze=True)

        assert only_backup(here).id == kept.id
        assert notes(docker_engine, target_of(here)) == []

    def test_a_process_that_is_killed_in_the_pause(
        self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, docker_engine: Engine, by_cgroup: bool
    ) -> None:
        kept = here.create()
        die_in_the_pause(here, by_cgroup=by_cgroup)
        if by_cgroup:  # by the process that waits beside
            wait_for(lambda: not cgroup_of(here).is_frozen)
        else:
            assert status_of(here) == "paused"
        assert len(notes(docker_engine, target_of(here))) == 1

        here.diff(kept.id)

        monkeypatch.undo()
        assert_goes_on(here, docker_engine)
        assert only_backup(here).id == kept.id

    def test_a_doctor_lets_it_go_on(self, here: Sandboxed, monkeypatch: pytest.MonkeyPatch, by_cgroup: bool) -> None:
        here.create()
        die_in_the_pause(here, by_cgroup=by_cgroup, guarded=False)

        here.run(here.service.capabilities)

        monkeypatch.undo()
        assert not cgroup_of(here).is_frozen
        assert status_of(here) == "running"


KILLED = """
import os, signal, sys
import anyio
from pathlib import Path
from helpers.docker import connect, Target
from helpers.kinds import Sandboxed
from sandpoint.engine import capture_deltas, freezing
from sandpoint.sandboxes.docker import freezer
from sandpoint.sandboxes.docker.cgroup import Cgroup

base, container, by_cgroup, guarded = sys.argv[1:]
here = Sandboxed("direct", Path(base), Target(connect(None).containers.get(container)))
if by_cgroup == "False":
    freezer.Cgroup.of = classmethod(lambda cls, target: None)
if guarded == "False":
    Cgroup.prepare = lambda self: None
capture_deltas.look_again = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
here.create(freeze=True)
"""


def die_in_the_pause(here: Sandboxed, *, by_cgroup: bool, guarded: bool = True) -> None:
    """Let another process back up, and be killed in the pause; `guarded`: only itself, and not what waits beside it."""
    argv = [sys.executable, "-c", KILLED, str(here.base), target_of(here).name, str(by_cgroup), str(guarded)]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == -signal.SIGKILL


def test_control_groups_of_each_version_that_is_here_stop_and_go_on(start_container: Start) -> None:
    container = start_container(command=["/bin/sh", "-c", "while :; do date > /now; done"])
    pid = container.pid
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    roots = {"freezer": "/sys/fs/cgroup/freezer", "": "/sys/fs/cgroup/unified"}
    folders = [(roots[kind] + path, 1 if kind else 2) for _, kind, path in lines if kind in roots]
    found = [Cgroup(*each) for each in folders if Path(each[0]).is_dir()] or [cgroup_at(container)]
    for cgroup in found:
        cgroup.freeze()
        before = changed(container.root / "now")
        time.sleep(0.1)
        assert changed(container.root / "now") == before
        assert [cgroup.is_frozen, cgroup.thaw(), cgroup.is_frozen, cgroup.thaw()] == [True, True, False, False]
        wait_for(partial(has_changed_since, container.root / "now", before))


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def has_changed_since(path: Path, before: int) -> bool:
    return changed(path) != before


def test_a_prune_forgets_pauses_of_containers_that_are_gone(here: Sandboxed, docker_engine: Engine) -> None:
    with docker_engine.container(docker_engine.busybox_image()) as other:
        freezers.write_note(DockerHost(), other.id)
    assert len(notes(docker_engine, other)) == 1

    here.run(here.service.prune)

    assert notes(docker_engine, other) == []


@pytest.fixture
def writer(tmp_path: Path, start_container: Start, debian: str) -> Iterator[Sandboxed]:
    with opened("direct", tmp_path, start_container, image=debian) as sandboxed:
        sandboxed.tree.mkdir(parents=True)
        # Between those that the writer writes to, so that to read all of them takes a while.
        for number in range(300):
            write(sandboxed.tree / "db" / f"k{number}", os.urandom(5000))
        target_of(sandboxed).container.exec_run(["python3", "-c", WRITER], detach=True)
        wait_for(lambda: (sandboxed.tree / "db" / "z").exists() and os.path.getsize(sandboxed.tree / "db" / "z") == 8)
        yield sandboxed
    unmount_all(tmp_path)


def states(here: Sandboxed, backups: Iterable[Backup]) -> Iterator[dict[str, bytes]]:
    async def read(backup: Backup, name: str) -> bytes:
        async with await here.service.open_file(backup.id, f"db/{name}") as stream:
            return b"".join([block async for block in stream])

    for backup in backups:
        yield {name: here.run(read, backup, name) for name in ("a", "m", "z", "log1", "log2")}


def is_of_one_instant(state: dict[str, bytes]) -> bool:
    first, middle, last = (int.from_bytes(state[name][:8], "little") for name in ("a", "m", "z"))
    one, two = state["log1"], state["log2"]
    return first >= middle >= last >= first - 1 and (one in {two, b""} or (one[:-12] == two and len(one) % 12 == 0))


def test_files_that_belong_together_are_of_one_instant(writer: Sandboxed) -> None:
    loose = (writer.create() for _ in range(TRIES))
    assert not all(is_of_one_instant(state) for state in states(writer, loose))
    frozen = [writer.create(freeze=True) for _ in range(TRIES)]

    assert [backup.unstable_paths for backup in frozen] == [()] * TRIES
    found = list(states(writer, frozen))
    assert [state for state in found if not is_of_one_instant(state)] == []
    assert len({state["a"] for state in found}) == TRIES


def test_the_command_line_says_for_how_long(here: Sandboxed, tmp_path: Path) -> None:
    environment = os.environ | {
        "SANDPOINT_STORE": here.store.as_uri(),
        "SANDPOINT_STATE_DIR": str(here.base / "state"),
        "SANDPOINT_SANDBOX": target_of(here).sandbox,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def said(*options: str) -> str:
        argv = [sys.executable, "-m", "sandpoint.cli", "create", here.dir, *options]
        return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout

    assert "paused for " in said("--freeze")
    assert json.loads(said("--freeze", "--json"))["frozen_seconds"] > 0
    assert json.loads(said("--json"))["frozen_seconds"] is None
