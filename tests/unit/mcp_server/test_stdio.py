"""`serve` in a process of its own, over a service that is not real: how it starts, speaks and ends."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.site import wait_until

TESTS = Path(__file__).parents[2]

PATIENCE_S = 60.0

PROGRAM = """
import sys
from pathlib import Path
from helpers.mcp import FakeService
from sandpoint.errors import InvalidBackupConfigError, StoreUnavailableError
from sandpoint.mcp_server import opening, serve
from sandpoint.models import KeepRules
from sandpoint.settings import Settings

class Service(FakeService):
    async def prune(self, **options):
        if Path("failing").exists():
            Path("failing").unlink()
            raise ValueError("of no known kind")
        return await super().prune(**options)

    async def _asked(self, operation, report=None, **options):
        print("printed by mistake", flush=True)
        with Path("asked").open("a") as log:
            log.write(f"{operation} {options}\\n")
        Path("started").touch()
        try:
            await super()._asked(operation, report, **options)
        finally:
            Path("cleaned").touch()

def open_service(settings, *, allowed, store, kind):
    Path("allowed").write_text(":".join(settings.allowed_dirs))
    if not Path("store").exists():
        raise StoreUnavailableError("cannot open the store; create it")
    return Service(hang=Path("hang").exists())

opening.open_service = open_service
"""

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class Server:
    """A server process, spoken to by hand."""

    def __init__(self, cwd: Path, serve: str) -> None:
        self.cwd = cwd
        path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM) + serve],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": path, "SANDPOINT_ALLOWED_DIRS": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, method: str, params: dict[str, Any] | None = None, number: int | None = None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if number is not None:
            message["id"] = number
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def initialize(self) -> dict[str, Any]:
        self.send("initialize", INITIALIZE, 1)
        answer: dict[str, Any] = self.answer()["result"]
        self.send("notifications/initialized")
        return answer

    def call(self, tool: str, **arguments: object) -> None:
        self.send("tools/call", {"name": tool, "arguments": arguments}, 2)

    def wait_for(self, name: str) -> None:
        subprocess.run(
            ["sh", "-c", f"until [ -e {name} ]; do sleep 0.02; done"], cwd=self.cwd, timeout=PATIENCE_S, check=True
        )

    def end(self) -> tuple[int, bytes, str]:
        """Wait for the end, and return the status and what was still written."""
        assert self.process.stdout
        assert self.process.stderr
        status = self.process.wait(timeout=PATIENCE_S)
        return status, self.process.stdout.read(), self.process.stderr.read().decode()


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def started(serve: str = "serve(Settings())") -> Server:
        servers.append(Server(tmp_path, serve))
        return servers[-1]

    (tmp_path / "store").touch()
    yield started
    for server in servers:
        with server.process as process:
            process.kill()


def test_only_the_protocol_is_on_stdout(start: Start) -> None:
    server = start()
    server.initialize()
    server.call("delete_backup", backup_id="i")
    assert server.answer()["result"]["structuredContent"]["deleted"] is True
    assert server.process.stdin
    server.process.stdin.close()
    status, stdout, stderr = server.end()
    assert (status, stdout) == (0, b"")
    assert "printed by mistake" in stderr


@pytest.mark.parametrize("how", ["stdin", signal.SIGTERM, signal.SIGINT])
def test_at_the_end_what_runs_is_cancelled_and_cleans_up(
    start: Start, tmp_path: Path, how: signal.Signals | str
) -> None:
    (tmp_path / "hang").touch()
    server = start()
    server.initialize()
    server.call("create_backup", dir="/work")
    server.wait_for("started")
    if isinstance(how, signal.Signals):
        server.process.send_signal(how)
    else:
        assert server.process.stdin
        server.process.stdin.close()
    status, _, stderr = server.end()
    assert (tmp_path / "cleaned").exists()
    assert status == 0
    assert "Traceback" not in stderr


def test_a_signal_ends_a_server_that_does_nothing(start: Start) -> None:
    server = start()
    server.initialize()
    server.process.terminate()
    status, stdout, stderr = server.end()
    assert (status, stdout, stderr) == (0, b"", "")


def test_a_client_that_is_gone_leaves_no_traceback(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    server = start()
    server.initialize()
    server.call("create_backup", dir="/work")
    server.wait_for("started")
    assert server.process.stdin
    assert server.process.stdout
    server.process.stdout.close()
    server.process.stdin.close()
    assert server.process.wait(timeout=PATIENCE_S) == 0
    assert server.process.stderr
    assert "Traceback" not in server.process.stderr.read().decode()
    assert (tmp_path / "cleaned").exists()


def test_the_working_directory_is_allowed_where_none_is_named(start: Start, tmp_path: Path) -> None:
    server = start()
    assert str(tmp_path.resolve()) in server.initialize()["instructions"]
    assert (tmp_path / "allowed").read_text() == str(tmp_path.resolve())


def test_named_directories_are_the_ones_allowed(start: Start, tmp_path: Path) -> None:
    server = start('serve(Settings(allowed_dirs=("/srv",)))')
    assert "/srv" in server.initialize()["instructions"]
    assert (tmp_path / "allowed").read_text() == "/srv"


def test_a_store_that_cannot_be_opened_is_told_by_each_call_until_it_can(start: Start, tmp_path: Path) -> None:
    (tmp_path / "store").unlink()
    server = start()
    server.initialize()
    server.call("list_backups")
    result = server.answer()["result"]
    assert result["isError"] is True
    assert result["content"][0]["text"] == "STORE_UNAVAILABLE: cannot open the store; create it"
    assert result["_meta"]["sandpoint/code"] == "STORE_UNAVAILABLE"

    (tmp_path / "store").touch()
    server.call("list_backups")
    assert server.answer()["result"]["structuredContent"] == {"count": 0, "backups": []}

    server.process.terminate()
    status, _, stderr = server.end()
    assert status == 0
    assert stderr.count("STORE_UNAVAILABLE: cannot open the store; create it") == 1
    assert "Traceback" not in stderr


PRUNING = "serve(Settings(prune_every=0.00003, keep=KeepRules(keep_last=5, keep_names=('r*',))))"  # 0.1 s


def wait_for_prunes(path: Path, number: int) -> list[str]:
    def lines() -> list[str]:
        return (path / "asked").read_text().splitlines() if (path / "asked").exists() else []

    wait_until(lambda: len(lines()) >= number, lambda: f"not pruned {number} times")
    return lines()


def test_a_server_prunes_at_an_interval_beside_the_calls(start: Start, tmp_path: Path) -> None:
    server = start(PRUNING)
    server.initialize()
    wanted = "prune {'keep_last': 5, 'keep_daily': None, 'keep_names': ('r*',)}"
    assert set(wait_for_prunes(tmp_path, 3)) == {wanted}
    server.call("list_backups")
    assert server.answer()["result"]["structuredContent"] == {"count": 0, "backups": []}
    server.process.terminate()
    assert server.end()[0] == 0


def test_a_server_does_not_prune_unless_told(start: Start, tmp_path: Path) -> None:
    server = start()
    server.initialize()
    server.call("list_backups")
    server.answer()
    assert "prune" not in (tmp_path / "asked").read_text()


def test_a_prune_that_fails_is_logged_and_tried_again(start: Start, tmp_path: Path) -> None:
    (tmp_path / "store").unlink()
    (tmp_path / "failing").touch()
    server = start(PRUNING)
    server.initialize()
    for _ in range(2):  # once the store is asked for anew, the first time has failed
        (tmp_path / "allowed").unlink()
        wait_until((tmp_path / "allowed").exists)
    (tmp_path / "store").touch()
    wait_for_prunes(tmp_path, 1)
    server.process.terminate()
    status, _, stderr = server.end()
    assert status == 0
    assert "scheduled prune: STORE_UNAVAILABLE: cannot open the store; create it" in stderr
    assert "ValueError: of no known kind" in stderr


def test_a_prune_is_cancelled_at_the_end(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    server = start(PRUNING)
    server.initialize()
    server.wait_for("started")
    server.process.terminate()
    status, _, stderr = server.end()
    assert (status, (tmp_path / "cleaned").exists()) == (0, True)
    assert "Traceback" not in stderr


def test_settings_that_could_not_be_read_are_told_by_each_call(start: Start) -> None:
    server = start('serve(InvalidBackupConfigError("SANDPOINT_ALLOWED_DIRS is wrong"))')
    server.initialize()
    for _ in range(2):
        server.call("create_backup", dir="/work")
        text = server.answer()["result"]["content"][0]["text"]
        assert text == "INVALID_BACKUP_CONFIG: SANDPOINT_ALLOWED_DIRS is wrong"


def test_a_working_directory_that_is_gone_is_told(start: Start, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    server = start("import os; os.chdir('gone'); os.rmdir('../gone'); serve(Settings())")
    server.initialize()
    server.call("list_backups")
    text = server.answer()["result"]["content"][0]["text"]
    assert text.startswith("INVALID_BACKUP_CONFIG: ")
    assert "SANDPOINT_ALLOWED_DIRS" in text
