"""What a killed run by copy leaves is brought back by its guardian; if that was killed too, by a command."""

import os
import re
import shlex
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.place import tmpfs
from helpers.rollback_killer import RollbackKiller, Who
from helpers.site import Site, wait_until
from helpers.trees import assert_same, differences
from helpers.waiting import assert_nothing_left, make_site, start, wait_until_changed
from pytest_sandpoint.guardian import main


@pytest.fixture(params=[True, False], ids=["root", "user"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return make_site(tmp_path, is_root=request.param)


def kill_with_guardian(site: Site) -> None:
    """Start a run by copy and kill it together with its guardian, so that the directory stays changed."""
    with start(site, "copy") as run:
        wait_until_changed(site, run, "copy")
        [guardian] = site.guardians()
        os.kill(guardian, signal.SIGKILL)
        os.kill(run.process.pid, signal.SIGKILL)
        run.end()
    wait_until(lambda: not site.processes(), site.processes)
    assert differences(site.before, site.listing())
    site.write("test_it.py", NEXT)


NEXT = """
from changes import is_clean
import pathlib

def test_next(sandbox_checkpoint):
    path = pathlib.Path("data")
    was_clean = is_clean(path)
    sandbox_checkpoint("data", strategy="copy")
    print("clean" if was_clean else "changed")
    (path / "of the next").touch()
"""

TOLD = re.compile(r"was killed has left (\S+) changed; bring it back with '([^']+)'.* remove the folder (\S+)")


def read_message(site: Site) -> tuple[str, str]:
    """Let the next run fail, and return the command and the folder that it names."""
    with site.start("--tb=short") as run:
        assert run.end() == pytest.ExitCode.TESTS_FAILED, run.text
    told = TOLD.search(run.text)
    assert told, run.text
    assert told[1] == str(site.data)
    return told[2], told[3]


def test_without_guardian_the_next_run_names_the_command_that_brings_the_directory_back(site: Site) -> None:
    kill_with_guardian(site)
    changed = site.listing()
    command, _ = read_message(site)
    assert_same(changed, site.listing())
    with site.start_program(shlex.split(command)) as by_hand:
        assert by_hand.end() == 0, by_hand.text
    assert by_hand.text == ""
    assert_nothing_left(site)
    with site.start("-s") as run:
        assert run.end() == 0, run.text
    assert "clean" in run.text
    assert_nothing_left(site)


def test_without_guardian_the_directory_is_kept_as_it_is_by_removing_the_run(site: Site) -> None:
    kill_with_guardian(site)
    changed = site.listing()
    _, folder = read_message(site)
    shutil.rmtree(folder)
    with site.start("-s") as run:
        assert run.end() == 0, run.text
    assert "changed" in run.text
    assert_same(changed, site.listing())
    wait_until(lambda: not site.processes(), site.processes)
    assert site.leftovers() == []


def test_the_command_refuses_a_run_that_goes_on(site: Site) -> None:
    with start(site, "copy") as run:
        wait_until_changed(site, run, "copy")
        [folder] = (site.state / "pytest" / "runs").iterdir()
        changed = site.listing()
        with site.start_program([sys.executable, "-m", "pytest_sandpoint.guardian", str(folder)]) as by_hand:
            assert by_hand.end() == 1
        assert f"{folder} belongs to a run that goes on" in by_hand.text
        assert_same(changed, site.listing())
        site.signal("go")
        assert run.end() == 0, run.text
    assert_nothing_left(site)


def test_the_command_leaves_alone_what_is_no_run(tmp_path: Path) -> None:
    site = make_site(tmp_path, is_root=True)
    with site.start_program([sys.executable, "-m", "pytest_sandpoint.guardian", str(site.data)]) as by_hand:
        assert by_hand.end() == 1
    assert f"{site.data} is no folder of a run" in by_hand.text
    assert_same(site.before, site.listing())


# -- at any moment of a roll-back --

MOST_CHANGES = 200


@pytest.mark.parametrize("who", ["run", "guardian"])
@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["one mount", "state on another mount"])
def test_a_roll_back_killed_at_any_moment_is_completed_by_the_guardian_or_by_hand(
    tmp_path: Path, is_elsewhere: bool, who: Who
) -> None:
    """On another mount, files are staged in a folder inside the directory."""
    with ExitStack() as stack:
        if is_elsewhere:
            (tmp_path / "project").mkdir()
            stack.enter_context(tmpfs(tmp_path / "project"))
        site = Site(tmp_path)
        killer = stack.enter_context(RollbackKiller(site.state))
        for at in range(1, MOST_CHANGES):
            guarded = who == "run" and at % 10 == 1
            was_killed, folder = killer.kill(who, site.data, at=at, guarded=guarded)
            if guarded:
                wait_until(lambda: not site.guardians(), site.processes)
            else:
                assert main([folder]) == 0
            assert_same(site.before, site.listing())
            assert site.leftovers() == []
            if not was_killed:
                break
        assert 30 < at < MOST_CHANGES - 1


def test_a_claim_that_vanishes_meanwhile_is_none_of_the_guardians_business(tmp_path: Path) -> None:
    """Other runs release theirs while it looks for its own."""
    site = make_site(tmp_path, is_root=True)
    with start(site, "copy") as run:
        wait_until_changed(site, run, "copy")
        vanished = site.state / "pytest" / "directories" / "0"
        vanished.symlink_to("nowhere")
        os.kill(run.process.pid, signal.SIGKILL)
        run.end()
    wait_until(lambda: not site.processes(), site.processes)
    vanished.unlink()
    assert_nothing_left(site)
