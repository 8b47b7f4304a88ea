"""The pytest plugin's fixtures for directories in containers, in runs of pytest of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.docker import Engine, Target
from helpers.pytest_runs import QUIET, ROOT, ROOT_WORKERS, run
from helpers.site import wait_until
from pytest_sandpoint.containers import OWNER_LABEL

Start = Callable[..., Target]

SLEEPS = "command=['/bin/sleep', '1000000'], network_mode='none'"


@pytest.fixture
def box(start_container: Start) -> Target:
    """A running container with a file in `/workspace/data`."""
    target = start_container()
    target.write("/workspace/data/kept", "kept\n")
    return target


def throw_aways(engine: Engine) -> set[str]:
    found = engine.client.api.containers(all=True, filters={"label": OWNER_LABEL})
    return {each["Id"] for each in found}


def assert_gone(engine: Engine, pytester: pytest.Pytester) -> None:
    """Fail if a container is there that a test noted in the file `ids`."""
    noted = {line.split()[0] for line in (pytester.path / "ids").read_text().splitlines()}
    assert noted
    assert not noted & throw_aways(engine)


def writes(pytester: pytest.Pytester, target: Target, body: str) -> None:
    """Make tests that find `path`, the directory in the container as this machine sees it."""
    pytester.makepyfile(
        test_it=f"""
import os, pytest
from pathlib import Path

SANDBOX = {target.sandbox!r}
path = Path({str(target.root)!r}) / "workspace/data"

{body}
"""
    )


ROLLS_BACK = """
@pytest.mark.parametrize("number", range(3))
def test_it(sandbox_checkpoint, number):
    checkpoint = sandbox_checkpoint("/workspace/data", sandbox=SANDBOX{more})
    assert checkpoint.strategy == {strategy!r}
    assert os.listdir(path) == ["kept"]
    for _ in range(2):
        (path / "new").write_text("new")
        (path / "kept").write_text("changed")
        assert (checkpoint.changes().added, checkpoint.changes().modified) == (("new",), ("kept",))
        checkpoint.restore()
        assert checkpoint.changes().added == checkpoint.changes().modified == ()
        assert (path / "kept").read_text() == "kept\\n"
    (path / "kept").unlink()
"""


@pytest.mark.parametrize(
    ("more", "strategy"), [("", "copy"), (", strategy='copy'", "copy"), (", strategy='overlay'", "overlay")]
)
def test_a_directory_in_a_container_rolls_back(
    pytester: pytest.Pytester, box: Target, more: str, strategy: str
) -> None:
    before = box.mounts()
    writes(pytester, box, ROLLS_BACK.format(more=more, strategy=strategy))
    run(pytester, ROOT).assert_outcomes(passed=3)
    assert box.read("/workspace/data/kept") == b"kept\n"
    assert box.mounts() == before


def test_a_container_is_the_default_by_command_line_ini_file_and_environment(
    pytester: pytest.Pytester, box: Target, start_container: Start
) -> None:
    writes(
        pytester,
        box,
        """
def test_writes():
    assert (path / "kept").exists()
    (path / "kept").unlink()

def test_finds():
    assert (path / "kept").exists()
""",
    )
    other = start_container()
    other.write("/workspace/data/other", "")
    pytester.makeini("[pytest]\nsandbox_checkpoint_dirs = /workspace/data")
    result = run(pytester, ROOT, "--sandbox-name", box.sandbox, env={"SANDPOINT_SANDBOX": other.sandbox})
    result.assert_outcomes(passed=2)
    assert f"sandpoint: in {box.sandbox}, every test gets back /workspace/data" in result.outlines
    run(pytester, ROOT, env={"SANDPOINT_SANDBOX": box.sandbox}).assert_outcomes(passed=2)
    pytester.makeini(f"[pytest]\nsandbox_checkpoint_dirs = /workspace/data\nsandbox_name = {box.sandbox}")
    run(pytester, ROOT, env={"SANDPOINT_SANDBOX": other.sandbox}).assert_outcomes(passed=2)
    result = run(pytester, ROOT, "--sandbox-name", other.sandbox)
    result.assert_outcomes(passed=1, failed=1)


def test_the_marker_names_a_container(pytester: pytest.Pytester, box: Target) -> None:
    writes(
        pytester,
        box,
        """
pytestmark = pytest.mark.sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)

@pytest.mark.parametrize("number", range(2))
def test_it(number):
    (path / "kept").unlink()
