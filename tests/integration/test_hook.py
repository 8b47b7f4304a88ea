"""The hook as an agent runs it: a process that is told of a tool on stdin, and never stands in the way."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import Finished, Program
from helpers.place import Place, tmpfs, unmount_all
from helpers.trees import write
from sandpoint.engine.turns import Ticket

WAIT_S = 60


class Agent:
    """An agent that works in the tree of a place, with the hook in its settings."""

    def __init__(self, place: Place, home: Path) -> None:
        self.place = place
        self.project = place.tree
        self.variables = {
            "SANDPOINT_STORE": place.store.as_uri(),
            "SANDPOINT_STATE_DIR": str(place.state),
            "SANDPOINT_SANDBOX": "docker:of-other-operations",
            "SANDPOINT_ALLOWED_DIRS": "",
            "CLAUDE_PROJECT_DIR": str(self.project),
            "HOME": str(home),
            "TMPDIR": str(home),
        }
        self.program = Program(**self.variables)
        self.session = "session-1"

    def told(self, tool: str = "Bash", **given: Any) -> dict[str, Any]:
        return {
            "session_id": self.session,
            "cwd": str(self.project),
            "hook_event_name": "PreToolUse",
            "tool_name": tool,
            "tool_input": given or {"command": "make all"},
        }

    def start(self, *options: str, agent: str = "claude-code", **variables: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [self.program.path, "hook", agent, *options],
            cwd=self.project,
            env={**self.program.environment, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def hook(
        self, told: dict[str, Any] | bytes | None = None, *options: str, agent: str = "claude-code", **variables: str
    ) -> Finished:
        """Run the hook; it ends with 0 and leaves nothing behind, whatever happens."""
        content = told if isinstance(told, bytes) else json.dumps(told or self.told()).encode()
        with self.start(*options, agent=agent, **variables) as process:
            try:
                out, err = process.communicate(content, timeout=WAIT_S)
            finally:
                process.kill()
        finished = Finished(process.returncode, out.decode(), err.decode())
        assert finished.status == 0, finished
        return finished

    def call(self, tool: str = "Bash", **given: Any) -> None:
        """Run the hook as on any good day: it says nothing."""
        finished = self.hook(self.told(tool, **given))
        assert (finished.out, finished.err) == ("", "")

    def undo(self, *arguments: str, cwd: Path | None = None) -> Finished:
        process = subprocess.run(
            [self.program.path, "undo", *arguments],
            cwd=cwd or self.project,
            env={**self.program.environment, "SANDPOINT_SANDBOX": "local"},
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
        return Finished(process.returncode, process.stdout.decode(), process.stderr.decode())


@pytest.fixture
def agent(place: Place, tmp_path: Path) -> Iterator[Agent]:
    write(place.tree / "src" / "app.py", "first\n")
    home = tmp_path / "home"
    home.mkdir()
    yield Agent(place, home)
    unmount_all(place.base)


def app(agent: Agent) -> str:
    return (agent.project / "src" / "app.py").read_text()


def listed(place: Place) -> list[Any]:
    return list(place.run(place.service.list, limit=1000).backups)


def failure_of(finished: Finished) -> str:
    """What the agent's user is shown."""
    told = json.loads(finished.out)
    assert list(told) == ["systemMessage"]
    return str(told["systemMessage"])


def test_before_an_edit_there_is_a_backup_and_undo_brings_it_back(agent: Agent) -> None:
    agent.call("Edit", file_path=str(agent.project / "src" / "app.py"), old_string="first", new_string="s3cret")
    write(agent.project / "src" / "app.py", "second\n")
    agent.call("Bash", command="TOKEN=s3cret npm publish s3cret")
    write(agent.project / "src" / "app.py", "broken\n")

    newest, oldest = listed(agent.place)
    assert (oldest.name, oldest.description) == ("auto", "before Edit of src/app.py")
    assert (newest.name, newest.description) == ("auto", "before Bash: npm publish")
    assert newest.metadata == {"by": "hook", "tool": "Bash", "session": "session-1"}
    for file in agent.place.store.rglob("meta.json"):
        assert "s3cret" not in file.read_text()

    undone = agent.undo(cwd=agent.project / "src")
    assert undone.status == 0, undone
    assert "The step back is to backup 'auto'" in undone.out
    assert "(before Bash: npm publish)" in undone.out
    assert "Go back to it with: sandpoint restore" in undone.out
    assert app(agent) == "second\n"
    agent.call("Bash", command="cat src/app.py")
    assert json.loads(agent.undo("--json").out)["backup"]["id"] == oldest.id
    assert app(agent) == "first\n"
    last = agent.undo()
    assert (last.status, last.out) == (5, "")
    assert "no step back" in last.err


