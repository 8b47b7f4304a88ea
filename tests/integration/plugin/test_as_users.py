"""One suite that uses all of the plugin, run by root and by an ordinary user, alone and by workers: the same outcomes.

What an ordinary user may not do, tests of theirs may not do either, whatever the plugin needs for itself.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, ROOT_WORKERS, USER, USER_WORKERS, WAYS, Way
from helpers.site import Site
from helpers.trees import assert_same

WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)

INI = """
[pytest]
sandbox_namespace = always
sandbox_checkpoint_dirs = every
addopts = --strict-markers -W error
"""

CONFTEST = """
import pytest
from pytest_sandpoint import checkpoint_fixture

built = checkpoint_fixture("data", scope="session")
workspace = checkpoint_fixture("work", scope="module")

@pytest.fixture(scope="session")
def database(built):
    (built.path / "database").write_text("built once\\n")
    return built

@pytest.fixture(scope="module")
def filled(database, sandbox_checkpoint_module, request):
    checkpoint = sandbox_checkpoint_module("data")
    (checkpoint.path / "module").write_text(request.module.__name__)
    return checkpoint
"""

NESTED = """
import os, sqlite3
import pytest

@pytest.fixture
def data(filled, sandbox_checkpoint):
    return sandbox_checkpoint("data")

@pytest.mark.parametrize("number", range(6))
def test_each_starts_from_both(data, number):
    assert (data.path / "database").read_text() == "built once\\n"
    assert (data.path / "module").read_text() == __name__
    assert not (data.path / "mine").exists()
    (data.path / "mine").write_text(str(number))
    (data.path / "database").unlink()
    (data.path / "src" / "app.py").rename(data.path / "moved.py")
    changes = data.changes()
    assert (changes.added, changes.modified, changes.removed) == (
        ("mine", "moved.py"), (), ("database", "src/app.py")
    )
    data.restore()
    assert (data.path / "database").exists()
    assert not data.changes().added

@pytest.fixture(scope="class")
def shared(filled, sandbox_checkpoint_class):
    checkpoint = sandbox_checkpoint_class("data")
    (checkpoint.path / "class").mkdir()
    return checkpoint

class TestClass:
    def test_sees_what_the_class_has_built(self, shared):
        assert (shared.path / "class").is_dir()

    def test_sees_it_again(self, shared, sandbox_checkpoint):
        inner = sandbox_checkpoint("data")
        (inner.path / "class").rmdir()
        assert inner.changes().removed == ("class",)
        assert shared.changes().removed == ()

def test_the_class_is_gone(data):
    assert not (data.path / "class").exists()
"""

OTHER_MODULE = """
import os, pathlib, shutil, subprocess, sys
import pytest

def test_its_module_is_in_the_data(filled):
    assert (filled.path / "module").read_text() == "test_other"

@pytest.mark.sandbox_checkpoint("work")
def test_a_marked_test_may_write():
    pathlib.Path("work/written").touch()
    shutil.rmtree("work/sub")

@pytest.mark.sandbox_checkpoint("work")
def test_another_finds_it_as_it_was():
    assert sorted(os.listdir("work")) == ["file", "sub"]
    assert os.listdir("work/sub") == ["deep"]

@pytest.mark.parametrize("number", range(4))
def test_the_directories_of_the_ini_file_come_back(number):
    assert os.listdir("every") == ["kept"]
    pathlib.Path("every", f"new{number}").touch()
    pathlib.Path("every/kept").unlink()

def test_children_see_what_the_test_has_written(sandbox_checkpoint):
    box = sandbox_checkpoint("work")
    (box.path / "written").write_text("by the test")
    program = "import sys; print(open(sys.argv[1]).read()); open(sys.argv[1], 'w').write('by the child')"
    done = subprocess.run([sys.executable, "-c", program, str(box.path / "written")], capture_output=True, text=True)
    assert done.stdout == "by the test\\n"
    assert (box.path / "written").read_text() == "by the child"

