"""The exceptions: one code each, and one exit status for the command line."""

from typing import ClassVar


class SandpointError(Exception):
    """The base of all errors that Sandpoint raises on purpose.

    The message says what was tried, on what, why it failed, and what to do.
    """

    code: ClassVar[str]
    exit_status: ClassVar[int]


class InvalidBackupConfigError(SandpointError):
    """An option, a directory or an id does not meet its rules; nothing was done."""

    code = "INVALID_BACKUP_CONFIG"
    exit_status = 3


class NoSuchPathError(InvalidBackupConfigError):
    """A backup has nothing of that path."""


class BackupCreateError(SandpointError):
    """A backup could not be made; no part of it is left."""

    code = "BACKUP_CREATE_FAILED"
    exit_status = 4


class BackupNotFoundError(SandpointError):
    """The store has no backup of that id."""

    code = "BACKUP_NOT_FOUND"
    exit_status = 5


class BackupExpiredError(SandpointError):
    """The backup's time to live is over, or so nearly that a restore might not finish."""

    code = "BACKUP_EXPIRED"
    exit_status = 6


class BackupRestoreError(SandpointError):
    """A backup could not be brought back; the directory is as it was unless `partly` and the message say otherwise."""

    code = "BACKUP_RESTORE_FAILED"
    exit_status = 7

    def __init__(self, message: str, *, partly: bool = False) -> None:
        super().__init__(message)
        self.partly = partly


class PlanChangedError(BackupRestoreError):
    """The directory is no longer what the plan was made for; nothing was touched."""


class BackupIntegrityError(SandpointError):
    """What the store holds is not what was backed up: a layer, a manifest or metadata was altered."""

    code = "BACKUP_INTEGRITY_FAILED"
    exit_status = 8


class SandboxUnavailableError(SandpointError):
    """The sandbox cannot be reached, or its state directory cannot be used."""

    code = "SANDBOX_UNAVAILABLE"
    exit_status = 9

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        """It went in the middle of an operation, and nobody can tell how far that came."""


class StoreUnavailableError(SandpointError):
    """The store cannot be reached, read or written."""

    code = "STORE_UNAVAILABLE"
    exit_status = 10


class ServerBusyError(SandpointError):
    """A server that many use has no room for another operation, or is about to stop; nothing was done."""

    code = "SERVER_BUSY"
    exit_status = 11


ERRORS: dict[str, type[SandpointError]] = {
    error.code: error
    for error in (
        InvalidBackupConfigError,
        BackupCreateError,
        BackupNotFoundError,
        BackupExpiredError,
        BackupRestoreError,
        BackupIntegrityError,
        SandboxUnavailableError,
        StoreUnavailableError,
        ServerBusyError,
    )
}
"""Every error by its code, as it arrives from an engine that runs elsewhere."""