def test_what_changes_nothing_takes_no_backup(agent: Agent) -> None:
    agent.call()
    for command in ("ls", "cat src/app.py", "git status"):
        agent.call(command=command)
    assert len(agent.place.ids()) == 1
    agent.place.assert_clean()


def test_tools_that_only_read_are_not_looked_at(agent: Agent) -> None:
    agent.call("Read", file_path="src/app.py")
    agent.call("Grep", pattern="x")
    assert not agent.place.state.exists()


def test_everything_is_in_it_unless_the_settings_say_otherwise(agent: Agent) -> None:
    subprocess.run(["git", "init", "-q", str(agent.project)], check=True)
    write(agent.project / ".gitignore", ".env\n*.log\n")
    write(agent.project / ".env", "precious\n")
    agent.call()
    (agent.project / ".env").unlink()
    assert agent.undo().status == 0
    assert (agent.project / ".env").read_text() == "precious\n"

    finished = agent.hook(None, "--use-gitignore", "--exclude", "src/*.tmp", "--name", "other", "--ttl", "5000")
    assert (finished.out, finished.err) == ("", "")
    newest = listed(agent.place)[0]
    assert (newest.name, newest.use_gitignore, newest.excludes) == ("other", True, ("src/*.tmp",))
    assert (newest.expires_at - newest.created_at).total_seconds() == 5000


def test_the_agent_works_in_another_worktree(agent: Agent) -> None:
    worktree = agent.place.base / "worktree"
    write(worktree / ".git", "gitdir: elsewhere\n")
    write(worktree / "sub" / "file", "x")
    agent.hook(agent.told() | {"cwd": str(worktree / "sub")})
    assert [backup.dir for backup in listed(agent.place)] == [str(worktree)]


# -- failures --


def without_tools(agent: Agent) -> dict[str, str]:
    return {"PATH": "/none"}


def without_a_store(agent: Agent) -> dict[str, str]:
    agent.place.base.joinpath("file").touch()
    return {"SANDPOINT_STORE": (agent.place.base / "file" / "store").as_uri()}


def without_a_state(agent: Agent) -> dict[str, str]:
    return {"SANDPOINT_STATE_DIR": "/dev/null/state"}


def in_the_home_directory(agent: Agent) -> dict[str, str]:
    return {"HOME": str(agent.project / "src")}


def in_a_system_directory(agent: Agent) -> dict[str, str]:
    return {"CLAUDE_PROJECT_DIR": "/etc"}


def with_wrong_settings(agent: Agent) -> dict[str, str]:
    return {"SANDPOINT_STATE_DIR": "relative"}


def outside_of_what_is_allowed(agent: Agent) -> dict[str, str]:
    return {"SANDPOINT_ALLOWED_DIRS": str(agent.place.base / "elsewhere")}


FAILURES = {
    without_tools: "BACKUP_CREATE_FAILED",
    without_a_store: "STORE_UNAVAILABLE",
    without_a_state: "SANDBOX_UNAVAILABLE",
    in_the_home_directory: "INVALID_BACKUP_CONFIG",
    in_a_system_directory: "INVALID_BACKUP_CONFIG",
    with_wrong_settings: "INVALID_BACKUP_CONFIG",
    outside_of_what_is_allowed: "INVALID_BACKUP_CONFIG",
}


