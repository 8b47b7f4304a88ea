"""What healing does to the folders of overlays: what may be somebody's work is kept."""

import os
import time
from pathlib import Path

import msgspec

from sandpoint.engine import overlay
from sandpoint.engine.overlay import Overlay, Record
from sandpoint.engine.state import State


def make_state(folder: Path) -> State:
    state = State(str(folder))
    state.prepare()
    return state


def make_overlay(state: State, name: str) -> Overlay:
    return Overlay.create(
        state, Record(name, "/nowhere/at/all", "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5", "kernel", (), 0)
    )


def test_an_overlay_that_never_came_into_place_goes(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    made = make_overlay(state, "a" * 32)
    overlay.heal(state)
    assert not os.path.exists(made.folder)


def test_what_was_written_to_a_lost_overlay_stays(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    made = make_overlay(state, "a" * 32)
    made.mark_ready()
    Path(made.upper, "work-of-a-day").touch()
    overlay.heal(state)
    assert made.is_written()
    assert [lost.record for lost in overlay.orphans(state)] == [made.record]


def test_it_stays_also_where_its_record_cannot_be_read(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    made = make_overlay(state, "a" * 32)
    made.mark_ready()
    Path(made.folder, "overlay.json").write_bytes(msgspec.json.encode({"id": 7}))
    overlay.heal(state)
    assert Path(made.upper).is_dir()


def test_a_folder_without_a_record_goes(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    folder = Path(state.overlays, "a" * 32)
    folder.mkdir()
    overlay.heal(state)
    assert not folder.exists()


def test_notes_of_checked_files_end(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    for name, age_days in (("old", 31), ("young", 29)):
        path = Path(state.checked, name)
        path.touch()
        then = time.time() - age_days * 86400
        os.utime(path, (then, then))
    state.forget_old_notes()
    assert os.listdir(state.checked) == ["young"]
