"""Files on their way to and from a store: whole, durable, and checked by digest."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.engine import Stopped, never, stop
from sandpoint.engine import checked, transfer
from sandpoint.engine.state import State
from sandpoint.errors import BackupIntegrityError, StoreUnavailableError
from sandpoint.models import PathGrant, Source, StoredFile

CONTENT = b"layer " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(str(tmp_path / "state"))
    made.prepare()
    return made


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "data.sqsh"
    path.write_bytes(CONTENT)
    return path


def source_of(path: Path, *, size: int = len(CONTENT), sha256: str = SHA256) -> Source:
    return Source(size=size, sha256=sha256, grant=PathGrant(path=str(path)))


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr(checked, "check_file", refuse)


def truncate(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])


def alter(path: Path) -> None:
    path.write_bytes(CONTENT[:-1] + b"x")


def grow(path: Path) -> None:
    path.write_bytes(CONTENT + b"x")


DAMAGES = pytest.mark.parametrize("damage", [truncate, alter, grow, os.unlink])


# -- sending --


def seal(path: Path) -> StoredFile:
    with transfer.sealing(str(path), never) as sealed:
        return sealed()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "layer.partial"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_sealed_and_sent_to_its_place(tmp_path: Path, made: Path, state: State) -> None:
    place = tmp_path / "data.sqsh"
    sealed = seal(made)
    assert sealed == StoredFile(size=len(CONTENT), sha256=SHA256)
    sent = transfer.send(str(made), sealed, PathGrant(path=str(place)), state, never)
    assert (sent.size, sent.sha256, sent.parts) == (len(CONTENT), SHA256, ())
    assert place.read_bytes() == CONTENT
    assert not made.exists()


def test_what_was_sent_need_not_be_read_again(
    tmp_path: Path, made: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data.sqsh"
    transfer.send(str(made), seal(made), PathGrant(path=str(place)), state, never)
    forbid_reading(monkeypatch)
    assert transfer.fetch(source_of(place), state, never) == str(place)


def test_sealing_can_be_stopped(made: Path) -> None:
    with pytest.raises(Stopped), transfer.sealing(str(made), stop) as sealed:
        sealed()


def test_what_cannot_be_sealed_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), transfer.sealing(str(tmp_path / "data.sqsh"), never) as sealed:
        sealed()


def test_a_small_file_is_sealed_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.partial"
    assert transfer.seal_bytes(str(path), CONTENT) == StoredFile(size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_a_store_that_went_away_is_said(tmp_path: Path, made: Path, state: State) -> None:
    grant = PathGrant(path=str(tmp_path / "gone" / "data.sqsh"))
    with pytest.raises(StoreUnavailableError, match=r"the store cannot keep .*data\.sqsh: No such file"):
        transfer.send(str(made), seal(made), grant, state, never)


# -- fetching --


def test_a_whole_file_is_fetched(stored: Path, state: State) -> None:
    for reread in (True, False):
        assert transfer.fetch(source_of(stored), state, never, reread=reread) == str(stored)
    assert transfer.fetch_bytes(source_of(stored), state, never) == CONTENT


@DAMAGES
def test_damage_is_found(stored: Path, state: State, damage: Callable[[Path], object]) -> None:
    damage(stored)
    for reread in (True, False):
        with pytest.raises(BackupIntegrityError, match=r"data\.sqsh"):
            transfer.fetch(source_of(stored), state, never, reread=reread)
    with pytest.raises(BackupIntegrityError, match=r"data\.sqsh"):
        transfer.fetch_bytes(source_of(stored), state, never)
    with pytest.raises(BackupIntegrityError, match=r"data\.sqsh"):
        transfer.check_source(source_of(stored), None, never)


@DAMAGES
def test_damage_after_a_check_is_found(stored: Path, state: State, damage: Callable[[Path], object]) -> None:
    transfer.fetch(source_of(stored), state, never)
    damage(stored)
    with pytest.raises(BackupIntegrityError):
        transfer.fetch(source_of(stored), state, never)


def test_a_time_put_back_does_not_hide_damage(stored: Path, state: State) -> None:
    transfer.fetch(source_of(stored), state, never)
    before = stored.stat()
    alter(stored)
    os.utime(stored, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BackupIntegrityError):
        transfer.fetch(source_of(stored), state, never)


def test_another_file_in_its_place_is_read(stored: Path, state: State, tmp_path: Path) -> None:
    transfer.fetch(source_of(stored), state, never)
    (tmp_path / "other").write_bytes(CONTENT[:-1] + b"x")
    os.replace(tmp_path / "other", stored)
    with pytest.raises(BackupIntegrityError):
        transfer.fetch(source_of(stored), state, never)


def test_a_checked_file_is_not_read_again_unless_asked(
    stored: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.fetch(source_of(stored), state, never)
    forbid_reading(monkeypatch)
    transfer.fetch(source_of(stored), state, never)
    with pytest.raises(AssertionError, match="read again"):
        transfer.fetch(source_of(stored), state, never, reread=True)


def test_a_note_is_of_one_file_and_one_digest(stored: Path, state: State) -> None:
    transfer.fetch(source_of(stored), state, never)
    with pytest.raises(BackupIntegrityError):
        transfer.fetch(source_of(stored, sha256="0" * 64), state, never)


@pytest.mark.parametrize("note", [b"", b"nonsense", b"{}"])
def test_a_damaged_note_proves_nothing(stored: Path, state: State, note: bytes) -> None:
    alter(stored)
    Path(state.checked, SHA256).write_bytes(note)
    with pytest.raises(BackupIntegrityError):
        transfer.fetch(source_of(stored), state, never)


def test_a_check_can_be_stopped(stored: Path, state: State) -> None:
    with pytest.raises(Stopped):
        transfer.fetch(source_of(stored), state, stop, reread=True)
    assert os.listdir(state.checked) == []


def test_what_cannot_be_read_is_no_damage(tmp_path: Path, state: State) -> None:
    (tmp_path / "data.sqsh").mkdir()
    size = (tmp_path / "data.sqsh").stat().st_size
    with pytest.raises(StoreUnavailableError, match="Is a directory"):
        transfer.check_source(source_of(tmp_path / "data.sqsh", size=size), None, never)