""",
    )
    run(pytester, ROOT).assert_outcomes(passed=2)


def test_scopes_nest(pytester: pytest.Pytester, box: Target) -> None:
    writes(
        pytester,
        box,
        """
@pytest.fixture(scope="module", params=["copy", "overlay"])
def built(sandbox_checkpoint_module, request):
    yield sandbox_checkpoint_module("/workspace/data", sandbox=SANDBOX, strategy=request.param)
    assert (path / "built").exists()

@pytest.fixture(scope="module")
def filled(built):
    (path / "built").write_text("built")

@pytest.mark.parametrize("number", range(2))
def test_it(built, filled, sandbox_checkpoint, number):
    sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)
    assert sorted(os.listdir(path)) == ["built", "kept"]
    (path / "built").unlink()
    with pytest.raises(Exception, match="a later checkpoint"):
        built.restore()
""",
    )
    run(pytester, ROOT).assert_outcomes(passed=4)
    assert box.run("ls", "/workspace/data") == b"kept\n"


def test_a_container_made_anew_under_the_same_name_is_another(
    pytester: pytest.Pytester, start_container: Start
) -> None:
    target = start_container()
    target.write("/workspace/data/kept", "kept\n")
    writes(
        pytester,
        target,
        f"""
from contextlib import closing
import docker

@pytest.fixture
def anew():
    with closing(docker.from_env()) as client:
        old = client.containers.get({target.name!r})
        image, labels = old.image.id, old.labels
        old.remove(force=True)
        new = client.containers.run(image, name={target.name!r}, detach=True, network_mode="none", labels=labels)
        new.exec_run(["mkdir", "/workspace/data"])
        yield new
        assert new.exec_run(["ls", "/workspace/data"]).output == b""

def test_old(sandbox_checkpoint):
    sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)

def test_new(anew, sandbox_checkpoint):
    checkpoint = sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)
    anew.exec_run(["touch", "/workspace/data/new"])
    assert checkpoint.changes().added == ("new",)
""",
    )
    run(pytester, ROOT).assert_outcomes(passed=2)


def test_a_function_is_entered_around_the_checkpoint_and_every_roll_back(
    pytester: pytest.Pytester, box: Target
) -> None:
    writes(
        pytester,
        box,
        """
from contextlib import contextmanager

seen = []

@contextmanager
def stopped():
    seen.append(sorted(os.listdir(path)))
    yield
    seen.append(sorted(os.listdir(path)))

def test_it(sandbox_checkpoint):
    checkpoint = sandbox_checkpoint("/workspace/data", sandbox=SANDBOX, around=stopped)
    assert seen == [["kept"]] * 2
    (path / "new").touch()
    checkpoint.restore()
    assert seen[2:] == [["kept", "new"], ["kept"]]
    (path / "new").touch()

def test_after_it():
    assert seen[4:] == [["kept", "new"], ["kept"]]
""",
    )
    run(pytester, ROOT).assert_outcomes(passed=2)


def test_a_frozen_checkpoint_is_of_one_instant(pytester: pytest.Pytester, start_container: Start) -> None:
    # Written one after the other, the two never differ by more than one.
    put = "put() { echo $i > $1.new; mv $1.new data/$1; }"
    loop = f"{put}; i=0; while test ! -e stop; do i=$((i+1)); put first; put second; done; touch stopped"
    target = start_container(command=["sh", "-c", f"mkdir -p /workspace/data; cd /workspace; {loop}; sleep 1000000"])
    writes(
        pytester,
        target,
        """
import time

def test_it(sandbox_checkpoint):
    while not (path / "second").exists():
        time.sleep(0.01)
    checkpoint = sandbox_checkpoint("/workspace/data", sandbox=SANDBOX, freeze=True)
    frozen = (path / "first").read_text()
    while (path / "first").read_text() == frozen:
        time.sleep(0.01)
    (path.parent / "stop").touch()
    while not (path.parent / "stopped").exists():
        time.sleep(0.01)
    now = int((path / "first").read_text())
    checkpoint.restore()
    first, second = (int((path / name).read_text()) for name in ("first", "second"))
    assert first - second in (0, 1)
    assert first < now

def test_nothing_of_this_machine_is_frozen(sandbox_checkpoint, tmp_path):
    with pytest.raises(Exception, match="freeze is for containers"):
        sandbox_checkpoint(tmp_path, sandbox="local", freeze=True)
""",
    )
    run(pytester, ROOT).assert_outcomes(passed=2)


def test_findings_are_told_of_containers_too(pytester: pytest.Pytester, box: Target) -> None:
    writes(
        pytester,
        box,
        """
