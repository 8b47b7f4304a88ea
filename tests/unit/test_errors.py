"""The exceptions: their codes and exit statuses."""

import re
from pathlib import Path

import pytest

from sandpoint import errors
from sandpoint.errors import ERRORS, BackupRestoreError, SandpointError

DESIGN = {
    "InvalidBackupConfigError": "INVALID_BACKUP_CONFIG",
    "BackupCreateError": "BACKUP_CREATE_FAILED",
    "BackupNotFoundError": "BACKUP_NOT_FOUND",
    "BackupExpiredError": "BACKUP_EXPIRED",
    "BackupRestoreError": "BACKUP_RESTORE_FAILED",
    "BackupIntegrityError": "BACKUP_INTEGRITY_FAILED",
    "SandboxUnavailableError": "SANDBOX_UNAVAILABLE",
    "StoreUnavailableError": "STORE_UNAVAILABLE",
    "ServerBusyError": "SERVER_BUSY",
}


def test_the_table_is_that_of_the_design() -> None:
    assert {error.__name__: code for code, error in ERRORS.items()} == DESIGN


def test_the_table_holds_every_error_that_there_is() -> None:
    assert set(ERRORS.values()) == set(SandpointError.__subclasses__())


def test_exit_statuses_are_unique_and_neither_success_nor_wrong_usage() -> None:
    statuses = [error.exit_status for error in ERRORS.values()]
    assert len(set(statuses)) == len(statuses)
    assert all(2 < status < 126 for status in statuses)


@pytest.mark.parametrize("error", ERRORS.values(), ids=lambda error: error.code)
def test_an_error_is_its_message(error: type[SandpointError]) -> None:
    assert str(error("what was tried, and why not")) == "what was tried, and why not"


def test_a_failed_restore_says_whether_the_directory_is_half_done() -> None:
    assert not BackupRestoreError("x").partly
    assert BackupRestoreError("x", partly=True).partly


def test_each_error_is_explained_in_one_sentence() -> None:
    for error in ERRORS.values():
        assert re.fullmatch(r"[^\n]+\.", str(error.__doc__)), error


def test_the_module_needs_nothing_else() -> None:
    assert "import" not in Path(str(errors.__file__)).read_text().replace("from typing import ClassVar", "")
