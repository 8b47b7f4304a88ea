import json
import signal

import pytest

from sandpoint.cli.failures import Failure, StoppedError, describe, show_failure
from sandpoint.errors import ERRORS, SandpointError


@pytest.mark.parametrize("error", ERRORS.values())
def test_a_coded_error_keeps_its_code_sentence_and_status(error: type[SandpointError]) -> None:
    assert describe(error("what was tried")) == Failure(error.code, "what was tried", error.exit_status)


def test_every_error_has_its_own_status_and_none_of_the_shells() -> None:
    statuses = [error.exit_status for error in ERRORS.values()]
    assert len(set(statuses)) == len(statuses)
    assert not set(statuses) & {0, 1, 2, 130, 141, 143}


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoppedError(signal.SIGINT), 130), (StoppedError(signal.SIGTERM), 143), (KeyboardInterrupt(), 130)],
)
def test_a_signal_is_told_as_a_shell_would(error: BaseException, status: int) -> None:
    failure = describe(error)
    assert (failure.code, failure.status) == ("CANCELLED", status)


def test_an_unexpected_error_says_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = describe(ZeroDivisionError("by zero"))
    assert (failure.code, failure.status) == ("INTERNAL_ERROR", 1)
    assert "ZeroDivisionError: by zero" in failure.message
    assert "SANDPOINT_DEBUG=1" in failure.message
    assert capsys.readouterr().err == ""

    monkeypatch.setenv("SANDPOINT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 / 0)
    describe(caught.value)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_person_reads_it_on_stderr_and_a_program_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure("BACKUP_EXPIRED", "over\x1b]0;title\x07", 6)
    show_failure(failure, as_json=False)
    assert capsys.readouterr() == ("", "error: over\\x1b]0;title\\x07 [BACKUP_EXPIRED]\n")
    show_failure(failure, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"code": "BACKUP_EXPIRED", "message": "over\x1b]0;title\x07"}}
    assert err == ""
