"""Comparing: names as they are shown, and metadata that does not fit its manifests."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from helpers.engine import HEADER, entry, folder, manifest, never
from sandpoint.engine.compare import explained, read_manifest
from sandpoint.engine.manifest import Manifest, make_manifest, paths_named
from sandpoint.engine.state import State
from sandpoint.engine.tools import ToolFailedError
from sandpoint.errors import BackupIntegrityError, BackupRestoreError
from sandpoint.models import CompareRequest, PathGrant, Source, StoredBackup


def stored(folder_: Path, *contents: bytes) -> tuple[Source, ...]:
    sources = []
    for number, content in enumerate(contents):
        path = folder_ / str(number)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        sources.append(Source(size=len(content), sha256=digest, grant=PathGrant(path=str(path))))
    return tuple(sources)


def test_a_backup_with_fewer_layers_than_its_manifests_need_is_damaged(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    parent = manifest(entry(b"a"), entry(b"b"))
    later = make_manifest(HEADER, [folder(b""), entry(b"a", size=2), entry(b"b")])
    manifests = stored(tmp_path, parent.content, later.since(parent, {b"a"}).content)
    whole = StoredBackup(manifests=manifests, layers=manifests)
    assert read_manifest(whole, state, never).layers == {b"a": 1}
    with pytest.raises(BackupIntegrityError, match="names 1 layers"):
        read_manifest(whole.model_copy(update={"layers": manifests[:1]}), state, never)


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (["a", "b"], [b"a", b"b"]),
        (["new\\nline", "a"], [b"new\nline", b"a"]),
        (["new\nline"], [b"new\nline"]),
        (["literal\\n"], [b"literal\\n"]),
        (["caf\\xe9", "caf\udce9"], [b"caf\xe9", b"caf\xe9"]),
        (["unknown", "caf\\xe9"], [b"unknown", b"caf\xe9"]),
        ([], []),
    ],
)
def test_names_are_known_as_they_are_and_as_they_are_shown(names: list[str], paths: list[bytes]) -> None:
    first = manifest(entry(b"a"), entry(b"new\nline"), entry(b"literal\\n"), entry(b"literal\n"))
    second: Manifest = manifest(entry(b"b"), entry(b"caf\xe9"))
    assert paths_named(names, [first, second]) == paths


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            OSError(errno.EACCES, "Permission denied", "a"),
            "Permission denied (a); let this user write there, or",
        ),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "quota exceeded; free some space on the filesystems"),
        (ToolFailedError("unsquashfs failed: No space left on device"), "left on device; free some space"),
        (OSError(errno.EIO, "Input/output error", "a"), "cannot be restored: Input/output error (a). It is as before"),
    ],
)
def test_a_failure_says_what_to_do_where_that_is_known(failure: Exception, told: str) -> None:
    request = CompareRequest(dir="/home/me/project", manifests=(), layers=())
    with pytest.raises(BackupRestoreError) as caught, explained(request, "restored"):
        raise failure
    assert told in str(caught.value)