def test_it(sandbox_checkpoint):
    sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)
    (path / "new").write_text("new")
    assert False
""",
    )
    kept = pytester.path / "kept"
    result = run(pytester, ROOT, "--sandbox-report", "--sandbox-keep-failed", "--sandbox-kept-dir", str(kept))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*added new"])
    [new] = kept.rglob("new")
    assert new.read_text() == "new"
    assert (new.parent / "kept").read_text() == "kept\n"


def test_workers_take_turns_at_a_container_that_they_share(pytester: pytest.Pytester, box: Target) -> None:
    writes(
        pytester,
        box,
        """
@pytest.mark.parametrize("number", range(12))
def test_it(sandbox_checkpoint, number):
    sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)
    assert os.listdir(path) == ["kept"]
    (path / str(number)).touch()

def test_refused(sandbox_checkpoint_session):
    with pytest.raises(Exception, match="give each worker a container of its own"):
        sandbox_checkpoint_session("/workspace/data", sandbox=SANDBOX)
""",
    )
    run(pytester, ROOT_WORKERS).assert_outcomes(passed=13)


def test_a_killed_run_leaves_the_directory_as_it_was(pytester: pytest.Pytester, box: Target) -> None:
    writes(
        pytester,
        box,
        """
def test_it(sandbox_checkpoint):
    sandbox_checkpoint("/workspace/data", sandbox=SANDBOX)
    (path / "kept").unlink()
    os.kill(os.getpid(), 9)
""",
    )
    assert run(pytester, ROOT).ret == -signal.SIGKILL
    wait_until(lambda: box.attempt("test", "-e", "/workspace/data/kept")[0] == 0)


# -- throw-away containers --

USES = """
import pytest

def test_it(docker_sandbox):
    docker_sandbox.put("sub/file", "one")
    assert docker_sandbox.read("/workspace/sub/file") == b"one"
    docker_sandbox.checkpoint()
    for _ in range(2):
        docker_sandbox.exec(["rm", "-r", "sub"])
        docker_sandbox.restore()
        assert docker_sandbox.exec(["cat", "sub/file"]).stdout == "one"
    with open("ids", "a") as file:
        print(docker_sandbox.id, docker_sandbox.name, file=file)

def test_another_one(docker_sandbox):
    with pytest.raises(FileNotFoundError, match="there is no /workspace/sub/file"):
        docker_sandbox.read("sub/file")
    with pytest.raises(Exception, match=r"call its checkpoint\\(\\) first"):
        docker_sandbox.restore()
    assert docker_sandbox.exec(["false"], check=False).returncode == 1
"""


@pytest.mark.parametrize("by", ["ini", "command line"])
def test_a_throw_away_container_of_the_options(
    pytester: pytest.Pytester, docker_engine: Engine, busybox: str, by: str
) -> None:
    pytester.makepyfile(test_it=USES)
    pytester.makeini(f"[pytest]\nsandbox_docker_image = {busybox if by == 'ini' else 'none-such'}")
    arguments = [] if by == "ini" else ["--sandbox-docker-image", busybox]
    run(pytester, ROOT, *arguments).assert_outcomes(passed=2)
    assert_gone(docker_engine, pytester)


def test_each_worker_has_a_container_of_its_own_and_checkpoints_of_any_scope(
    pytester: pytest.Pytester, docker_engine: Engine, busybox: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
import pytest
from pytest_sandpoint import docker_sandbox_fixture

box = docker_sandbox_fixture({busybox!r}, scope="session", directory="/srv/made/here", {SLEEPS})

@pytest.fixture(scope="session")
def filled(box, sandbox_checkpoint_session):
    box.put("file", "one")
    return sandbox_checkpoint_session("/srv/made/here", sandbox=box.sandbox)

@pytest.mark.parametrize("number", range(8))
def test_it(box, filled, number, worker_id):
    with open("ids", "a") as file:
        print(box.id, worker_id, file=file)
    assert box.exec(["ls"]).stdout == "file\\n"
    box.exec(["mv", "file", "other"])
    filled.restore()
"""
    )
    run(pytester, ROOT_WORKERS).assert_outcomes(passed=8)
    pairs = set((pytester.path / "ids").read_text().splitlines())
    assert len({line.split()[0] for line in pairs}) == len({line.split()[1] for line in pairs}) == len(pairs) > 1
    assert_gone(docker_engine, pytester)


