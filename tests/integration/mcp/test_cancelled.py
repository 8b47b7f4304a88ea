"""Operations that are stopped in the middle, by whomever: nothing is left of them, and the server goes on."""

import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from helpers.mcp_runs import call, damage, listing, put_tool, server_process, stored_files, until

pytestmark = pytest.mark.anyio

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def held_up(tools: Path) -> Iterator[tuple[str, Path]]:
    """Return a PATH on which mksquashfs writes something and hangs, and the file that says it has begun."""
    begun = tools / "begun"
    script = f'echo part > "$2"; echo $$ > {begun}.new; mv {begun}.new {begun}; exec sleep 300'
    yield put_tool(tools, "mksquashfs", script), begun
    if begun.exists():
        pid = int(begun.read_text())
        assert has_ended(pid)


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_nothing_left(tmp_path: Path) -> None:
    assert stored_files(tmp_path) == []
    archives = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and path.stat().st_size > 4096]
    assert archives == []


async def test_a_cancelled_create_leaves_nothing(
    connect: Connect, project: Path, tmp_path: Path, held_up: tuple[str, Path]
) -> None:
    path, begun = held_up
    async with connect(PATH=path) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "create_backup", {"dir": str(project)})
            await until(begun.exists)
            tasks.cancel_scope.cancel()
        await until(lambda: stored_files(tmp_path) == [])
        assert (await call(client, "list_backups"))["backups"] == []
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_a_signal_in_the_middle_of_a_create_leaves_no_backup(
    connect: Connect, project: Path, tmp_path: Path, held_up: tuple[str, Path], number: signal.Signals
) -> None:
    path, begun = held_up
    async with connect(PATH=path) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(call_until_the_end, client, project)
        await until(begun.exists)
        process = server_process()
        process.send_signal(number)
        await until(lambda: has_ended(process.pid))
    if number is not signal.SIGKILL:
        assert_nothing_left(tmp_path)
    async with connect() as client:
        assert (await call(client, "list_backups"))["backups"] == []
        made = await call(client, "create_backup", dir=str(project))
        assert (await call(client, "verify_backup", backup_id=made["id"]))["ok"] is True


async def test_a_client_that_leaves_in_the_middle_of_a_create_leaves_no_backup(
    connect: Connect, project: Path, tmp_path: Path, held_up: tuple[str, Path]
) -> None:
    path, begun = held_up
    async with anyio.create_task_group() as tasks:
        async with connect(PATH=path) as client:
            tasks.start_soon(call_until_the_end, client, project)
            await until(begun.exists)
            process = server_process()
        tasks.cancel_scope.cancel()
    assert not process.is_running()
    assert_nothing_left(tmp_path)


async def call_until_the_end(client: Client, project: Path) -> None:
    with pytest.raises(MCPError, match="Connection closed"):
        await client.call_tool("create_backup", {"dir": str(project)})


@dataclass(frozen=True)
class Valve:
    """A program that hangs whenever it is started while the valve is shut."""

    path: str
    shut: Path
    begun: Path

    def close(self) -> None:
        self.begun.unlink(missing_ok=True)
        self.shut.touch()

    def open(self) -> None:
        """Let it through again; the one that hung must be gone."""
        self.shut.unlink()
        pid = int(self.begun.read_text())
        assert has_ended(pid)


@pytest.fixture
def valve(tools: Path) -> Callable[[str], Valve]:
    def of(program: str) -> Valve:
        shut, begun = tools / "shut", tools / "begun"
        hangs = f"echo $$ > {begun}.new; mv {begun}.new {begun}; exec sleep 300"
        script = f'[ ! -e {shut} ] || {{ {hangs}; }}; exec {shutil.which(program)} "$@"'
        return Valve(put_tool(tools, program, script), shut, begun)

    return of


def mounts_below(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


def everything_beside(tmp_path: Path) -> set[str]:
    """Return the names of all files and folders but the project's, and but the notes of which layers were checked."""
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    return {name for name in names if not name.startswith(("tools/", "allowed/project/", "state/checked/"))}


@asynccontextmanager
async def cancelled_in(valve: Valve, client: Client, tool: str, arguments: dict[str, Any]) -> AsyncIterator[None]:
    """Cancel a call when the program hangs; meanwhile the block runs."""
    valve.close()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, tool, arguments)
        await until(valve.begun.exists)
        yield
        tasks.cancel_scope.cancel()


