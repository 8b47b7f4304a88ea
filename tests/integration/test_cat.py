"""Reading one file out of a backup: from the layer that has it, checked, and nothing restored."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio
import pytest
from anyio.abc import ByteReceiveStream

from helpers.cli import Program
from helpers.place import Place
from sandpoint.engine import layers
from sandpoint.errors import (
    BackupExpiredError,
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
)
from sandpoint.models import Backup
from sandpoint.sandboxes.local import LocalSandbox
from sandpoint.service import BackupService
from sandpoint.stores.local import LocalStore

ODD_NAMES = ("two words", "new\nline", "-dash", "#hash", "naïve", os.fsdecode(b"caf\xe9"), "back\\slash", "[x]*?")


async def read(service: BackupService, backup_id: str, path: str) -> bytes:
    async with await service.open_file(backup_id, path) as stream:
        return b"".join([piece async for piece in stream])


def cat(place: Place, backup_id: str, path: str) -> bytes:
    content = place.run(read, place.service, backup_id, path)
    place.assert_clean()
    return content


@pytest.fixture(params=["mounted", "by FUSE", "extracted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How layers are read."""
    if request.param != "mounted":
        monkeypatch.setattr(layers, "_mounted", lambda layer, place: None)
    if request.param == "extracted":
        monkeypatch.setattr(layers, "_fuse_mounted", lambda layer, place: None)
    return str(request.param)


def test_each_state_of_a_file_in_a_chain(place: Place, way: str) -> None:
    (place.tree / "src").mkdir(parents=True)
    (place.tree / "same").write_text("never changed\n")
    for name in ODD_NAMES:
        (place.tree / "src" / name).write_text(f"{name!r} of the first\n")
    os.link(place.tree / "src" / "#hash", place.tree / "linked")
    ids = []
    for number in range(4):
        (place.tree / "src" / "app.py").write_text(f"state {number}\n" * number)
        ids.append(place.create().id)
    (place.tree / "src" / "-dash").unlink()
    (place.tree / "src" / "-dash").mkdir()
    (place.tree / "src" / "-dash" / "inner").write_text("in a directory now\n")
    os.link(place.tree / "same", place.tree / "a first link")
    last = place.create().id
    assert place.run(place.service.get, last).kind == "delta"

    for number, backup_id in enumerate(ids):
        assert cat(place, backup_id, "src/app.py") == f"state {number}\n".encode() * number
    assert cat(place, ids[3], "linked") == b"'#hash' of the first\n"
    for name in ODD_NAMES:
        assert cat(place, ids[0], f"src/{name}") == f"{name!r} of the first\n".encode("utf-8", "surrogateescape")
    assert cat(place, last, "src/-dash/inner") == b"in a directory now\n"
    assert cat(place, last, "same") == cat(place, last, "a first link") == b"never changed\n"
    with pytest.raises(InvalidBackupConfigError, match="src/-dash is a directory"):
        cat(place, last, "src/-dash")


def test_names_are_taken_as_diff_shows_them(place: Place) -> None:
    place.tree.mkdir()
    backup = place.create()
    for name in ODD_NAMES:
        (place.tree / name).write_bytes(os.fsencode(name))
    later = place.create()
    shown = place.diff(backup.id, later.id).added
    assert sorted(cat(place, later.id, path) for path in shown) == sorted(map(os.fsencode, ODD_NAMES))


def test_big_binary_files_come_whole(place: Place) -> None:
    place.tree.mkdir()
    content = os.urandom(9_000_001) + bytes(5_000_000)
    (place.tree / "big").write_bytes(content)
    (place.tree / "empty").touch()
    backup = place.create()
    (place.tree / "big").unlink()
    assert cat(place, backup.id, "big") == content
    assert cat(place, backup.id, "empty") == b""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing", "nothing is not in the backup"),
        ("folder", "folder is a directory"),
        ("folder/file/below", "folder/file/below is not in the backup"),
        ("link", "link is a symlink to /etc/passwd, and links are not followed"),
        ("up/passwd", "up/passwd is not in the backup"),
        ("pipe", "pipe is a pipe, which has no contents"),
        ("../tree/folder/file", "path: a path is relative"),
        ("/etc/passwd", "path: a path is relative"),
        ("folder/./file", "path: a path is relative"),
        ("", "path: a path is relative"),
        ("nul\0", "path: a path is relative"),
    ],
)
def test_what_is_no_file_is_refused_by_name(place: Place, path: str, said: str) -> None:
    (place.tree / "folder").mkdir(parents=True)
    (place.tree / "folder" / "file").touch()
    (place.tree / "link").symlink_to("/etc/passwd")
    (place.tree / "up").symlink_to("/etc")
    os.mkfifo(place.tree / "pipe")
    backup = place.create()
    with pytest.raises(InvalidBackupConfigError, match=said):
        cat(place, backup.id, path)
    place.assert_clean()


def test_no_backup_no_file(place: Place) -> None:
    place.tree.mkdir()
    (place.tree / "file").touch()
    backup = place.create(ttl=0.001)
    with pytest.raises(BackupExpiredError):
        cat(place, backup.id, "file")
    with pytest.raises(BackupNotFoundError):
        cat(place, "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5", "file")
    with pytest.raises(InvalidBackupConfigError, match="backup_id"):
        cat(place, "nonsense", "file")


