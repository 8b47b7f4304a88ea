"""A bucket's own rules for what goes when. Rules of others in the same bucket stay as they are."""

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sandpoint.errors import BackupNotFoundError, InvalidBackupConfigError, StoreUnavailableError
from sandpoint.models import DEFAULT_TTL, BackupMetadata, Lifecycle, LifecycleRule
from sandpoint.stores.base import BACKUPS, METADATA_NAME, id_in, time_of
from sandpoint.stores.s3_bucket import Bucket, side_by_side
from sandpoint.stores.s3_client import code_of
from sandpoint.stores.s3_markers import DOOMED, INCOMING

_OURS = "sandpoint-"
_UPLOAD_DAYS = 2
"""An upload that takes longer fails, and says so."""

_MARKER_DAYS = 9
"""Longer than any lease: a grant of 7 days, and a day and an hour."""

_CHAIN = timedelta(hours=24)
_ROOM = timedelta(days=1)
_MAX_ID = 255

_LOOKED_S = 60
"""For so long the rules are taken to be as they were seen."""


def show_rules(bucket: Bucket) -> Lifecycle:
    """Return a bucket's rules."""
    return Lifecycle(bucket=bucket.connection.bucket, rules=tuple(map(_describe, _get(bucket)["Rules"])))


def apply_rules(bucket: Bucket, days: int, read: Callable[[str], BackupMetadata]) -> Lifecycle:
    """Set our rules for a bucket below its prefix, and return all of them.

    Files go when they are `days` old, whoever needs them: a delta needs files that are older than itself. What is
    there now is looked at; whoever later creates backups of a longer ttl sets the rules anew.

    Raises:
        InvalidBackupConfigError: A backup would lose files before its time; the message names the least `days`.
        BackupIntegrityError: A backup's metadata is damaged: what it needs is not known.
    """
    least, why = _least_days(bucket, read)
    if days < least:
        raise InvalidBackupConfigError(f"days: must be at least {least} (got {days}): {why}")
    ours = _rules(bucket.prefix, days)
    names = {rule["ID"] for rule in ours}
    found = _get(bucket)
    rules: Any = [_modern(rule) for rule in found["Rules"] if rule.get("ID") not in names] + ours
    threshold = found.get("TransitionDefaultMinimumObjectSize")
    with bucket.trying("set the lifecycle rules"):
        bucket.client.put_bucket_lifecycle_configuration(
            Bucket=bucket.connection.bucket,
            LifecycleConfiguration={"Rules": rules},
            **({"TransitionDefaultMinimumObjectSize": threshold} if threshold else {}),
        )
    return show_rules(bucket)


def _get(bucket: Bucket) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    with bucket.trying("read the lifecycle rules"):
        try:
            return dict(bucket.client.get_bucket_lifecycle_configuration(Bucket=bucket.connection.bucket))
        except ClientError as error:
            if code_of(error) == "NoSuchLifecycleConfiguration":
                return {"Rules": []}
            raise


def _rules(prefix: str, days: int) -> list[dict[str, Any]]:
    def rule(name: str, below: str, **action: dict[str, int]) -> dict[str, Any]:
        return {
            "ID": f"{_OURS}{name}:{prefix}"[:_MAX_ID],
            "Status": "Enabled",
            "Filter": {"Prefix": prefix + below},
            **action,
        }

    return [
        rule("uploads", BACKUPS, AbortIncompleteMultipartUpload={"DaysAfterInitiation": _UPLOAD_DAYS}),
        rule("incoming", INCOMING, Expiration={"Days": _MARKER_DAYS}),
        rule("doomed", DOOMED, Expiration={"Days": _MARKER_DAYS}),
        rule("backups", BACKUPS, Expiration={"Days": days}),
    ]


def _modern(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule with a filter: servers refuse to mix those with the old form, of a prefix alone."""
    if "Prefix" not in rule or "Filter" in rule:
        return rule
    return {name: value for name, value in rule.items() if name != "Prefix"} | {"Filter": {"Prefix": rule["Prefix"]}}


def _describe(rule: dict[str, Any]) -> LifecycleRule:
    condition = rule.get("Filter", {})
    return LifecycleRule(
        id=rule.get("ID", ""),
        prefix=condition.get("Prefix", condition.get("And", {}).get("Prefix", rule.get("Prefix", ""))),
        is_enabled=rule["Status"] == "Enabled",
        is_ours=rule.get("ID", "").startswith(_OURS),
        expire_days=rule.get("Expiration", {}).get("Days"),
        abort_uploads_days=rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
    )


class Kept:
    """How long the rules of a bucket leave files of backups in it."""

    def __init__(self, bucket: Bucket) -> None:
        """Take the bucket."""
        self._bucket = bucket
        self._days: int | None = None
        self._looked = -math.inf

    def days(self) -> int | None:
        """Return after how many days a file goes; None if none does, or these credentials may not know."""
        if time.monotonic() - self._looked > _LOOKED_S:
            try:
                rules = show_rules(self._bucket).rules
            except StoreUnavailableError:
                rules = ()
            below = self._bucket.prefix + BACKUPS
            self._days = min(
                (rule.expire_days for rule in rules if rule.expire_days and rule.is_enabled and _meets(rule, below)),
                default=None,
            )
            self._looked = time.monotonic()
        return self._days


def _meets(rule: LifecycleRule, below: str) -> bool:
    return below.startswith(rule.prefix) or rule.prefix.startswith(below)


def _least_days(bucket: Bucket, read: Callable[[str], BackupMetadata]) -> tuple[int, str]:
    """Return after how many days no file is needed any more, and why not earlier."""

    def read_if_there(backup_id: str) -> BackupMetadata | None:
        try:
            return read(backup_id)
        except BackupNotFoundError:
            return None

    least = timedelta(seconds=DEFAULT_TTL) + _CHAIN + _ROOM
    why = "a delta of the default ttl needs the files that it is built on for so long"
    now = datetime.now(UTC)
    for metadata in side_by_side(read_if_there, list(_visible(bucket))):
        if metadata is None or metadata.expires_at <= now:
            continue
        needed = metadata.expires_at - min(_made(stored.key, metadata) for stored in metadata.files) + _ROOM
        if needed > least:
            least, why = needed, f"backup {metadata.id} needs its files until {metadata.expires_at:%Y-%m-%d %H:%M} UTC"
    return -(-least // timedelta(days=1)), why


def _visible(bucket: Bucket) -> Iterator[str]:
    for found in bucket.files(BACKUPS):
        owner, _, name = found.key.removeprefix(BACKUPS).partition("/")
        if name == METADATA_NAME and id_in(owner):
            yield owner


def _made(key: str, metadata: BackupMetadata) -> datetime:
    """Return when a file was made, at the earliest."""
    made = time_of(key.split("/")[1])
    return metadata.created_at if made is None else datetime.fromtimestamp(made / 1000, UTC)