@pytest.mark.parametrize("cause", FAILURES, ids=lambda cause: cause.__name__)
def test_a_failure_is_told_once_a_session_and_the_agent_goes_on(agent: Agent, cause: Any) -> None:
    variables = cause(agent)
    told = agent.told() | ({"cwd": "/etc"} if cause is in_a_system_directory else {})
    message = failure_of(agent.hook(told, **variables))
    assert message.startswith("Sandpoint took no checkpoint: ")
    assert f"[{FAILURES[cause]}]" in message
    again = agent.hook(told, **variables)
    assert (again.out, again.err) == ("", "")
    assert failure_of(agent.hook(told | {"session_id": "another"}, **variables)) == message
    agent.place.assert_clean()
    assert not (agent.project / "hooks").exists()
    agent.call()
    assert len(agent.place.ids()) == 1


def test_after_a_success_the_next_failure_is_news(agent: Agent) -> None:
    variables = without_tools(agent)
    message = failure_of(agent.hook(None, **variables))
    agent.call()
    write(agent.project / "new", "x")
    assert failure_of(agent.hook(None, **variables)) == message


def test_a_full_disk(agent: Agent) -> None:
    write(agent.project / "large", os.urandom(2 << 20))
    with tmpfs(agent.place.store, size="1m"):
        message = failure_of(agent.hook())
        assert "space" in message
        again = agent.hook()
        assert (again.out, again.err) == ("", "")
        agent.place.assert_clean()


def test_a_full_disk_that_holds_the_notes_as_well(agent: Agent) -> None:
    agent.place.state.mkdir(mode=0o700)
    with tmpfs(agent.place.state, size="1m"):
        fill(agent.place.state / "filler")
        message = failure_of(agent.hook())
        assert "[" in message
        again = agent.hook()
        assert (again.out, again.err) == ("", "")


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b""])
def test_what_is_no_json_is_no_reason_not_to_back_up(agent: Agent, content: bytes) -> None:
    finished = agent.hook(content or b" ")
    assert finished.out == ""
    assert ("the agent sent" in finished.err) == bool(content)
    assert len(agent.place.ids()) == 1


@pytest.mark.parametrize("options", ["--unknown", "--keep 0", "--deadline soon", "--deadline nan", "extra"])
def test_wrong_options_do_not_stop_the_agent(agent: Agent, options: str) -> None:
    assert "its command line in the settings is wrong" in failure_of(agent.hook(None, *options.split()))


def test_another_agent_is_told_on_stderr(agent: Agent) -> None:
    finished = agent.hook(b"", agent="generic", **without_tools(agent))
    assert finished.out == ""
    assert "Sandpoint took no checkpoint: " in finished.err
    told = {"cwd": "/", "workspace_roots": [str(agent.project)], "command": "make", "conversation_id": "c"}
    finished = agent.hook(told, agent="generic", CLAUDE_PROJECT_DIR="")
    assert (finished.out, finished.err) == ("", "")
    (backup,) = listed(agent.place)
    assert (backup.dir, backup.description) == (str(agent.project), "before a command: make")


# -- time --


@contextmanager
def busy(place: Place) -> Iterator[None]:
    """Another operation has its turn."""
    ticket = Ticket(str(place.state / "turns"))
    try:
        yield
    finally:
        ticket.give_back()


def test_other_operations_are_waited_for_until_the_deadline(agent: Agent) -> None:
    with busy(agent.place):
        assert "other operations" in failure_of(agent.hook(None, "--deadline", "0.3"))
        assert agent.place.ids() == []
        began = time.monotonic()
        assert agent.hook(None, "--deadline", "1000").out == "", "for a while nothing is tried"
        assert time.monotonic() - began < 30
    agent.place.assert_clean()
    agent.session = "another"
    agent.call()
    assert len(agent.place.ids()) == 1


def test_at_the_deadline_all_that_was_begun_is_undone(agent: Agent) -> None:
    for number in range(1500):
        write(agent.project / f"dir{number % 30}" / f"file{number}", f"{number}\n" * 50)
    outcomes = set()
    for step, deadline in enumerate((0.001, 0.05, 0.1, 0.2, 0.4, 0.8, 60)):
        agent.session = f"session-{step}"
        before = agent.place.ids()
        finished = agent.hook(None, "--deadline", str(deadline))
        made = len(agent.place.ids()) - len(before)
        outcomes.add(made)
        assert bool(finished.out) == (not made) or before
        for backup_id in agent.place.ids():
            assert agent.place.run(agent.place.service.verify, backup_id).ok
        agent.place.assert_clean()
    assert outcomes == {0, 1}
    assert len(agent.place.ids()) == 1