def test_backups_of_directories_that_are_not_allowed_are_not_read(place: Place) -> None:
    place.tree.mkdir()
    (place.tree / "secret").write_text("secret\n")
    backup = place.create()
    sandbox = LocalSandbox(str(place.state), allowed_dirs=[str(place.base / "mine")])
    confined = BackupService(sandbox, LocalStore(str(place.store)))
    with pytest.raises(InvalidBackupConfigError, match="outside the allowed directories"):
        place.run(read, confined, backup.id, "secret")
    with pytest.raises(InvalidBackupConfigError, match="outside the allowed directories"):
        place.run(confined.diff_contents, backup.id, backup.id)


def _spoil(file: Path, how: str) -> None:
    file.chmod(0o600)
    if how == "missing":
        file.unlink()
    elif how == "short":
        os.truncate(file, file.stat().st_size - 1)
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "short", "altered"])
@pytest.mark.parametrize("name", ["data.sqsh", "manifest.zst"])
def test_a_damaged_backup_gives_out_no_byte(place: Place, how: str, name: str) -> None:
    place.tree.mkdir()
    (place.tree / "old").write_text("old\n" * 10_000)
    full = place.create()
    (place.tree / "new").write_text("new\n" * 10_000)
    delta = place.create()
    assert cat(place, delta.id, "new")
    _spoil(place.store / "backups" / delta.id / name, how)
    with pytest.raises(BackupIntegrityError):
        cat(place, delta.id, "new")
    place.assert_clean()
    assert cat(place, full.id, "old") == b"old\n" * 10_000
    if name == "data.sqsh":
        assert cat(place, delta.id, "old") == b"old\n" * 10_000, "from a layer that is whole"


def test_a_file_is_read_on_while_others_have_their_turn_and_the_backup_goes(place: Place, way: str) -> None:
    place.tree.mkdir()
    content = os.urandom(3_000_000)
    (place.tree / "file").write_bytes(content)
    backup = place.create()

    async def slowly() -> bytes:
        stream: ByteReceiveStream = await place.service.open_file(backup.id, "file")
        async with stream:
            first = await stream.receive(1000)
            await place.service.create(str(place.tree))
            (place.tree / "file").unlink()
            for each in (await place.service.list()).backups:
                await place.service.delete(each.id)
            return first + b"".join([piece async for piece in stream])

    assert anyio.run(slowly) == content
    place.assert_clean()
    place.assert_unmounted()


# -- the real program --


@pytest.fixture
def sandpoint(place: Place) -> Program:
    return Program(SANDPOINT_STORE=place.store.as_uri(), SANDPOINT_STATE_DIR=str(place.state), SANDPOINT_SANDBOX="")


def test_the_program_prints_the_bytes(place: Place, sandpoint: Program) -> None:
    place.tree.mkdir()
    content = os.urandom(5_000_000)
    (place.tree / "big").write_bytes(content)
    backup = place.create()
    done = subprocess.run([sandpoint.path, "cat", backup.id, "big"], env=sandpoint.environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, content, b"")
    nothing = sandpoint("cat", backup.id, "small")
    assert (nothing.status, nothing.out) == (InvalidBackupConfigError.exit_status, "")
    assert "[INVALID_BACKUP_CONFIG]" in nothing.err
    _spoil(place.store / "backups" / backup.id / "data.sqsh", "altered")
    damaged = sandpoint("cat", backup.id, "big")
    assert (damaged.status, damaged.out) == (BackupIntegrityError.exit_status, "")


@contextmanager
def begun(sandpoint: Program, backup: Backup) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes], IO[bytes]]]:
    """Start to print a file of zeros, read a little of it, and yield the process with its output and its complaints."""
    command = [sandpoint.path, "cat", backup.id, "big"]
    with subprocess.Popen(
        command, env=sandpoint.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == bytes(10)
        yield process, process.stdout, process.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_reader_that_stops_reading_holds_nobody_up(
    place: Place, sandpoint: Program, number: int, status: int
) -> None:
    place.tree.mkdir()
    (place.tree / "big").write_bytes(bytes(5_000_000))
    backup = place.create()
    with begun(sandpoint, backup) as (process, _stdout, stderr):
        place.create()  # its turn is over
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(30) == status
        assert b"[CANCELLED]" in stderr.read()


def test_a_closed_pipe_ends_it_quietly(place: Place, sandpoint: Program) -> None:
    place.tree.mkdir()
    (place.tree / "big").write_bytes(bytes(5_000_000))
    backup = place.create()
    with begun(sandpoint, backup) as (process, stdout, stderr):
        stdout.close()
        assert process.wait(30) == 141
        assert stderr.read() == b""


def test_memory_does_not_grow_with_the_file(place: Place, sandpoint: Program) -> None:
    place.tree.mkdir()
    with open(place.tree / "big", "wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 10) * 1024)
    backup = place.create()
    measured = (
        "import sys\nfrom sandpoint.cli import main\nstatus = main(sys.argv[1:])\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(peak.split()[1], file=sys.stderr)\nsys.exit(status)"
    )
    python = str(Path(sandpoint.path).with_name("python"))
    done = subprocess.run(
        [python, "-c", measured, "cat", backup.id, "big"],
        env=sandpoint.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    assert int(done.stderr) < 150_000, "KiB"
