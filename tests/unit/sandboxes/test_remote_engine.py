"""An engine in a process of its own, on a folder of this machine."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from helpers.engine import Stopped, look, without_inodes
from helpers.foreign import ID, archive_of, metadata_of
from helpers.remote import ProgramStream, configure, engine_process
from sandpoint.engine import wire
from sandpoint.errors import BackupIntegrityError, InvalidBackupConfigError, NoSuchPathError, SandboxUnavailableError
from sandpoint.models import Changes, Progress
from sandpoint.sandboxes import connection
from sandpoint.sandboxes.connection import Connection
from sandpoint.sandboxes.engine_sandbox import EngineSandbox
from sandpoint.sandboxes.remote_engine import RemoteEngine
from sandpoint.service import BackupService
from sandpoint.stores.local import LocalStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "workspace/a").mkdir(parents=True)
    (root / "workspace/a/f").write_bytes(os.urandom(3 << 20))
    (root / "workspace/l").symlink_to("a/f")
    (root / "workspace" / os.fsdecode(b"n\xff\n")).write_text("x")
    return root


@pytest.fixture
def remote(place: Path, tmp_path: Path) -> Iterator[tuple[RemoteEngine, ProgramStream]]:
    with engine_process(place, tmp_path) as started:
        yield started


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


def service(engine: RemoteEngine, folder: Path) -> BackupService:
    return BackupService(EngineSandbox(lambda: engine, allowed_dirs=None), LocalStore(str(folder / "store")))


async def test_a_directory_is_captured_compared_restored_and_read_through_a_local_store(
    remote: tuple[RemoteEngine, ProgramStream], place: Path, tmp_path: Path
) -> None:
    backups, tree = service(remote[0], tmp_path), place / "workspace"
    before = without_inodes(look(tree))
    phases: list[str] = []

    async def report(progress: Progress) -> None:
        phases.append(progress.phase)

    first = await backups.create("/workspace", report=report)
    assert "storing" in phases
    content = (tree / "a/f").read_bytes()
    (tree / "a/f").write_bytes(b"changed")
    (tree / "new").write_text("new")
    changes = await backups.diff(first.id)
    assert (changes.added, "a/f" in changes.modified) == (("new",), True)
    restored = await backups.restore(first.id)
    assert restored.mode == "copy"
    assert without_inodes(look(tree)) == before
    assert restored.undo_id is not None
    await backups.restore(restored.undo_id)
    assert (tree / "new").read_text() == "new"
    stream = await backups.open_file(first.id, "a/f")
    async with stream:
        assert b"".join([block async for block in stream]) == content
    assert not found(tmp_path, "store/**/arriving-*")


async def test_a_store_that_is_damaged_is_found_by_the_engine(
    remote: tuple[RemoteEngine, ProgramStream], place: Path, tmp_path: Path
) -> None:
    backups = service(remote[0], tmp_path)
    backup = await backups.create("/workspace")
    (layer,) = found(tmp_path, "store/backups/*/*.sqsh")
    layer.write_bytes(layer.read_bytes()[:-1] + b"?")
    for cached in found(tmp_path, "engine/cache/*"):
        cached.unlink()
    (place / "workspace/a/f").unlink()
    with pytest.raises(BackupIntegrityError):
        await backups.restore(backup.id, undo=False)
    layer.unlink()
    with pytest.raises(BackupIntegrityError):
        await backups.restore(backup.id, undo=False)
    assert not (place / "workspace/a/f").exists()


async def test_what_another_program_backed_up_is_listed_and_restored_by_the_engine(
    remote: tuple[RemoteEngine, ProgramStream], place: Path, tmp_path: Path
) -> None:
    archive = archive_of(place / "workspace")
    folder = tmp_path / "store" / "backups" / ID
    folder.mkdir(parents=True)
    (folder / "data.sqsh").write_bytes(archive)
    (folder / "meta.json").write_text(json.dumps(metadata_of(archive, dir="/workspace")))
    backups = service(remote[0], tmp_path)
    root = await backups.tree(ID)
    assert [(entry.exact_name, entry.kind) for entry in root.entries] == [
        (b"a", "directory"),
        (b"l", "symlink"),
        (b"n\xff\n", "file"),
    ]
    assert root.entries[1].target == "a/f"
    assert (await backups.tree(ID, "a/f")).itself.size_bytes == 3 << 20
    assert (await backups.tree(ID, os.fsdecode(b"n\xff\n"))).itself.exact_name == b"n\xff\n"
    with pytest.raises(NoSuchPathError, match="a/g is not in the backup"):
        await backups.tree(ID, "a/g")
    (place / "workspace/a/f").write_bytes(b"changed")
    assert (await backups.restore(ID)).changes == Changes(modified=("a/f",))


async def test_errors_of_the_engine_arrive_with_their_code(
    remote: tuple[RemoteEngine, ProgramStream], tmp_path: Path
) -> None:
    with pytest.raises(InvalidBackupConfigError, match="/nowhere"):
        await service(remote[0], tmp_path).create("/nowhere")
    assert remote[0].is_alive


async def test_a_killed_engine_is_unavailable_and_leaves_no_backup(
    remote: tuple[RemoteEngine, ProgramStream], tmp_path: Path
) -> None:
    engine, stream = remote
    backups = service(engine, tmp_path)

    async def kill(_progress: Progress) -> None:
        stream.process.kill()

    with pytest.raises(SandboxUnavailableError, match="is gone"):
        await backups.create("/workspace", report=kill)
    assert not engine.is_alive
    assert not found(tmp_path, "store/backups/*/meta.json")
    with pytest.raises(SandboxUnavailableError, match="is gone"):
        engine.id()


async def test_a_cancelled_operation_stops_and_the_next_one_goes_on(
    remote: tuple[RemoteEngine, ProgramStream], tmp_path: Path
) -> None:
    backups = service(remote[0], tmp_path)
    with anyio.CancelScope() as scope:

        async def cancel(_progress: Progress) -> None:
            scope.cancel()

        await backups.create("/workspace", report=cancel)
    assert scope.cancelled_caught
    assert not found(tmp_path, "engine/work/*")
    assert (await backups.create("/workspace")).file_count == 3


def test_who_stops_waiting_for_a_turn_gives_it_back(remote: tuple[RemoteEngine, ProgramStream]) -> None:
    engine, _ = remote
    engine.enter(lambda: None, lambda: None)
    has_joined = threading.Event()

    def stop_once_joined() -> None:
        if has_joined.is_set():
            raise Stopped

    with pytest.raises(Stopped):
        engine.enter(stop_once_joined, has_joined.set)
    engine.leave()
    engine.enter(lambda: None, lambda: None)
    engine.leave()


def test_an_engine_whose_server_goes_ends_and_gives_its_turn_back(place: Path, tmp_path: Path) -> None:
    with engine_process(place, tmp_path) as (engine, stream):
        engine.enter(lambda: None, lambda: None)
    assert stream.process.returncode == 0
    assert [path.name for path in (tmp_path / "engine/turns").iterdir()] == ["lock"]


def test_a_stopped_engine_is_not_waited_for_without_end(
    remote: tuple[RemoteEngine, ProgramStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, stream = remote
    monkeypatch.setattr("sandpoint.sandboxes.connection._SILENCE_S", 1.0)
    stream.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(SandboxUnavailableError, match="said nothing"):
            engine.id()
    finally:
        stream.process.send_signal(signal.SIGCONT)


HOSTILE = """
import json, sys
sys.stdin.buffer.readline()
def say(**message):
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\\n")
    sys.stdout.buffer.flush()
