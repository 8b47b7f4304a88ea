"""Point-in-time backups of sandbox directories for coding agents and tests."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandpoint.errors import (
        BackupCreateError,
        BackupExpiredError,
        BackupIntegrityError,
        BackupNotFoundError,
        BackupRestoreError,
        InvalidBackupConfigError,
        NoSuchPathError,
        SandboxUnavailableError,
        SandpointError,
        ServerBusyError,
        StoreUnavailableError,
    )
    from sandpoint.models import (
        Backup,
        BackupPage,
        Changes,
        ContentChanges,
        Decision,
        DeleteResult,
        FileDiff,
        ForkResult,
        Lifecycle,
        Listing,
        Progress,
        PruneResult,
        RestoreResult,
        TreeEntry,
        UnmountResult,
        VerifyResult,
    )
    from sandpoint.service import BackupService, open_service
    from sandpoint.services import Services
    from sandpoint.settings import Settings, read_settings

__all__ = [
    "Backup",
    "BackupCreateError",
    "BackupExpiredError",
    "BackupIntegrityError",
    "BackupNotFoundError",
    "BackupPage",
    "BackupRestoreError",
    "BackupService",
    "Changes",
    "ContentChanges",
    "Decision",
    "DeleteResult",
    "FileDiff",
    "ForkResult",
    "InvalidBackupConfigError",
    "Lifecycle",
    "Listing",
    "NoSuchPathError",
    "Progress",
    "PruneResult",
    "RestoreResult",
    "SandboxUnavailableError",
    "SandpointError",
    "ServerBusyError",
    "Services",
    "Settings",
    "StoreUnavailableError",
    "TreeEntry",
    "UnmountResult",
    "VerifyResult",
    "open_service",
    "read_settings",
]


def __getattr__(name: str) -> object:
    # Loaded on first use: `sandpoint --help` and a pytest run need none of it.
    if name in __all__:
        for home in ("errors", "models", "settings", "service", "services"):
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
