"""A process killed at moments of an operation on a container: the next one heals, and the way back is there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.docker import Engine, Target
from helpers.killer import KillerProcess, points
from helpers.kinds import Sandboxed, opened
from helpers.place import loops_in
from helpers.site import wait_until
from helpers.trees import assert_same, in_whole_seconds, write

Start = Callable[..., Target]


@pytest.fixture(scope="module")
def killer(docker_engine: Engine) -> Iterator[KillerProcess]:
    with KillerProcess() as process:
        yield process


@pytest.fixture
def here(tmp_path: Path, start_container: Start) -> Iterator[Sandboxed]:
    with opened("direct", tmp_path, start_container) as sandboxed:
        for number in range(9):
            write(sandboxed.tree / f"dir{number % 3}" / f"file{number}", f"{number}\n")
        yield sandboxed


def damage(tree: Path) -> None:
    write(tree / "dir0" / "file0", "changed\n")
    write(tree / "new" / "file", "new\n")
    (tree / "dir1" / "file1").unlink(missing_ok=True)


def own_mounts(here: Sandboxed) -> list[str]:
    assert here.target is not None
    return [line.point for line in here.target.mounts() if line.source.startswith("sandpoint-")]


def assert_healed(here: Sandboxed, *, overlays: int) -> None:
    """Fail if anything is left that only a running operation may have."""
    assert here.target is not None
    state = here.target.state
    assert list((state / "work").iterdir()) == []
    assert len(list((state / "overlays").iterdir())) == overlays
    assert [path.name for path in here.tree.iterdir() if path.name.startswith(".sandpoint")] == []
    assert own_mounts(here) == [here.dir] * overlays
    assert f"{state}/" not in Path("/proc/self/mountinfo").read_text()
    wait_until(lambda: overlays > 0 or not loops_in(state), lambda: loops_in(state))


def killed(here: Sandboxed, killer: KillerProcess, number: int, step: int, what: str, *of: str, **options: Any) -> bool:
    """Run an operation that is killed before one of its changes, every `step`th of which is tried."""
    assert here.target is not None
    at = 1 + (number - 1) * step
    way = (here.target.sandbox, "direct")
    return killer.run(here.base, here.base / "state", what, *of, at=at, sandbox=way, **options)


def test_a_backup(here: Sandboxed, killer: KillerProcess) -> None:
    before = here.listing()

    def killed_at(number: int) -> bool:
        was_killed = killed(here, killer, number, 7, "create", here.dir, full=True)
        for backup in here.run(here.service.list).backups:
            assert here.run(here.service.verify, backup.id).ok
        here.create()
        assert_healed(here, overlays=0)
        return was_killed

    assert points(killed_at) > 3
    assert_same(before, here.listing())


def test_a_copy_restore(here: Sandboxed, killer: KillerProcess) -> None:
    before = here.listing()
    backup = here.create()

    def killed_at(number: int) -> bool:
        damage(here.tree)
        was_killed = killed(here, killer, number, 6, "restore", backup.id, mode="copy", undo=False)
        here.diff(backup.id)
        assert_healed(here, overlays=0)
        here.restore(backup.id, undo=False)
        assert_same(before, here.listing())
        return was_killed

    assert points(killed_at) > 3


def test_an_overlay_restore_in_place_of_another(here: Sandboxed, killer: KillerProcess) -> None:
    backup = here.create()
    shown = in_whole_seconds(here.listing())

    def killed_at(number: int) -> bool:
        here.restore(backup.id, mode="overlay", undo=False)
        damage(here.tree)
        damaged = in_whole_seconds(here.listing())
        was_killed = killed(here, killer, number, 7, "restore", backup.id, mode="overlay")
        here.diff(backup.id)
        assert_healed(here, overlays=1)
        now = in_whole_seconds(here.listing())
        if now != damaged:
            assert_same(shown, now)
            undo = here.run(here.service.list, name="undo").backups[0]
            here.restore(undo.id, mode="overlay", undo=False)
            assert (here.tree / "new" / "file").read_text() == "new\n"
        return was_killed

    assert points(killed_at) > 3


def test_an_unmount(here: Sandboxed, killer: KillerProcess) -> None:
    below = here.listing()
    backup = here.create()

    def killed_at(number: int) -> bool:
        here.restore(backup.id, mode="overlay", undo=False)
        write(here.tree / "on-top", "written")
        was_killed = killed(here, killer, number, 4, "unmount", here.dir)
        here.diff(backup.id)
        is_there = bool(own_mounts(here))
        assert_healed(here, overlays=int(is_there))
        if is_there:
            assert (here.tree / "on-top").read_text() == "written"
            here.run(here.service.unmount, here.dir)
        assert_same(below, here.listing())
        return was_killed

    assert points(killed_at) > 3
