"""Programs run as an ordinary user by `helpers.ordinary`: powerless, and all that is needed is within reach."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import sandpoint
from helpers import ordinary
from helpers.ordinary import GID, UID
from helpers.site import wait_until
from helpers.trees import write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

REPOSITORY = Path(ordinary.__file__).parents[2]

CAPABILITIES = """
import json, os
lines = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "ids": [*os.getresuid(), *os.getresgid()],
    "groups": os.getgroups(),
    "capabilities": {name: int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")},
}))
"""

NAMESPACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000 | 0x20000) == 0, os.strerror(ctypes.get_errno())
for name, content in (("setgroups", "deny"), ("uid_map", "0 61234 1"), ("gid_map", "0 61234 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(content)
assert libc.mount(b"none", sys.argv[1].encode(), b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
print(open("/proc/self/mountinfo").read())
"""

IN_WORKERS = """
import os
import pytest
import sandpoint.engine.linux

@pytest.mark.parametrize("number", range(4))
def test_it(number, tmp_path):
    assert os.environ["PYTEST_XDIST_WORKER"] in {"gw0", "gw1"}
    assert os.getresuid() == (61234, 61234, 61234)
    assert str(tmp_path).startswith(os.environ["HOME"])
    assert [int(line.split()[1], 16) for line in open("/proc/self/status") if line.startswith("CapEff")] == [0]
"""


class User:
    """What an ordinary user has: a home and a folder to work in, below a folder that is root's alone."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.work = base / "work"
        self.work.mkdir()
        os.chown(self.work, UID, GID)

    def run(self, *argv: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a program."""
        return ordinary.run(argv, **({"cwd": self.work, "home": self.home} | options))

    def python(self, program: str, *arguments: str | Path, **options: Any) -> str:
        """Run a Python program that must succeed, and return what it prints."""
        done = self.run(sys.executable, "-c", program, *arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def finds(self, folder: Path, **options: Any) -> list[str]:
        """Return all paths that the user finds in a folder."""
        done = self.run("find", folder, "-mindepth", "1", "-printf", "%P\\n", **options)
        return sorted(done.stdout.splitlines())


@pytest.fixture
def user(tmp_path: Path) -> User:
    tmp_path.chmod(0o700)
    return User(tmp_path)


def mounts_on_the_way(user: User) -> list[str]:
    """Return the mounts where the helper makes its own; other tests mount elsewhere meanwhile."""
    folders = (user.base, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), Path("/root"))

    def is_on_the_way(point: Path) -> bool:
        return point in user.base.parents or any(point.is_relative_to(folder) for folder in folders)

    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if is_on_the_way(Path(line.split()[4]))]


def test_the_user_has_no_power(user: User) -> None:
    seen = json.loads(user.python(CAPABILITIES))

    assert seen == {
        "ids": [UID] * 3 + [GID] * 3,
        "groups": [],
        "capabilities": {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapAmb": 0},
    }


def test_inheritable_capabilities_are_dropped(user: User) -> None:
    launcher = [sys.executable, ordinary.__file__, "--home", str(user.home), "--cwd", str(user.work), "--"]
    given = ["setpriv", "--inh-caps", "+sys_admin", "--ambient-caps", "+sys_admin", *launcher]

    done = subprocess.run([*given, sys.executable, "-c", CAPABILITIES], check=True, capture_output=True)

    assert set(json.loads(done.stdout)["capabilities"].values()) == {0}


def test_what_is_of_root_is_closed(user: User) -> None:
    write(user.base / "secret", "secret\n")

    assert "Permission denied" in user.run("cat", "/etc/shadow").stderr
    assert "No such file" in user.run("cat", user.base / "secret").stderr
    assert "Permission denied" in user.run("touch", user.base / "new").stderr
    assert set(user.finds(user.base)) == {"home", "home/run", "home/tmp", "work"}


def test_root_s_home_shows_only_what_leads_to_the_interpreter(user: User) -> None:
    if Path("/root").stat().st_mode & 0o001:
        pytest.skip("it is open on this machine")
    needed = {
        Path(path).resolve() for path in (sys.prefix, sys.base_prefix, str(REPOSITORY), str(user.base), *sys.path)
    }

    shown = user.python("import os; print(*os.listdir('/root'))").split()

    expected = {path.relative_to("/root").parts[0] for path in needed if path.is_relative_to("/root")}
    assert set(shown) == expected


def test_pytest_runs(user: User) -> None:
    done = user.run(sys.executable, "-m", "pytest", "--version")

    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).startswith(f"pytest {pytest.__version__}")


def test_workers_are_the_user_too(user: User) -> None:
    write(user.work / "test_it.py", IN_WORKERS)

    done = user.run(sys.executable, "-m", "pytest", "-n", "2", "-q")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert {path.stat().st_uid for path in user.work.rglob("*")} == {0, UID}  # the test is root's, the cache is not


def test_no_bytecode_is_written_to_root_s_folders(user: User) -> None:
    program = "import sys, os; print(sys.dont_write_bytecode, *[os.access(path, os.W_OK) for path in sys.argv[1:]])"

    answer = user.python(program, sys.prefix, sys.base_prefix, REPOSITORY, *sandpoint.__path__)

    assert answer.split() == ["True", "False", "False", "False", "False"]


