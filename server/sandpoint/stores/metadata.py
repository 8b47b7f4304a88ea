"""`meta.json` as any store holds it: ours, and that of Cloudflare's Sandbox SDK."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sandpoint.errors import BackupIntegrityError
from sandpoint.models import DEFAULT_TTL, FORMAT_VERSION, BackupId, BackupMetadata, Moment, StoredLayer, Ttl
from sandpoint.models import describe_invalid as describe
from sandpoint.stores.base import LAYER_NAME, key_of

MAX_METADATA_BYTES = 1 << 20

FOREIGN_SANDBOX = "cloudflare"
"""The sandbox of foreign backups: no sandbox of ours has this id, so none builds on them."""


def parse_metadata(backup_id: str, content: bytes) -> BackupMetadata:
    """Return the metadata of a backup from its `meta.json`.

    Without a `formatVersion` it is a foreign one's, which does not tell how many files there are, nor how large: 0.

    Raises:
        BackupIntegrityError: It is damaged, or another backup's.
    """
    try:
        values = pydantic_core.from_json(content)
        is_ours = not isinstance(values, dict) or "formatVersion" in values
        metadata = BackupMetadata.model_validate_json(content) if is_ours else _foreign(values)
    except ValidationError as error:
        raise _damaged(backup_id, describe(error)) from None
    except ValueError as error:
        raise _damaged(backup_id, str(error)) from None
    if metadata.id != backup_id:
        raise BackupIntegrityError(f"the metadata of backup {backup_id} is that of {metadata.id}")
    if is_ours and (metadata.is_foreign or any(stored.sha256 is None for stored in metadata.files)):
        raise _damaged(backup_id, "a manifest or a digest is missing")
    return metadata


def _damaged(backup_id: str, why: str) -> BackupIntegrityError:
    return BackupIntegrityError(f"the metadata of backup {backup_id} is damaged: {why[:300]}; nothing was changed")


def _moment(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value / 1000, UTC)
        except (OverflowError, OSError):
            raise ValueError("no time in milliseconds") from None
    return value


class _Foreign(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)

    id: BackupId
    dir: str
    name: str | None = None
    size_bytes: Annotated[int, Field(ge=0, lt=1 << 63)]
    ttl: Ttl = DEFAULT_TTL
    created_at: Annotated[Moment, BeforeValidator(_moment)]


def _foreign(values: dict[str, Any]) -> BackupMetadata:
    found = _Foreign.model_validate(values)
    return BackupMetadata(
        format_version=FORMAT_VERSION,
        id=found.id,
        dir=found.dir,
        name=found.name,
        sandbox_id=FOREIGN_SANDBOX,
        ttl=found.ttl,
        created_at=found.created_at,
        expires_at=found.created_at + timedelta(seconds=found.ttl),
        size_bytes=found.size_bytes,
        total_bytes=0,
        file_count=0,
        manifest=None,
        layers=(StoredLayer(key=key_of(found.id, LAYER_NAME), size=found.size_bytes, sha256=None),),
    )