def test_a_backup_is_a_state_to_start_from(sandbox_checkpoint):
    box = sandbox_checkpoint("work")
    (box.path / "prepared").write_text("with much effort\\n")
    saved = box.save(name="prepared")
    box.restore()
    assert not (box.path / "prepared").exists()
    again = sandbox_checkpoint(backup_id=saved.id)
    assert (again.path / "prepared").read_text() == "with much effort\\n"
    (again.path / "prepared").unlink()
    again.restore()
    assert (again.path / "prepared").exists()

def test_after_the_backup(workspace):
    assert sorted(os.listdir(workspace.path)) == ["file", "sub"]

def test_that_fails(sandbox_checkpoint):
    assert sandbox_checkpoint("work").changes().added == ("never",)

def test_that_is_wrong(sandbox_checkpoint):
    sandbox_checkpoint("missing")

@pytest.mark.skip
@pytest.mark.sandbox_checkpoint("work")
def test_that_is_skipped():
    pass

@pytest.mark.xfail
def test_that_is_known_to_fail(sandbox_checkpoint):
    sandbox_checkpoint("work").path.joinpath("missing").read_text()
"""


def make_site(base: Path, way: Way) -> Site:
    site = Site(base, is_root=way.is_root)
    for path, text in (("work/file", "1\n"), ("work/sub/deep", "2\n"), ("every/kept", "3\n")):
        (site.project / path).parent.mkdir(parents=True, exist_ok=True)
        (site.project / path).write_text(text)
    site.write("pytest.ini", INI)
    return site


def outcomes(site: Site, way: Way) -> dict[str, str]:
    """Run the suite; return the outcome of each test."""
    report = site.home / "report.xml"
    with site.start_way(way, f"--junit-xml={report}") as run:
        run.end()
    assert report.exists(), run.text
    found = {}
    for case in ET.parse(report).iter("testcase"):
        told = sorted({part.tag for part in case} & {"failure", "error", "skipped"})
        found[f"{case.get('classname')}::{case.get('name')}"] = "+".join(told) or "passed"
    unexpected = {name for name, how in found.items() if how != "passed"} - set(NOT_PASSED)
    assert not unexpected, run.text
    return found


NOT_PASSED = {
    "test_other::test_that_fails": "failure",
    "test_other::test_that_is_wrong": "failure",
    "test_other::test_that_is_skipped": "skipped",
    "test_other::test_that_is_known_to_fail": "skipped",
}


@WAY
def test_the_suite_has_the_same_outcomes_however_it_is_run(tmp_path: Path, way: Way) -> None:
    site = make_site(tmp_path, way)
    site.write("conftest.py", CONFTEST)
    site.write("test_nested.py", NESTED)
    site.write("test_other.py", OTHER_MODULE)
    project = site.listing_of(site.project)
    found = outcomes(site, way)
    assert len(found) == 23
    assert {name: how for name, how in found.items() if how != "passed"} == NOT_PASSED
    assert_same(project, site.listing_of(site.project))
    assert site.leftovers() == []
    assert site.mounts() == []
    assert site.processes() == {}


PERMISSIONS = """
import json, os, pathlib, subprocess, sys
import pytest

STATUS = "print(open('/proc/self/status').read())"

def capabilities(status):
    lines = dict(line.split(":\\t", 1) for line in status.splitlines() if line.startswith("Cap"))
    return {name: int(text, 16) for name, text in lines.items()}

def forked():
    "The capabilities of a child by fork alone."
    hears, told = os.pipe()
    if os.fork() == 0:
        os.write(told, open("/proc/self/status").read().encode())
        os._exit(0)
    os.wait()
    return capabilities(os.read(hears, 1 << 16).decode())

def check(folder):
    closed = folder / "closed"
    closed.write_text("secret")
    closed.chmod(0)
    with pytest.raises(PermissionError):
        closed.read_text()
    assert not os.access(closed, os.R_OK)
    assert not os.access(closed, os.W_OK)
    assert os.access(folder, os.W_OK)
    assert subprocess.run(["cat", str(closed)], capture_output=True).returncode != 0
    shut = folder / "shut"
    shut.mkdir(mode=0)
    with pytest.raises(PermissionError):
        os.listdir(shut)
    with pytest.raises(PermissionError):
        (shut / "new").touch()
    with pytest.raises(PermissionError):
        pathlib.Path("/etc/of-nobody").touch()
    with pytest.raises(OSError):  # EINVAL in a user namespace, which knows no other users
        os.chown(closed, 0, 0)
    with pytest.raises(PermissionError):
        os.mknod(folder / "device", 0o20600, os.makedev(1, 3))