def test_an_agent_that_never_ends_its_sentence() -> None:
    code = (
        "import sys; from sandpoint.cli import hook_run; hook_run._GRACE_S = 0.2; from sandpoint.cli import main; "
        "main(['hook', 'claude-code', '--deadline', '0.1'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert "did not end within" in process.stdout.read().decode()
    assert process.wait(WAIT_S) == 0
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize("content", [b"", b"{", None])
def test_an_agent_that_leaves_stdin_open_is_not_waited_for(agent: Agent, content: bytes | None) -> None:
    content = json.dumps(agent.told("Edit", file_path="src/app.py")).encode() if content is None else content
    with agent.start() as process:
        assert process.stdin is not None
        process.stdin.write(content)
        process.stdin.flush()
        assert process.wait(WAIT_S) == 0
    (backup,) = listed(agent.place)
    assert backup.description == ("before Edit of src/app.py" if len(content) > 1 else "before a tool")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_an_agent_that_gives_no_streams_goes_on(agent: Agent, closed: str) -> None:
    finished = subprocess.run(
        ["/bin/sh", "-c", f'PATH=/none; "$0" hook claude-code {closed}', agent.program.path],
        input=b"{",
        env=agent.program.environment,
        cwd=agent.project,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert finished.returncode == 0, finished
    assert b"Traceback" not in finished.stderr
    agent.place.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_that_is_stopped(agent: Agent, number: signal.Signals) -> None:
    with busy(agent.place):
        process = agent.start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(agent.told()).encode())
        process.stdin.close()
        process.stdin = None
        deadline = time.monotonic() + WAIT_S
        while len(list((agent.place.state / "turns").glob("0*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out, err) == (0, b"", b"")
    agent.place.assert_clean()


def test_of_hooks_at_once_one_takes_the_backup(agent: Agent) -> None:
    agent.call()
    write(agent.project / "src" / "app.py", "second\n")
    processes = [agent.start() for _ in range(4)]
    for process in processes:
        out, err = process.communicate(json.dumps(agent.told()).encode(), timeout=WAIT_S)
        assert (process.returncode, out, err) == (0, b"", b"")
    assert len(agent.place.ids()) == 2
    agent.place.assert_clean()


# -- what stays --


def test_only_the_newest_of_the_hooks_own_stay(agent: Agent) -> None:
    mine = agent.place.create(name="mine").id
    other = agent.place.base / "other"
    write(other / "file", "x")
    elsewhere = agent.place.create(other, name="auto").id
    for number in range(9):
        write(agent.project / "src" / "app.py", f"{number}\n")
        agent.hook(None, "--keep", "3")
    taken = [backup for backup in listed(agent.place) if backup.name == "auto" and backup.dir == str(agent.project)]
    assert 3 <= len(taken) <= 3 + 5
    assert {mine, elsewhere} < set(agent.place.ids())
    for backup_id in agent.place.ids():
        assert agent.place.run(agent.place.service.verify, backup_id).ok
    write(agent.project / "src" / "app.py", "bad\n")
    assert agent.undo().status == 0
    assert app(agent) == "8\n"
    assert agent.undo().status == 0
    assert app(agent) == "7\n"


def test_the_notes_are_nobody_elses(agent: Agent) -> None:
    agent.call()
    assert stat.S_IMODE(agent.place.state.stat().st_mode) == 0o700
    assert stat.S_IMODE((agent.place.state / "hooks").stat().st_mode) == 0o700


def test_it_loads_no_more_than_it_needs(agent: Agent) -> None:
    agent.call()
    code = (
        "import sys; from sandpoint.cli import main; main(['hook', 'claude-code']); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'typer', 'rich', 'mcp', 'boto3', 'docker', 'starlette'}))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(agent.told()).encode(),
        env=agent.program.environment,
        capture_output=True,
        timeout=WAIT_S,
        check=True,
    )
    assert finished.stdout.decode().strip() == "[]"
