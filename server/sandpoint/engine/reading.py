"""Reading one file of a backup, or what a folder of it holds, without a restore."""

import errno
import os
from typing import BinaryIO

from sandpoint.engine import tools, transfer
from sandpoint.engine.contents import open_regular
from sandpoint.engine.differences import kind_of
from sandpoint.engine.layers import opened_layer
from sandpoint.engine.lookup import Lookup, list_folder
from sandpoint.engine.manifest import Entry, display
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.errors import BackupIntegrityError, BackupRestoreError, InvalidBackupConfigError
from sandpoint.models import FolderRequest, Listing, ReadRequest, StoredBackup

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL})


def open_file(request: ReadRequest, state: State, monitor: Monitor) -> BinaryIO:
    """Open a regular file of a backup; it can be read to its end whatever becomes of the backup meanwhile.

    Only the layer that has it is needed, and its digest is checked first.

    Raises:
        NoSuchPathError: The path is not in the backup.
        InvalidBackupConfigError: It is no regular file.
        BackupIntegrityError: The manifest or the layer is damaged.
        BackupRestoreError: The layer cannot be read here.
    """
    lookup = _look_into(request, state, monitor)
    entry = _find(request, lookup)
    number = lookup.layer_of(entry.path)
    if number >= len(request.layers):
        raise BackupIntegrityError(
            f"the backup's metadata names {len(request.layers)} layers, and its manifests more; it is damaged"
        )
    layer = transfer.fetch(request.layers[number], state, monitor.check)
    try:
        with state.working() as work, opened_layer(layer, [entry.path], work, monitor.check) as root:
            fd = open_regular(root, entry.path)
    except (tools.ToolFailedError, tools.ToolMissingError) as error:
        raise BackupRestoreError(f"{display(entry.path)} cannot be read out of the backup: {error}") from None
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise _disagree(entry) from error
        raise BackupRestoreError(f"{display(entry.path)} cannot be read out of the backup: {error.strerror}") from error
    if os.fstat(fd).st_size != entry.size:
        os.close(fd)
        raise _disagree(entry)
    return os.fdopen(fd, "rb", buffering=0)


def folder(request: FolderRequest, state: State, monitor: Monitor) -> Listing:
    """Return what a path of a backup is, and what lies just below it; only the manifests are needed.

    Raises:
        NoSuchPathError: The path is not in the backup.
        BackupIntegrityError: A manifest is damaged.
    """
    return list_folder(_look_into(request, state, monitor), request.options, monitor.check)


def _look_into(backup: StoredBackup, state: State, monitor: Monitor) -> Lookup:
    return Lookup([transfer.fetch_bytes(source, state, monitor.check) for source in backup.manifests])


def _find(request: ReadRequest, lookup: Lookup) -> Entry:
    """Return the entry of the file to read: of hard links the first."""
    entry = lookup.named(request.path)
    name = display(entry.path)
    if entry.is_symlink:
        raise InvalidBackupConfigError(
            f"path: {name} is a symlink to {display(entry.target)}, and links are not followed; read that path if it "
            "is in the backup"
        )
    if entry.is_dir:
        raise InvalidBackupConfigError(f"path: {name} is a directory; name a file in it")
    if not entry.is_file:
        raise InvalidBackupConfigError(f"path: {name} is a {kind_of(entry)}, which has no contents; name a file")
    if not entry.hardlink:
        return entry
    first = lookup.find(entry.hardlink)
    if first is None or not first.is_file:
        raise _disagree(entry)
    return first


def _disagree(entry: Entry) -> BackupIntegrityError:
    return BackupIntegrityError(
        f"{display(entry.path)} is not in its layer as the manifest says it is; the backup is damaged"
    )
