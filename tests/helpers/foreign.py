"""Backups as Cloudflare's Sandbox SDK writes them: an archive by mksquashfs, and six fields."""

import json
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.bucket import BucketPlace
from helpers.place import Place

ID = "3f0e8a52-7c1d-4b6e-9a40-5d2c1b0f9e87"
"""Made by chance, as the SDK makes them."""


def archive_of(tree: Path, *options: str, compression: str = "lz4") -> bytes:
    """Return an archive of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "archive")
        argv = ["mksquashfs", str(tree), str(path), "-comp", compression, "-no-progress", "-quiet", *options]
        subprocess.run(argv, check=True, capture_output=True)
        return path.read_bytes()


def metadata_of(archive: bytes, *, dir: Path | str, id: str = ID, **changes: Any) -> dict[str, Any]:
    """Return what the SDK notes of an archive."""
    created = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"id": id, "dir": str(dir), "name": None, "sizeBytes": len(archive), "ttl": 259_200, "createdAt": created}
    return fields | changes


def put(place: Place, key: str, content: bytes) -> None:
    """Write a file into a store, behind its back."""
    if isinstance(place, BucketPlace):
        place.replace(key, content)
    else:
        path = place.store / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def put_backup(place: Place, archive: bytes, metadata: dict[str, Any]) -> str:
    """Write a backup into a store as the SDK does; return its id."""
    backup_id = str(metadata["id"])
    put(place, f"backups/{backup_id}/data.sqsh", archive)
    put(place, f"backups/{backup_id}/meta.json", json.dumps(metadata).encode())
    return backup_id


def back_up(place: Place, tree: Path, *, compression: str = "lz4", **changes: Any) -> str:
    """Back a tree up as the SDK does; return the id."""
    archive = archive_of(tree, compression=compression)
    return put_backup(place, archive, metadata_of(archive, **({"dir": place.tree} | changes)))