def check_capabilities():
    own = capabilities(open("/proc/self/status").read())
    assert (own["CapEff"], own["CapInh"], own["CapAmb"]) == (0, 0, 0)
    child = forked()
    assert (child["CapEff"], child["CapInh"], child["CapAmb"]) == (0, 0, 0)
    done = subprocess.run([sys.executable, "-c", STATUS], capture_output=True, text=True)
    started = capabilities(done.stdout)
    assert [started[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert "SANDPOINT_WORKERS_PREPARED" not in os.environ
    assert os.getresuid() == (61234,) * 3 and os.getresgid() == (61234,) * 3

def test_before_any_checkpoint(tmp_path):
    check_capabilities()
    check(tmp_path)

@pytest.mark.parametrize("number", range(4))
def test_on_the_directory(sandbox_checkpoint, number):
    box = sandbox_checkpoint("data", strategy=os.environ["STRATEGY"])
    assert box.strategy == os.environ["STRATEGY"]
    check_capabilities()
    check(box.path)
    box.path.joinpath("closed").chmod(0o600)
    box.path.joinpath("shut").chmod(0o700)
    assert "closed" in box.changes().added
    box.restore()
    check_capabilities()
    check(box.path)
    box.path.joinpath("README.md").chmod(0)
    with pytest.raises(PermissionError):
        box.path.joinpath("README.md").read_text()
    if box.strategy == "copy":
        box.path.joinpath("README.md").chmod(0o644)
        box.path.joinpath("closed").chmod(0o600)
        box.path.joinpath("shut").chmod(0o700)
"""


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
@pytest.mark.parametrize("way", [USER, USER_WORKERS], ids=lambda way: way.name)
def test_permissions_hold_for_an_ordinary_user(tmp_path: Path, way: Way, strategy: str) -> None:
    site = Site(tmp_path, is_root=False)
    site.write("test_it.py", PERMISSIONS)
    with site.start_way(way, "--sandbox-namespace=always", env={"STRATEGY": strategy}) as run:
        assert run.end() == 0, run.text
    assert "5 passed" in run.text
    assert_same(site.before, site.listing())
    assert site.leftovers() == []


NOT_HINDERED = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(sandbox_checkpoint, number):
    box = sandbox_checkpoint("data", strategy="overlay")
    (box.path / "closed").write_text("secret")
    (box.path / "closed").chmod(0)
    assert (box.path / "closed").read_text() == "secret"
    os.chown(box.path / "closed", 1, 2)
    os.mknod(box.path / "device", 0o20600, os.makedev(1, 3))
"""


@pytest.mark.parametrize("way", [ROOT, ROOT_WORKERS], ids=lambda way: way.name)
def test_root_stays_root(tmp_path: Path, way: Way) -> None:
    site = Site(tmp_path)
    site.write("test_it.py", NOT_HINDERED)
    with site.start_way(way) as run:
        assert run.end() == 0, run.text
    assert_same(site.before, site.listing())


HELD = """
import os, pytest, signal
from pytest_sandpoint import SandboxCheckpointWarning

@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_it(sandbox_checkpoint, strategy):
    box = sandbox_checkpoint("data", strategy=strategy)
    hears, told = os.pipe()
    child = os.fork()
    if child == 0:
        held = open(box.path / "held", "w")
        os.write(told, b"x")
        signal.pause()
    os.read(hears, 1)
    try:
        with pytest.warns(SandboxCheckpointWarning, match=rf"process {child} \\(.*\\) has .*/data/held open"):
            box.restore()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


@WAY
def test_a_forked_child_that_holds_a_file_is_named(tmp_path: Path, way: Way) -> None:
    """A child by fork alone has the capabilities of the test process, and may look closed to it."""
    site = Site(tmp_path, is_root=way.is_root)
    site.write("test_it.py", HELD)
    with site.start_way(way, "--sandbox-namespace=always") as run:
        assert run.end() == 0, run.text
    assert_same(site.before, site.listing())
