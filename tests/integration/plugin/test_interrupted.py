"""Runs that are interrupted or killed in the middle of a test: nothing is left of them, and the directory is intact."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.site import Site
from helpers.trees import assert_same
from helpers.waiting import assert_nothing_left, make_site, start, wait_until_changed

STRATEGIES = ("overlay", "copy")


@pytest.fixture(params=[True, False], ids=["root", "user"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return make_site(tmp_path, is_root=request.param)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ctrl_c_rolls_back_and_says_so(site: Site, strategy: str) -> None:
    with start(site, strategy) as run:
        wait_until_changed(site, run, strategy)
        assert site.mounts() == []
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == pytest.ExitCode.INTERRUPTED, run.text
        assert "KeyboardInterrupt" in run.text
        assert_same(site.before, site.listing())
        assert_nothing_left(site)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_run_leaves_nothing(site: Site, strategy: str, number: signal.Signals) -> None:
    with start(site, strategy) as run:
        wait_until_changed(site, run, strategy)
        os.kill(run.process.pid, number)
        assert run.end() == -number, run.text
        assert_nothing_left(site)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ctrl_c_ends_all_workers_and_rolls_back(site: Site, strategy: str) -> None:
    with start(site, strategy, workers=2) as run:
        wait_until_changed(site, run, strategy, workers=2)
        assert site.mounts() == []
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == pytest.ExitCode.INTERRUPTED, run.text
        assert_nothing_left(site)


def test_workers_whose_controller_was_killed_leave_nothing(tmp_path: Path) -> None:
    """It takes execnet's workers 15 s to stop a test, so all wait side by side."""
    with ExitStack() as stack:
        sites = []
        for is_root, number in ((True, signal.SIGKILL), (False, signal.SIGTERM)):
            for strategy in STRATEGIES:
                site = make_site(tmp_path / f"{strategy}-{number}", is_root=is_root)
                run = stack.enter_context(start(site, strategy, workers=2))
                wait_until_changed(site, run, strategy, workers=2)
                os.kill(run.process.pid, number)
                assert run.end() == -number, run.text
                sites.append(site)
        for site in sites:
            assert_nothing_left(site)


def test_the_queue_of_killed_workers_goes_with_the_next_run(tmp_path: Path) -> None:
    site = make_site(tmp_path, is_root=True)
    queues = site.state / "pytest" / "queues"
    with start(site, "copy", workers=2) as run:
        wait_until_changed(site, run, "copy", workers=2)
        assert len(list(queues.iterdir())) == 1
        os.killpg(run.process.pid, signal.SIGKILL)
        run.end()
        assert_nothing_left(site)
    site.signal("go")
    with start(site, "copy", workers=2) as run:
        assert run.end() == 0, run.text
    assert list(queues.iterdir()) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_process_group_killed_at_once_leaves_nothing(site: Site, strategy: str) -> None:
    with start(site, strategy, workers=2) as run:
        wait_until_changed(site, run, strategy, workers=2)
        os.killpg(run.process.pid, signal.SIGKILL)
        assert run.end() == -signal.SIGKILL, run.text
        assert_nothing_left(site)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_worker_leaves_nothing_to_the_others(site: Site, strategy: str) -> None:
    with start(site, strategy, workers=2) as run:
        [pid, *_] = wait_until_changed(site, run, strategy, workers=2)
        os.kill(pid, signal.SIGKILL)
        site.signal("go")
        assert run.end() == pytest.ExitCode.TESTS_FAILED, run.text
        assert "1 failed, 1 passed" in run.text, run.text
        assert "crashed while running 'test_it.py::test_that_waits[" in run.text
        assert_nothing_left(site)
