"""Several processes that protect one directory at a time: by copy they take turns, by overlay each has its own."""

from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT_WORKERS, USER_WORKERS, Way
from helpers.site import Site, Started, wait_until
from helpers.trees import assert_same

# What is told of a claim that has to wait, so that the tests need not guess it from the time that passes.
CONFTEST = """
import os
from pytest_sandpoint import runs
from signals import signal

try_once = runs.Claim._try

def tell(self, directory):
    has_it = try_once(self, directory)
    if not has_it:
        signal(f"{os.environ['NAME']} waits")
    return has_it

runs.Claim._try = tell
runs.CLAIM_WAIT_S = float(os.environ.get("CLAIM_WAIT_S", "60"))
"""

ALONE = """
import os
from contextlib import contextmanager

INITIAL = ["README.md", "empty", "link", "run.sh", "src"]

@contextmanager
def alone(data):
    "Fail if another test is in the directory at the same time, or what another has written is there."
    lock = os.path.join(os.environ["SIGNALS"], "lock")
    os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
    assert sorted(os.listdir(data)) == INITIAL
    (data / f"new {os.getpid()}").touch()
    (data / "run.sh").unlink()
    yield
    assert sorted(os.listdir(data)) == sorted({*INITIAL, f"new {os.getpid()}"} - {"run.sh"})
    os.unlink(lock)
"""

FUNCTIONS = """
import os, pytest
from alone import alone
from signals import signal, wait_for

@pytest.mark.parametrize("number", range(5))
def test_it(number, sandbox_checkpoint):
    with alone(sandbox_checkpoint("data", strategy="copy").path):
        signal(f"{os.environ['NAME']} is in")
        wait_for("go")
"""

SESSION = """
import os
from alone import alone
from signals import signal, wait_for

def test_it(sandbox_checkpoint_session):
    with alone(sandbox_checkpoint_session("data", strategy="copy").path):
        signal(f"{os.environ['NAME']} is in")
        wait_for("go")

def test_after(sandbox_checkpoint_session):
    pass
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.write("alone.py", ALONE)
    return site


def start(site: Site, name: str, **env: str) -> Started:
    return site.start(env={"NAME": name, **env})


def assert_passed(run: Started, tests: int) -> None:
    assert run.end() == 0, run.text
    assert f"{tests} passed" in run.text, run.text


def test_two_runs_by_copy_take_turns(site: Site) -> None:
    site.write("conftest.py", CONFTEST)
    site.write("test_it.py", FUNCTIONS)
    with start(site, "first") as first:
        site.wait_for("first is in", by=first)
        with start(site, "second") as second:
            site.wait_for("second waits", by=second)
            assert not site.has("second is in")
            site.signal("go")
            assert_passed(first, 5)
            assert_passed(second, 5)
    assert_same(site.before, site.listing())
    assert site.leftovers() == []
    assert site.processes() == {}


def test_a_run_waits_for_the_whole_session_of_another(site: Site) -> None:
    site.write("conftest.py", CONFTEST)
    site.write("test_it.py", SESSION)
    with start(site, "first") as first, start(site, "second") as second:
        # Whichever comes first has it until its session ends.
        wait_until(lambda: site.has("first waits") or site.has("second waits"), lambda: first.text + second.text)
        wait_until(lambda: site.has("first is in") or site.has("second is in"), lambda: first.text + second.text)
        assert not (site.has("first is in") and site.has("second is in"))
        site.signal("go")
        assert_passed(first, 2)
        assert_passed(second, 2)
    assert_same(site.before, site.listing())
    assert site.leftovers() == []


def test_a_run_that_has_waited_too_long_says_for_what(site: Site) -> None:
    site.write("conftest.py", CONFTEST)
    site.write("test_it.py", SESSION)
    with start(site, "first") as first:
        site.wait_for("first is in", by=first)
        with start(site, "second", CLAIM_WAIT_S="1") as second:
            assert second.end() == pytest.ExitCode.TESTS_FAILED
        told = f"another run of pytest has had a checkpoint of {site.data} for 1 s; wait for its end"
        assert told in second.text
        assert "1 failed, 1 passed" in second.text
        site.signal("go")
        assert_passed(first, 2)
    assert_same(site.before, site.listing())
    assert site.leftovers() == []


OWN_VERSIONS = """
import os, pytest
from signals import signal, wait_for

ALL = [f"written {name}" for name in os.environ["NAMES"].split()]

@pytest.mark.parametrize("number", range(int(os.environ["TESTS"])))
def test_it(number, sandbox_checkpoint):
    box = sandbox_checkpoint("data", strategy="overlay")
    name = os.environ.get("NAME", str(number))
    (box.path / "README.md").write_text(name)
    (box.path / f"only {name}").touch()
    signal(f"written {name}")
    wait_for(*ALL)
    assert (box.path / "README.md").read_text() == name
    assert [path for path in os.listdir(box.path) if path.startswith("only")] == [f"only {name}"]
    box.restore()
    assert (box.path / "README.md").read_text() == "# read me\\n"
    signal(f"restored {name}")
    wait_for(*ALL, *(each.replace("written", "restored") for each in ALL))
"""


def test_two_runs_by_overlay_see_their_own_versions_at_once(site: Site) -> None:
    site.write("test_it.py", OWN_VERSIONS)
    env = {"NAMES": "first second", "TESTS": "1"}
    with start(site, "first", **env) as first, start(site, "second", **env) as second:
        assert_passed(first, 1)
        assert_passed(second, 1)
    assert_same(site.before, site.listing())
    assert site.leftovers() == []


@pytest.mark.parametrize("way", [ROOT_WORKERS, USER_WORKERS], ids=lambda way: way.name)
def test_four_workers_by_overlay_see_their_own_versions_at_once(tmp_path: Path, way: Way) -> None:
    site = Site(tmp_path, is_root=way.is_root)
    site.write("test_it.py", OWN_VERSIONS)
    env = {"NAMES": "0 1 2 3", "TESTS": "4"}
    with site.start_way(way, "--sandbox-namespace=always", env=env) as run:
        assert len(set(site.wait_for(*(f"written {number}" for number in range(4)), by=run))) == 4
        assert_same(site.before, site.listing())
        assert_passed(run, 4)
    assert site.mounts() == []
    assert_same(site.before, site.listing())


MANY = """
import os, pytest
from alone import alone

@pytest.mark.parametrize("number", range(40))
def test_it(number, sandbox_checkpoint):
    with alone(sandbox_checkpoint("data", strategy="copy").path):
        open(os.path.join(os.environ["SIGNALS"], f"by {os.getpid()}"), "w").close()
"""


@pytest.mark.parametrize("way", [ROOT_WORKERS, USER_WORKERS], ids=lambda way: way.name)
def test_four_workers_by_copy_take_turns(tmp_path: Path, way: Way) -> None:
    site = Site(tmp_path, is_root=way.is_root)
    site.write("alone.py", ALONE)
    site.write("test_it.py", MANY)
    with site.start_way(way) as run:
        assert_passed(run, 40)
    assert len(list(site.signals.glob("by *"))) == 4
    assert_same(site.before, site.listing())
    assert site.leftovers() == []
    assert site.processes() == {}