def test_containers_of_dead_runs_are_removed_and_those_of_living_ones_are_not(
    pytester: pytest.Pytester, docker_engine: Engine, busybox: str
) -> None:
    stays = f"""
from pytest_sandpoint import docker_sandbox_fixture
box = docker_sandbox_fixture({busybox!r}, {SLEEPS})

def test_it(box):
    import signal
    open("id", "w").write(box.id + "\\n")
    signal.pause()
"""
    living = start_run(pytester.path / "living", stays)
    dead = start_run(pytester.path / "dead", stays)
    try:
        ids = [read_id(pytester.path / name) for name in ("living", "dead")]
        assert set(ids) <= throw_aways(docker_engine)
        dead.kill()
        dead.wait()
        pytester.makepyfile(test_it=USES)
        run(pytester, ROOT, "--sandbox-docker-image", busybox, "test_it.py").assert_outcomes(passed=2)
        assert throw_aways(docker_engine) & set(ids) == {ids[0]}
    finally:
        living.send_signal(signal.SIGINT)
        living.wait(60)


def start_run(folder: Path, content: str) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    (folder / "test_it.py").write_text(content)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *QUIET, "--rootdir", folder, folder],
        cwd=folder,
        env=os.environ | {"SANDPOINT_STATE_DIR": str(folder / "state")},
        stdout=subprocess.DEVNULL,
    )


def read_id(folder: Path) -> str:
    wait_until(lambda: (folder / "id").exists() and (folder / "id").read_text().endswith("\n"))
    return (folder / "id").read_text().strip()


# -- what cannot be --


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("image='none-such:1'", "the image none-such:1 is not on the Docker engine, and cannot be pulled"),
        ("image=BUSYBOX, command=['none-such'], network_mode='none'", "cannot be started"),
        ("image=BUSYBOX, command=['sh', '-c', 'echo it broke; exit 3'], ready=['false'], network_mode='none'", "broke"),
        (f"image=BUSYBOX, {SLEEPS}, ready=['false'], patience=0.2", "was not ready after 0 s: ['false'] ended with 1"),
    ],
)
def test_a_container_that_cannot_be_had_is_an_error(
    pytester: pytest.Pytester, docker_engine: Engine, busybox: str, arguments: str, told: str
) -> None:
    label = f"sandpoint-test-of={pytester.path}"
    pytester.makepyfile(
        test_it=f"""
from pytest_sandpoint import docker_sandbox_fixture
BUSYBOX = {busybox!r}
box = docker_sandbox_fixture({arguments}, labels=dict([{label.split("=")!r}]))

def test_it(box):
    pass
"""
    )
    result = run(pytester, ROOT)
    result.assert_outcomes(errors=1)
    [line] = [line for line in result.outlines if line.startswith("E ")]
    assert told in line
    assert docker_engine.client.api.containers(all=True, filters={"label": label}) == []


def test_no_engine_is_an_error_with_the_remedy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=USES)
    result = run(pytester, ROOT, "--sandbox-docker-image=any", env={"DOCKER_HOST": "unix:///none-such.sock"})
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["E *no Docker engine answers*start it, or set DOCKER_HOST*"])


def test_no_image_is_an_error_with_the_remedy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=USES)
    result = run(pytester, ROOT)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["E *docker_sandbox: no image is named; set sandbox_docker_image*"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("'data', sandbox=SANDBOX", "'data' is relative; name a directory in docker:"),
        ("'/none', sandbox=SANDBOX", "/none"),
        ("'/workspace', sandbox='docker:none-such-container'", "none-such-container"),
        ("'/workspace', sandbox='nowhere'", "'nowhere' is unknown; use 'local', or 'docker:NAME'"),
    ],
)
def test_a_directory_that_cannot_be_had_is_an_error(
    pytester: pytest.Pytester, box: Target, arguments: str, told: str
) -> None:
    writes(
        pytester,
        box,
        f"""
def test_it(sandbox_checkpoint):
    sandbox_checkpoint({arguments})
""",
    )
    result = run(pytester, ROOT)
    result.assert_outcomes(failed=1)
    assert any(told in line for line in result.outlines if line.startswith("E "))


def test_docker_is_not_loaded_unless_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
import sys

def test_it(sandbox_checkpoint, tmp_path):
    sandbox_checkpoint(tmp_path, strategy="copy")
    assert "docker" not in sys.modules
    assert "sandpoint.sandboxes" not in sys.modules
"""
    )
    run(pytester, ROOT).assert_outcomes(passed=1)