CANCELLED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a restore that keeps the way back": ("mksquashfs", "restore_backup", {"mode": "copy"}),
    "a restore by overlay that keeps the way back": ("mksquashfs", "restore_backup", {"mode": "overlay"}),
    "a restore that extracts": ("unsquashfs", "restore_backup", {"mode": "copy"}),
    "a restore of one path": ("unsquashfs", "restore_backup", {"mode": "copy", "paths": ["src"], "undo": False}),
    "a fork that extracts": ("unsquashfs", "fork_backup", {"mode": "copy", "dirs": ["project/fork"]}),
    "a delta": ("mksquashfs", "create_backup", {"dir": "project"}),
}


@pytest.mark.parametrize(("program", "tool", "options"), CANCELLED.values(), ids=CANCELLED)
async def test_a_cancelled_call_leaves_nothing_and_the_server_goes_on(
    connect: Connect,
    project: Path,
    tmp_path: Path,
    valve: Callable[[str], Valve],
    program: str,
    tool: str,
    options: dict[str, Any],
) -> None:
    held = valve(program)
    arguments = {name: at(project, value) for name, value in options.items()}
    async with connect(PATH=held.path) as client:
        intact = listing(project)
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        if tool != "create_backup":
            arguments["backup_id"] = backup_id
        damage(project)
        (project / "big").write_bytes(bytes(range(256)) * 400)
        broken, before = listing(project), everything_beside(tmp_path)

        async with cancelled_in(held, client, tool, arguments):
            assert backup_id in [backup["id"] for backup in (await call(client, "list_backups"))["backups"]]
        assert (await call(client, "diff_backup", backup_id=backup_id))["added_count"] > 0  # in turn: after its end
        held.open()

        assert listing(project) == broken
        assert mounts_below(tmp_path) == []
        assert everything_beside(tmp_path) == before
        assert [backup["id"] for backup in (await call(client, "list_backups"))["backups"]] == [backup_id]
        assert (await call(client, "verify_backup", backup_id=backup_id))["ok"] is True
        await call(client, "restore_backup", backup_id=backup_id, mode="copy", undo=False)
        assert listing(project) == intact


def at(project: Path, value: Any) -> Any:
    """Return an argument, with names of the project and of what is in it made absolute."""
    if isinstance(value, list):
        return [at(project, each) for each in value]
    return str(project.parent / value) if isinstance(value, str) and value.startswith("project") else value


@pytest.mark.parametrize("phase", ["reading", "archiving", "fetching", "extracting", "applying"])
async def test_a_restore_that_is_cancelled_in_any_phase_is_whole_or_not_at_all(
    connect: Connect, project: Path, tmp_path: Path, phase: str
) -> None:
    for number in range(500):
        (project / f"{number}.txt").write_text(str(number))
    async with connect() as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        intact = listing(project)
        for number in range(500):
            (project / f"{number}.txt").write_text(f"{number} and more")
        (project / "new").mkdir()
        broken = listing(project)

        async with anyio.create_task_group() as tasks:

            async def cancel_in_phase(progress: float, total: float | None, message: str | None) -> None:
                if message and message.startswith((phase, "done")):
                    tasks.cancel_scope.cancel()

            arguments = {"backup_id": backup_id, "mode": "copy"}
            tasks.start_soon(lambda: client.call_tool("restore_backup", arguments, progress_callback=cancel_in_phase))
        difference = await call(client, "diff_backup", backup_id=backup_id)

        found = listing(project)
        is_done = difference["modified_count"] == 0
        assert found == (intact if is_done else broken)
        undos = (await call(client, "list_backups", name="undo"))["backups"]
        assert len(undos) == is_done
        assert [path.name for path in project.parent.iterdir()] == ["project"]
        await call(client, "restore_backup", backup_id=backup_id, mode="copy")
        assert listing(project) == intact
