"""The URIs of backups as resources.

    backup://{id}                what is known of a backup
    backup://{id}/tree/{path}    what a folder of it holds; with ?after={name} what follows a name
    backup://{id}/file/{path}    a file as it was

Paths are percent-encoded bytes, slashes as they are or encoded: names need not be UTF-8, nor plain. A `?` in a name is
always encoded.
"""

import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.models import parse_backup_id

SCHEME = "backup"

View = Literal["metadata", "tree", "file"]

TEMPLATES: dict[View, str] = {
    "metadata": "backup://{id}",
    "tree": "backup://{id}/tree/{path}",
    "file": "backup://{id}/file/{path}",
}

MAX_URI = 65_536
"""Characters: room for the longest path that a kernel takes, every byte of it encoded."""

_VIEWS: dict[str, View] = {"tree": "tree", "file": "file"}
_NO_NAMES = frozenset({b"", b".", b".."})


@dataclass(frozen=True)
class BackupUri:
    """What a URI names. `path` is as `os.fsdecode` gives it; `after` is a name, percent-encoded."""

    id: str
    view: View = "metadata"
    path: str = ""
    after: str | None = None


def is_ours(uri: str) -> bool:
    """Whether a URI is one of a backup, or would be."""
    return uri[: len(SCHEME) + 1].lower() == f"{SCHEME}:"


def parse_uri(uri: str) -> BackupUri | None:
    """Return what a URI names, None for what can name nothing."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() != SCHEME or len(uri) > MAX_URI or "#" in rest:
        return None
    rest, has_query, query = rest.partition("?")
    given_id, _, rest = rest.partition("/")
    given_view, _, rest = rest.partition("/")
    key, _, after = query.partition("=")
    try:
        backup_id = parse_backup_id(given_id)
        path = unquote_to_bytes(rest).rstrip(b"/")
    except (InvalidBackupConfigError, UnicodeEncodeError):
        return None
    view = _VIEWS.get(given_view)
    if b"\0" in path or (path and not _NO_NAMES.isdisjoint(path.split(b"/"))):
        return None
    if has_query and not (view == "tree" and key == "after" and after):
        return None
    if view is None or (view == "file" and not path):
        return BackupUri(backup_id) if not (given_view or rest) else None
    return BackupUri(backup_id, view, os.fsdecode(path), after or None)


def metadata_uri(backup_id: str) -> str:
    """Return the URI of what is known of a backup."""
    return f"{SCHEME}://{backup_id}"


def path_uri(backup_id: str, view: Literal["tree", "file"], path: bytes, *, after: str | None = None) -> str:
    """Return the URI of a folder or a file; `after` is percent-encoded already."""
    query = "" if after is None else f"?after={after}"
    return f"{metadata_uri(backup_id)}/{view}/{quote_from_bytes(path)}{query}"
