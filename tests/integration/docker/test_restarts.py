"""Containers that are stopped, started, paused, killed or removed, at rest and in the middle of an operation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from helpers.docker import Engine, Target, assert_no_more_left, leftovers
from helpers.kinds import Sandboxed
from helpers.place import loops_in
from helpers.site import wait_until
from helpers.trees import assert_same, in_whole_seconds, write
from sandpoint.errors import InvalidBackupConfigError, SandboxUnavailableError
from sandpoint.models import Mode, Progress

Start = Callable[..., Target]

PHASES = [
    ("create", "reading"),
    ("create", "archiving"),
    ("create", "storing"),
    ("copy", "fetching"),
    ("copy", "extracting"),
    ("copy", "applying"),
    ("overlay", "fetching"),
    ("overlay", "mounting"),
]


@pytest.fixture
def here(tmp_path: Path, start_container: Start) -> Iterator[Sandboxed]:
    sandboxed = Sandboxed("direct", tmp_path, start_container(cap_drop=["ALL"]))
    for number in range(20):
        write(sandboxed.tree / f"dir{number % 4}" / f"file{number}", f"{number}\n")
    yield sandboxed
    anyio.run(sandboxed.service.close)


def damage(here: Sandboxed) -> None:
    write(here.tree / "dir0" / "file0", "changed\n")
    write(here.tree / "new", "new\n")


def do(here: Sandboxed, what: str, phase: str, backup_id: str, then: Callable[[], object], **options: Any) -> None:
    """Do something, and something else once it has come so far."""
    seen: list[str] = []

    async def report(progress: Progress) -> None:
        if progress.phase == phase and not seen:
            seen.append(phase)
            await anyio.to_thread.run_sync(then)

    try:
        if what == "create":
            here.run(here.service.create, here.dir, full=True, report=report)
        else:
            mode: Mode = "copy" if what == "copy" else "overlay"
            here.run(here.service.restore, backup_id, mode=mode, report=report, **options)
    finally:
        assert seen == [phase]


def assert_nothing_of(target: Target) -> None:
    state = target.state
    assert str(state) not in Path("/proc/self/mountinfo").read_text()
    wait_until(lambda: not loops_in(state), lambda: loops_in(state))


@pytest.mark.parametrize(("what", "phase"), PHASES)
def test_a_container_removed_in_the_middle_is_unavailable(
    here: Sandboxed, docker_engine: Engine, what: str, phase: str
) -> None:
    assert here.target is not None
    backup = here.create()
    damage(here)
    with pytest.raises(SandboxUnavailableError, match="was stopped, restarted or removed in the middle"):
        do(here, what, phase, backup.id, lambda: docker_engine.remove_container(here.target.id), undo=False)  # type: ignore[union-attr]
    assert [each.id for each in here.run(here.service.list).backups] == [backup.id]
    assert_nothing_of(here.target)
    with pytest.raises(InvalidBackupConfigError, match="is not there"):
        here.create()


@pytest.mark.parametrize(("what", "phase"), PHASES)
def test_after_a_restart_in_the_middle_all_goes_on(here: Sandboxed, what: str, phase: str) -> None:
    assert here.target is not None
    before = here.listing()
    backup = here.create()
    damage(here)
    with pytest.raises(SandboxUnavailableError, match="do it again"):
        do(here, what, phase, backup.id, lambda: here.target.container.restart(timeout=0))  # type: ignore[union-attr]
    here.restore(backup.id, undo=False)
    assert_same(before, here.listing())
    assert list((here.target.state / "work").iterdir()) == []
    assert_nothing_of(here.target)


def test_the_way_back_is_kept_when_the_container_goes_in_the_middle(here: Sandboxed) -> None:
    assert here.target is not None
    backup = here.create()
    damage(here)
    damaged = here.listing()
    with pytest.raises(SandboxUnavailableError, match="the state before is backup") as failure:
        do(here, "copy", "applying", backup.id, lambda: here.target.container.restart(timeout=0))  # type: ignore[union-attr]
    (undo,) = here.run(here.service.list, name="undo").backups
    assert undo.id in str(failure.value)
    here.restore(undo.id, undo=False)
    assert_same(damaged, here.listing())


@pytest.mark.parametrize(("what", "phase"), PHASES)
def test_a_paused_container_is_worked_on_as_others(here: Sandboxed, what: str, phase: str) -> None:
    assert here.target is not None
    before = in_whole_seconds(here.listing())
    backup = here.create()
    damage(here)
    damaged = here.listing()
    do(here, what, phase, backup.id, here.target.container.pause, undo=False)
    here.target.container.unpause()
    if what == "create":
        assert_same(damaged, here.listing())
    else:
        assert_same(before, in_whole_seconds(here.listing()))


def test_what_was_written_to_an_overlay_outlives_a_restart_until_it_is_pruned(
    here: Sandboxed, docker_engine: Engine
) -> None:
    assert here.target is not None
    below = here.listing()
    backup = here.create()
    left = leftovers(docker_engine, here.target, folders=(here.target.state,))
    undo_id = None
    here.restore(backup.id, mode="overlay", undo=False)
    write(here.tree / "on-top", "written")
    here.target.container.restart(timeout=0)

    assert_same(below, here.listing())
    assert_no_more_left(left, docker_engine, here.target, folders=(here.target.state,))
    (upper,) = (here.target.state / "overlays").glob("*/upper")
    assert (upper / "on-top").read_text() == "written"
    here.restore(backup.id, mode="overlay", undo=False)
    write(here.tree / "again", "written")
    undo_id = here.restore(backup.id, mode="overlay").undo_id
    here.target.container.restart(timeout=0)
    assert undo_id is not None
    here.restore(undo_id, mode="overlay", undo=False)
    assert (here.tree / "again").read_text() == "written"
    assert here.run(here.service.prune, dry_run=True).abandoned.count(here.dir) == 2
    here.run(here.service.prune)
    assert not upper.exists()
    assert (here.tree / "again").read_text() == "written"


def test_a_copy_and_a_commit_of_docker_see_what_lies_below_an_overlay(here: Sandboxed, docker_engine: Engine) -> None:
    assert here.target is not None
    backup = here.create()
    write(here.tree / "dir0" / "file0", "below\n")
    here.restore(backup.id, mode="overlay", undo=False)
    write(here.tree / "dir0" / "file0", "above\n")
    assert here.target.download(f"{here.dir}/dir0/file0") == b"below\n"
    image = here.target.container.commit()
    docker_engine.client.images.remove(str(image.id), force=True)
    assert here.target.read(f"{here.dir}/dir0/file0") == b"above\n"
    here.run(here.service.unmount, here.dir)
    assert here.target.read(f"{here.dir}/dir0/file0") == b"below\n"