def test_the_environment_is_the_user_s(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDPOINT_STATE", "/root/state")
    monkeypatch.setenv("PATH", f"{user.base}:{os.environ['PATH']}")

    seen = json.loads(user.python("import json, os; print(json.dumps(dict(os.environ)))", env={"XDG_DATA_HOME": "/d"}))

    assert (seen["HOME"], seen["TMPDIR"]) == (str(user.home), str(user.home / "tmp"))
    assert (seen["XDG_STATE_HOME"], seen["XDG_DATA_HOME"]) == (str(user.home / ".local" / "state"), "/d")
    assert not [name for name in seen if name.startswith(("SANDPOINT_", "PYTEST_"))]
    assert "/usr/bin" in seen["PATH"].split(":")
    assert user.home.stat().st_uid == UID


def test_user_namespaces_work_and_mounts_stay_in_there(user: User) -> None:
    policy = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if policy.exists() and policy.read_text().strip() == "1":
        pytest.skip("the machine's policy gives no power in user namespaces")
    before = mounts_on_the_way(user)

    inside = user.python(NAMESPACE, user.work)

    assert f" {user.work} rw" in inside
    assert mounts_on_the_way(user) == before


def test_folders_within_closed_folders_are_reached(user: User) -> None:
    closed = user.base / "closed"
    for path in ("a/file", "a/own/file", "a/own/b/file", "a/other/file", "link/file", "secret"):
        write(closed / path, "text\n")
    (closed / "a" / "own").chmod(0o700)
    (closed / "to").symlink_to("a/own/b")
    write(closed / "listed" / "file", "text\n")
    write(closed / "listed" / "inner" / "file", "text\n")
    (closed / "listed" / "inner").chmod(0o700)
    (closed / "listed" / "dangling").symlink_to("nowhere")
    (closed / "listed").chmod(0o710)
    closed.chmod(0o700)

    found = user.finds(user.base, reach=[closed / "a", closed / "to", closed / "listed", closed / "a/file"])

    assert [path for path in found if path.startswith("closed/")] == [
        "closed/a",
        "closed/a/file",
        "closed/a/other",
        "closed/a/other/file",
        "closed/a/own",
        "closed/a/own/b",
        "closed/a/own/b/file",
        "closed/listed",
        "closed/listed/dangling",
        "closed/listed/file",
        "closed/listed/inner",
        "closed/to",
    ]
    assert user.run("cat", closed / "to" / "file", reach=[closed / "to"]).stdout == "text\n"
    assert sorted(os.listdir(closed)) == ["a", "link", "listed", "secret", "to"]


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_clone_in_a_closed_folder_is_reached(user: User, mode: int) -> None:
    clone = user.base / "clone"
    launcher = clone / "tests" / "helpers" / "ordinary.py"
    launcher.parent.mkdir(parents=True)
    shutil.copy(ordinary.__file__, launcher)
    shutil.copytree(Path(sandpoint.__path__[0]), clone / "server" / "sandpoint")
    clone.chmod(mode)
    command = [sys.executable, str(launcher), f"--home={user.home}", f"--cwd={user.work}", "--"]
    program = "import sandpoint.engine.linux as linux; print(linux.__file__)"

    done = subprocess.run(
        [*command, sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(clone / "server")},
        check=True,
        capture_output=True,
        text=True,
    )

    assert done.stdout.strip() == str(clone / "server" / "sandpoint" / "engine" / "linux.py")


def test_the_machine_is_left_as_it_was() -> None:
    # Not below pytest's own folders, which tests of other files open to their users meanwhile.
    with tempfile.TemporaryDirectory(prefix="sandpoint-test-") as folder:
        closed = Path(folder, "closed")
        closed.mkdir(mode=0o700)
        user = User(closed)
        before = mounts_on_the_way(user)
        folders = (Path("/root"), closed, *closed.parents)
        modes = [path.stat().st_mode for path in folders]

        user.python("pass")

        assert mounts_on_the_way(user) == before
        assert [path.stat().st_mode for path in folders] == modes


def test_what_is_not_the_user_s_is_never_given_away(user: User) -> None:
    write(user.base / "precious" / "file", "text\n")

    with pytest.raises(RuntimeError, match="not empty and not the user's"):
        user.run("true", home=user.base / "precious")

    assert (user.base / "precious").stat().st_uid == 0


def test_a_program_that_cannot_start_is_no_result(user: User) -> None:
    with pytest.raises(RuntimeError, match="has no program no-such-program"):
        user.run("no-such-program")
    with pytest.raises(RuntimeError, match="No such file"):
        user.run("true", cwd=user.base / "missing")


def test_a_program_that_takes_too_long_ends_with_all_it_started(user: User) -> None:
    program = "import subprocess, sys; subprocess.run(['sleep', '54.321'])"

    with pytest.raises(subprocess.TimeoutExpired):
        user.run(sys.executable, "-c", program, timeout=1.5)

    # Killed it is at once, but gone only when it has had the processor once more.
    wait_until(lambda: subprocess.run(["pgrep", "-f", "sleep 54.321"], check=False, capture_output=True).stdout == b"")
