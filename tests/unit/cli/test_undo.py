import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.cli import ID, UNDO_ID, FakeService, make_backup
from sandpoint.cli import main
from sandpoint.cli.terminal import local_time, working_directory
from sandpoint.errors import BackupNotFoundError
from sandpoint.models import Changes, UndoResult

Answer = Callable[..., FakeService]

BACKUP = make_backup(name="auto", description="before Bash: make\x1b[31m")


def result(*, dry_run: bool = False) -> UndoResult:
    return UndoResult(
        success=True,
        id=ID,
        dir="/work/project",
        mode="copy",
        dry_run=dry_run,
        changes=Changes(modified=("app.py",)),
        undo_id=None if dry_run else UNDO_ID,
        backup=BACKUP,
    )


def test_a_person_is_told_to_what_what_changed_and_the_way_back(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    service = answer(undo=result())
    assert main(["undo", "/work/project", "--store", "file:///s"]) == 0
    assert service.calls == [("undo", {"dir": "/work/project", "dry_run": False})]
    lines = capsys.readouterr().out.splitlines()
    when = local_time(BACKUP.created_at)
    assert lines[0] == f"The step back is to backup 'auto' of {when} (before Bash: make\\x1b[31m)."
    assert "0 added, 1 modified, 0 removed" in lines[1]
    assert lines[-1] == f"Go back to it with: sandpoint restore {UNDO_ID} --store file:///s"


def test_a_dry_run(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(undo=result(dry_run=True))
    assert main(["undo", "/work/project", "--dry-run"]) == 0
    assert service.calls[0][1]["dry_run"] is True
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing was changed."


def test_a_program_is_told_the_restore_and_the_backup(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(undo=result())
    assert main(["undo", "/work/project", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["id"], told["undo_id"], told["backup"]["name"]) == (ID, UNDO_ID, "auto")


def test_by_default_it_is_the_nearest_directory_that_has_backups(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    service = answer(undo=result(), nearest="/work/project")
    assert main(["undo"]) == 0
    assert service.calls[0] == ("nearest", {"dir": str(tmp_path)})
    assert service.calls[1][1]["dir"] == "/work/project"


def test_where_no_directory_has_backups_it_is_an_error(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(nearest=None)
    assert main(["undo"]) == 5
    assert "sandpoint undo DIR" in capsys.readouterr().err


def test_no_step_back_is_an_error(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(undo=BackupNotFoundError("there is no step back"))
    assert main(["undo", "/work/project"]) == 5
    assert "no step back [BACKUP_NOT_FOUND]" in capsys.readouterr().err


def test_a_working_directory_that_was_deleted_has_its_name_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    assert working_directory() == str(gone)
    os.chdir(tmp_path)
