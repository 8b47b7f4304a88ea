"""What the resources of backups say: JSON for a model to act on, and files with their MIME types."""

import json
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any
from urllib.parse import quote_from_bytes

from mcp.server.lowlevel.helper_types import ReadResourceContents

from sandpoint.mcp_server.results import BackupSummary
from sandpoint.mcp_server.uris import path_uri
from sandpoint.models import Backup, Listing, TreeEntry

JSON_TYPE = "application/json"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_AMBIGUOUS = frozenset("%?#")
"""Characters of a name that say something else in a URI."""

_TEXT_TYPES = frozenset(
    f"application/{kind}"
    for kind in ("javascript", "json", "manifest+json", "sql", "toml", "x-sh", "x-csh", "x-tex", "xml", "yaml")
)
"""Types of text that do not say so by their name."""

_MORE_TYPES = {
    ".md": "text/markdown",
    ".toml": "application/toml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""Those that not every version of Python knows."""


def as_json(value: dict[str, Any]) -> ReadResourceContents:
    """Return an object as a resource."""
    return ReadResourceContents(_json(value), JSON_TYPE)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def metadata_of(backup: Backup) -> dict[str, Any]:
    """Return what is known of a backup, with the URI of its tree."""
    told: dict[str, Any] = BackupSummary.of(backup, with_sandbox=True).model_dump(mode="json")
    excluded = {"excludes": [*backup.excludes]} if backup.excludes else {}
    ignored = {"use_gitignore": True} if backup.use_gitignore else {}
    return told | excluded | ignored | {"tree": path_uri(backup.id, "tree", b"")}


def tree_of(backup_id: str, listing: Listing, *, max_characters: int) -> dict[str, Any]:
    """Return a page of a folder, cut to so many characters of JSON but to no less than an entry.

    Entries whose names alone do not make their URIs have these too.
    """
    entries = [_entry(backup_id, listing.exact_path, entry) for entry in listing.entries]
    ends = list(accumulate(len(_json(entry)) for entry in entries))
    entries = entries[: max(1, bisect_right(ends, max_characters))]
    told: dict[str, Any] = {
        "id": backup_id,
        "path": listing.path,
        "entry_count": listing.entry_count,
        "entries": entries,
    }
    following = listing.next_cursor
    if len(entries) < len(listing.entries):
        following = quote_from_bytes(listing.entries[len(entries) - 1].exact_name, safe="")
    if following is not None:
        told["next"] = path_uri(backup_id, "tree", listing.exact_path, after=following)
    return told


def _entry(backup_id: str, folder: bytes, entry: TreeEntry) -> dict[str, Any]:
    told: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "mode": entry.mode}
    if entry.kind == "file":
        told["size_bytes"] = entry.size_bytes
    told["mtime"] = f"{_EPOCH + timedelta(microseconds=entry.mtime_ns // 1000):%Y-%m-%dT%H:%M:%SZ}"
    if entry.target is not None:
        told["target"] = entry.target
    is_plain = entry.quoted_name is None and _AMBIGUOUS.isdisjoint(entry.name)
    if not is_plain and entry.kind in ("file", "directory"):
        path = folder + b"/" + entry.exact_name if folder else entry.exact_name
        told["uri"] = path_uri(backup_id, "file" if entry.kind == "file" else "tree", path)
    return told


def as_content(path: bytes, content: bytes) -> ReadResourceContents:
    """Return a file as a resource: as text where it is UTF-8 without a NUL, else as bytes."""
    from sandpoint.engine.patches import is_text

    guessed = _guess(path)
    if not is_text(content):
        is_sure = guessed is not None and not _says_text(guessed)
        return ReadResourceContents(content, guessed if is_sure else "application/octet-stream")
    return ReadResourceContents(
        content.decode(), guessed if guessed is not None and _says_text(guessed) else "text/plain"
    )


def _guess(path: bytes) -> str | None:
    """Return the type that a name stands for by Python's own table, whatever this machine's says."""
    from mimetypes import MimeTypes

    table = MimeTypes()
    for ending, known in _MORE_TYPES.items():
        table.add_type(known, ending)
    name = path.rpartition(b"/")[2].decode("utf-8", "replace")
    kind, encoding = table.guess_type(f"/{name}")
    return "application/gzip" if encoding == "gzip" else None if encoding else kind


def _says_text(kind: str) -> bool:
    return kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+xml", "+json"))
