"""Reading one file of a backup, without a restore."""

import errno
import os
from typing import BinaryIO

from sandpoint.engine import tools, transfer
from sandpoint.engine.compare import read_manifest
from sandpoint.engine.contents import open_regular
from sandpoint.engine.differences import kind_of
from sandpoint.engine.layers import opened_layer
from sandpoint.engine.manifest import Entry, Manifest, display, paths_named
from sandpoint.engine.state import State
from sandpoint.engine.tools import Monitor
from sandpoint.errors import BackupIntegrityError, BackupRestoreError, InvalidBackupConfigError
from sandpoint.models import ReadRequest

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL})


def open_file(request: ReadRequest, state: State, monitor: Monitor) -> BinaryIO:
    """Open a regular file of a backup; it can be read to its end whatever becomes of the backup meanwhile.

    Only the layer that has it is needed, and its digest is checked first.

    Raises:
        InvalidBackupConfigError: The path is not in the backup, or is no regular file.
        BackupIntegrityError: The manifest or the layer is damaged.
        BackupRestoreError: The layer cannot be read here.
    """
    manifest = read_manifest(request, state, monitor.check)
    entry = _find(request, manifest)
    layer = transfer.fetch(request.layers[manifest.layers.get(entry.path, 0)], state, monitor.check)
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


def _find(request: ReadRequest, manifest: Manifest) -> Entry:
    """Return the entry of the file to read: of hard links the first."""
    (path,) = paths_named([request.path], [manifest])
    entry = manifest.entries.get(path)
    name = display(path)
    if entry is None:
        raise InvalidBackupConfigError(
            f"path: {name} is not in the backup; paths are relative to the backed-up directory, as diff prints them"
        )
    if entry.is_symlink:
        raise InvalidBackupConfigError(
            f"path: {name} is a symlink to {display(entry.target)}, and links are not followed; read that path if it "
            "is in the backup"
        )
    if entry.is_dir:
        raise InvalidBackupConfigError(f"path: {name} is a directory; name a file in it")
    if not entry.is_file:
        raise InvalidBackupConfigError(f"path: {name} is a {kind_of(entry)}, which has no contents; name a file")
    return manifest.entries[entry.hardlink] if entry.hardlink else entry


def _disagree(entry: Entry) -> BackupIntegrityError:
    return BackupIntegrityError(
        f"{display(entry.path)} is not in its layer as the manifest says it is; the backup is damaged"
    )
