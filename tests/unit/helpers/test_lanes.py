"""Workers of pytest-xdist that end in the middle of a test."""

import os
import sys
from collections import Counter

import pytest

from helpers.lanes import lane_of
from helpers.pytest_runs import Way, run

WORKERS = Way("root-n3", is_root=True, workers=3)

CONFTEST = """
from helpers.lanes import Lanes

def pytest_xdist_make_scheduler(config, log):
    return Lanes(config, log)
"""

ENDS = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    with open("ran", "a") as file:
        print(os.environ["PYTEST_CURRENT_TEST"].split(" ")[0], os.getpid(), file=file)
    if number == ENDS_AT:
        os._exit(1)
"""


@pytest.mark.parametrize("at", [0, 5])
def test_what_ended_workers_leave_is_run_by_others_and_every_test_once(pytester: pytest.Pytester, at: int) -> None:
    pytester.makeconftest(CONFTEST)
    files = {f"test_ends{number}": ENDS.replace("ENDS_AT", str(at)) for number in range(4)}
    pytester.makepyfile(**files, test_whole=ENDS.replace("ENDS_AT", "None"))
    result = run(pytester, WORKERS, "-q", env={"PYTHONPATH": os.pathsep.join(sys.path)})

    result.assert_outcomes(failed=4, passed=26)
    ran = Counter(line.split()[0] for line in (pytester.path / "ran").read_text().splitlines())
    assert len(ran) == 30
    assert set(ran.values()) == {1}
    failed = {line.split()[1] for line in result.outlines if line.startswith("FAILED ")}
    assert failed == {f"test_ends{number}.py::test_it[{at}]" for number in range(4)}


def test_a_file_is_run_by_one_worker(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**{f"test_{number}": ENDS.replace("ENDS_AT", "None") for number in range(5)})
    run(pytester, WORKERS, env={"PYTHONPATH": os.pathsep.join(sys.path)}).assert_outcomes(passed=30)
    lines = (pytester.path / "ran").read_text().splitlines()
    assert len({(line.partition("::")[0], line.split()[1]) for line in lines}) == 5


@pytest.mark.parametrize(
    ("test", "lane"),
    [
        ("tests/unit/engine/test_walk.py::test_it[a::b]", "tests/unit/engine/test_walk.py"),
        ("tests/integration/docker/test_doors.py::test_it", "docker"),
        ("tests/unit/sandboxes/docker/test_unpack.py::test_it", "docker"),
        ("tests/e2e/test_examples.py::test_a_database_in_a_container_is_rolled_back", "docker"),
        ("tests/e2e/test_examples.py::test_the_best_of_several_forks_is_taken", "tests/e2e/test_examples.py"),
    ],
)
def test_what_uses_the_engine_is_one_lane(test: str, lane: str) -> None:
    assert lane_of(test) == lane