say(kind="hello", protocol=1)
while line := sys.stdin.buffer.readline():
    id = json.loads(line).get("id", 0)
    {reply}
"""


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("sys.stdout.buffer.write(b'\\x00' * 100 + b'\\n'); sys.stdout.buffer.flush()", "no message"),
        ("say(kind='result', id=id, value=5)", "something else"),
        ("say(kind='hello', id=id)", "no message"),
        ("say(kind='error', id=id, code='NONSENSE', message='m')", "m"),
        (
            "say(kind='read', id=id, number=0, stream=0, key='/etc/shadow');"
            "say(kind='error', id=id, code=None, message=sys.stdin.buffer.readline().decode())",
            "asked for a file where none is needed",
        ),
        ("sys.exit()", "ended"),
        ("say(kind='result', id=id, value='x', bytes=100); sys.exit()", "torn"),
    ],
)
def test_what_no_engine_would_say_is_an_error(tmp_path: Path, reply: str, why: str) -> None:
    if "key=" in reply:  # the answer to the question is a refusal, which it tells
        reply = (
            f"say(kind='error', id=id, code=None, message=str(json.loads(line))) if 'code' in str(line) else {reply}"
        )
        why = "asked for a file where none is needed"
    argv = [sys.executable, "-c", HOSTILE.format(reply=reply)]
    with (
        engine_process(tmp_path, tmp_path, argv=argv) as (engine, _),
        pytest.raises(SandboxUnavailableError, match=why),
    ):
        engine.id()


def test_an_engine_that_does_not_start_is_told(tmp_path: Path) -> None:
    line = Connection(ProgramStream([sys.executable, "-c", "pass"]), "the engine of the test")
    try:
        with pytest.raises(SandboxUnavailableError, match="is gone"):
            line.greet(configure(tmp_path, tmp_path))
    finally:
        line.close()


async def test_an_engine_reads_and_writes_only_what_it_was_granted(place: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    script = tmp_path / "engine.py"
    script.write_text(GREEDY.format(secret=str(secret)))
    with engine_process(place, tmp_path, argv=[sys.executable, str(script)]) as (engine, _):
        backups = service(engine, tmp_path)
        with pytest.raises(SandboxUnavailableError, match=r"asked for .*secret.*does not use"):
            await backups.create("/workspace")
    assert secret.read_text() == "secret"


GREEDY = """
import os
from sandpoint.engine import process

def capture(self, request, monitor, ask, freezer):
    try:
        list(self.state.relay.read({secret!r}))
    except Exception as error:
        assert "does not use" in str(error)
    path = os.path.join(self.state.path, "own")
    with open(path, "w") as file:
        file.write("changed")
    self.state.relay.write({secret!r}, path, lambda: None)

process.LocalEngine.capture = capture
process.main([])
"""


async def test_a_file_that_is_not_what_was_announced_is_not_kept(place: Path, tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(LIAR)
    with engine_process(place, tmp_path, argv=[sys.executable, str(script)]) as (engine, _):
        backups = service(engine, tmp_path)
        with pytest.raises(SandboxUnavailableError, match="another file than it had announced"):
            await backups.create("/workspace")
    assert not found(tmp_path, "store/backups/*/*")


LIAR = """
import os
from sandpoint.engine import process
from sandpoint.models import StoredFile

def capture(self, request, monitor, ask, freezer):
    grant = ask("layer", StoredFile(size=3, sha256="0" * 64))
    path = os.path.join(self.state.path, "own")
    with open(path, "w") as file:
        file.write("abc")
    self.state.relay.write(grant.key, path, lambda: None)

process.LocalEngine.capture = capture
process.main([])
"""


def test_the_beat_is_faster_than_the_patience() -> None:
    assert wire.BEAT_S < connection._DOUBT_S < connection._SILENCE_S
