import json
from collections.abc import Callable

import pytest

from helpers.cli import ID, OTHER_ID, FakeService
from sandpoint.cli import main
from sandpoint.errors import BackupIntegrityError
from sandpoint.models import VerifyResult

Answer = Callable[..., FakeService]

WHOLE = VerifyResult(id=ID, ok=True, checked_bytes=2_000_000)
BAD = VerifyResult(id=OTHER_ID, ok=False, checked_bytes=10, problem="layer 1 is shorter than it was")


def test_a_whole_backup_is_said_to_be(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(verify=WHOLE)
    assert main(["verify", ID]) == 0
    assert capsys.readouterr() == (f"{ID}: whole, 2.0 MB checked.\n", "")


def test_of_one_that_another_program_wrote_only_the_size_is_said_to_be_right(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(verify=WHOLE.model_copy(update={"size_only": True}))
    assert main(["verify", ID]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{ID}: as large as it should be, 2.0 MB. ")
    assert "another program wrote it" in out
    assert err == ""


def test_a_bad_backup_is_an_error_and_its_result_is_printed(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(verify=BAD)
    assert main(["verify", OTHER_ID]) == BackupIntegrityError.exit_status
    assert capsys.readouterr().err == (f"error: {OTHER_ID}: layer 1 is shorter than it was [BACKUP_INTEGRITY_FAILED]\n")
    assert main(["verify", OTHER_ID, "--json"]) == BackupIntegrityError.exit_status
    assert json.loads(capsys.readouterr().out) == BAD.model_dump(mode="json")


def test_of_several_each_is_told(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(verify={ID: WHOLE, OTHER_ID: BAD})
    assert main(["verify", OTHER_ID, ID]) == BackupIntegrityError.exit_status
    out, err = capsys.readouterr()
    assert out == f"{ID}: whole, 2.0 MB checked.\n"
    assert OTHER_ID in err
    assert main(["verify", ID, OTHER_ID, "--json"]) == BackupIntegrityError.exit_status
    assert [result["ok"] for result in json.loads(capsys.readouterr().out)["results"]] == [True, False]
