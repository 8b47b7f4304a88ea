"""A suite of which each test changes the protected directory and then waits, so that it can be interrupted there."""

from pathlib import Path

from helpers.site import Site, Started, wait_until
from helpers.trees import assert_same, differences

CHANGES = """
import os, shutil

def is_clean(data):
    return sorted(os.listdir(data)) == ["README.md", "empty", "link", "run.sh", "src"] and (
        (data / "README.md").read_text() == "# read me\\n" and os.listdir(data / "src" / "lib") == ["util.py"]
    )

def change(data, name="new"):
    (data / name).write_text("new")
    (data / "README.md").write_text("changed")
    (data / "run.sh").chmod(0o600)
    shutil.rmtree(data / "src" / "lib")
    (data / "link").unlink()
    (data / "link").mkdir()
    (data / "link" / "now a folder").touch()
    (data / "empty").rmdir()
    (data / "empty").touch()
"""

TESTS = """
import os, pytest
from changes import change, is_clean
from signals import signal, wait_for

@pytest.mark.parametrize("number", range(int(os.environ["TESTS"])))
def test_that_waits(number, sandbox_checkpoint):
    data = sandbox_checkpoint("data", strategy=os.environ["STRATEGY"]).path
    assert is_clean(data)
    change(data)
    signal(f"ready{number}")
    wait_for("go")
"""


def make_site(base: Path, *, is_root: bool) -> Site:
    site = Site(base, is_root=is_root)
    site.write("changes.py", CHANGES)
    site.write("test_it.py", TESTS)
    return site


def start(site: Site, strategy: str, *, workers: int = 0) -> Started:
    """Start as many tests as there are workers, each of which changes the directory and waits."""
    arguments = ("-n", str(workers), "--sandbox-namespace=always") if workers else ()
    return site.start(*arguments, env={"STRATEGY": strategy, "TESTS": str(workers or 1)})


def wait_until_changed(site: Site, run: Started, strategy: str, *, workers: int = 0) -> list[int]:
    """Wait for the tests, and return the processes that have changed the directory: by copy only one can at a time."""
    if workers and strategy == "copy":
        wait_until(lambda: list(site.signals.glob("ready?")) or run.process.poll() is not None, lambda: run.text)
        [ready] = site.signals.glob("ready?")
        pids = site.wait_for(ready.name, by=run)
    else:
        pids = site.wait_for(*(f"ready{number}" for number in range(workers or 1)), by=run)
    assert bool(differences(site.before, site.listing())) == (strategy == "copy"), run.text
    return pids


def assert_nothing_left(site: Site) -> None:
    """Wait for the guardians' end, after which all must be as before the run."""
    wait_until(lambda: not site.processes(), site.processes)
    assert site.mounts() == [], site.mounts()
    assert_same(site.before, site.listing())
    assert site.leftovers() == [], site.leftovers()
