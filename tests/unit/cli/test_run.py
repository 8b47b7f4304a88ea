import json
from collections.abc import Callable

import pytest

from helpers.cli import ID, OTHER_ID, UNDO_ID, FakeService, make_backup
from sandpoint.cli import main
from sandpoint.cli.failures import StoppedError
from sandpoint.errors import ERRORS, BackupNotFoundError, SandpointError, StoreUnavailableError
from sandpoint.models import DeleteResult

Answer = Callable[..., FakeService]


@pytest.mark.parametrize("error", ERRORS.values())
def test_each_error_has_its_status_and_its_code(
    error: type[SandpointError], answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(create=error("it failed"))
    assert main(["create", "/work"]) == error.exit_status
    assert capsys.readouterr() == ("", f"error: it failed [{error.code}]\n")

    assert main(["create", "/work", "--json"]) == error.exit_status
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"code": error.code, "message": "it failed"}}
    assert err == ""


def test_an_unexpected_error_is_1(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(create=RuntimeError("surprise"))
    assert main(["create", "/work"]) == 1
    assert "surprise" in capsys.readouterr().err
    assert main(["create", "/work", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "INTERNAL_ERROR"


def test_a_result_is_one_line_of_ascii_json(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    backup = make_backup(name="näme", unstable_paths=("a\\xff",))
    answer(create=backup)
    assert main(["create", "/work", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == backup.model_dump(mode="json")
    assert err == ""


THREE = {
    ID: DeleteResult(id=ID, freed_bytes=1000),
    OTHER_ID: BackupNotFoundError("no such backup"),
    UNDO_ID: DeleteResult(id=UNDO_ID, freed_bytes=2000),
}


def test_several_go_on_where_one_fails(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(delete=THREE)
    assert main(["delete", *THREE]) == BackupNotFoundError.exit_status
    out, err = capsys.readouterr()
    assert out == f"Deleted {ID}, 1.0 kB freed.\nDeleted {UNDO_ID}, 2.0 kB freed.\n"
    assert err == f"error: {OTHER_ID}: no such backup [BACKUP_NOT_FOUND]\n"
    assert [values["backup_id"] for _, values in service.calls] == list(THREE)


def test_several_as_json(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(delete=THREE)
    assert main(["delete", *THREE, "--json"]) == BackupNotFoundError.exit_status
    assert json.loads(capsys.readouterr().out) == {
        "results": [
            {"id": ID, "deleted": True, "freed_bytes": 1000},
            {"id": OTHER_ID, "error": {"code": "BACKUP_NOT_FOUND", "message": "no such backup"}},
            {"id": UNDO_ID, "deleted": True, "freed_bytes": 2000},
        ]
    }


def test_the_first_failure_decides_the_status(answer: Answer) -> None:
    answer(delete={ID: RuntimeError("surprise"), OTHER_ID: StoreUnavailableError("gone")})
    assert main(["delete", ID, OTHER_ID]) == 1
    assert main(["delete", OTHER_ID, ID]) == StoreUnavailableError.exit_status


def test_one_is_told_without_a_list(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(delete=THREE)
    assert main(["delete", ID, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": ID, "deleted": True, "freed_bytes": 1000}
    assert main(["delete", OTHER_ID, "--json"]) == BackupNotFoundError.exit_status
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "BACKUP_NOT_FOUND"


def test_what_was_done_before_a_signal_is_told(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def stopped_after_work(work: Callable[[], object]) -> None:
        await work()  # type: ignore[misc]
        raise StoppedError(15)

    monkeypatch.setattr("sandpoint.cli.signals.until_signal", stopped_after_work)
    answer(delete={ID: THREE[ID], UNDO_ID: THREE[UNDO_ID]})
    assert main(["delete", ID, UNDO_ID, "--json"]) == 143
    told = json.loads(capsys.readouterr().out)
    assert [result["id"] for result in told["results"]] == [ID, UNDO_ID]
    assert told["error"]["code"] == "CANCELLED"


def test_settings_that_are_wrong_leave_only_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SANDPOINT_STATE_DIR", "relative")
    assert main(["verify", ID, OTHER_ID, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["error"]
    assert told["error"]["code"] == "INVALID_BACKUP_CONFIG"
