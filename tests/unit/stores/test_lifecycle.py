"""The bucket's own rules: set where no backup loses what it needs, and nobody else's touched."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from helpers.s3 import S3Server
from helpers.stores import describe, ids, put, put_foreign, upload_files
from sandpoint.errors import BackupIntegrityError, InvalidBackupConfigError, StoreUnavailableError
from sandpoint.models import LifecycleRule
from sandpoint.stores.s3 import S3Store

pytestmark = pytest.mark.anyio

OpenS3 = Callable[..., S3Store]


@pytest.fixture
def s3(open_s3: OpenS3, bucket: str) -> S3Store:
    return open_s3(f"s3://{bucket}/p")


def made(days_ago: float) -> tuple[str, datetime]:
    """Return the id of a backup that was made so many days ago, and when."""
    created = datetime.now(UTC) - timedelta(days=days_ago)
    return str(UUID(int=int(created.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62)), created


def living(created: datetime, days: float) -> dict[str, Any]:
    return {
        "created_at": created,
        "ttl": days * 86_400,
        "expires_at": created + timedelta(days=days),
    }


async def test_a_bucket_without_rules_has_none(s3: S3Store) -> None:
    assert (await s3.lifecycle()).rules == ()


async def test_rules_are_for_what_is_ours(s3: S3Store, bucket: str) -> None:
    applied = await s3.apply_lifecycle(9)
    assert applied.bucket == bucket
    assert applied == await s3.lifecycle()
    assert {(rule.prefix, rule.expire_days, rule.abort_uploads_days) for rule in applied.rules} == {
        ("p/backups/", 9, None),
        ("p/backups/", None, 2),
        ("p/incoming/", 9, None),
        ("p/doomed/", 9, None),
    }
    assert all(rule.is_ours and rule.is_enabled for rule in applied.rules)


async def test_rules_of_others_stay(s3: S3Store, open_s3: OpenS3, s3_server: S3Server, bucket: str) -> None:
    theirs = {"ID": "mine", "Status": "Disabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    s3_server.client().put_bucket_lifecycle_configuration(
        Bucket=bucket,
        LifecycleConfiguration={"Rules": [theirs]},  # type: ignore[list-item]
    )
    await open_s3(f"s3://{bucket}").apply_lifecycle(8)
    await s3.apply_lifecycle(9)
    before = await s3.apply_lifecycle(10)
    assert await s3.apply_lifecycle(10) == before
    assert len(before.rules) == 1 + 4 + 4
    assert LifecycleRule(id="mine", prefix="logs/", is_enabled=False, is_ours=False, expire_days=3) in before.rules
    assert {rule.expire_days for rule in before.rules if rule.prefix == "backups/"} == {8, None}
    assert {rule.expire_days for rule in before.rules if rule.prefix == "p/backups/"} == {10, None}


async def test_less_than_a_default_delta_needs_is_refused(s3: S3Store) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^days: must be at least 5 \(got 4\)"):
        await s3.apply_lifecycle(4)
    assert (await s3.lifecycle()).rules == ()
    await s3.apply_lifecycle(5)


async def test_no_backup_loses_what_it_needs(s3: S3Store) -> None:
    (parent_id, parent_made), (child_id, child_made) = made(9.5), made(9)
    parent = await put(s3, parent_id, **living(parent_made, 1))
    upload = await upload_files(s3, child_id, parent.layers)
    await s3.commit(describe(child_id, upload, layers=parent.layers, **living(child_made, 30)))
    assert len(await ids(s3)) == 2
    with pytest.raises(InvalidBackupConfigError, match=rf"at least 32 \(got 31\): backup {child_id} needs its files"):
        await s3.apply_lifecycle(31)
    await s3.apply_lifecycle(32)
    await s3.hide(child_id)
    await s3.apply_lifecycle(5)


async def test_foreign_backups_are_not_lost_either(s3: S3Store) -> None:
    foreign = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
    await put_foreign(s3, foreign, ttl=20 * 86_400)
    with pytest.raises(InvalidBackupConfigError, match=rf"at least 21 .* backup {foreign}"):
        await s3.apply_lifecycle(20)


async def test_a_server_that_knows_no_rules_is_said(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    def refuse(**_arguments: object) -> None:
        answer: Any = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        raise ClientError(answer, "GetBucketLifecycleConfiguration")

    monkeypatch.setattr(s3._bucket.client, "get_bucket_lifecycle_configuration", refuse)
    with pytest.raises(StoreUnavailableError, match="the server cannot do that"):
        await s3.lifecycle()


async def test_a_backup_that_the_rules_would_cut_short_is_refused(open_s3: OpenS3, bucket: str) -> None:
    await open_s3(f"s3://{bucket}/p").apply_lifecycle(5)
    backup_id, _ = made(0)
    for prefix in ("p", "another"):
        store = open_s3(f"s3://{bucket}/{prefix}")
        if prefix == "p":
            with pytest.raises(InvalidBackupConfigError, match=r"^ttl: .* after 5 days; use at most 432000"):
                await store.begin(backup_id, ttl=5 * 86_400 + 1)
        else:
            await store.begin(backup_id, ttl=5 * 86_400 + 1)
        await store.abandon(backup_id)
        await store.begin(backup_id, ttl=5 * 86_400)
        await store.abandon(backup_id)
        assert await store.reclaim() == ([], 0)


async def test_nothing_is_built_on_what_the_rules_remove_before_its_time(open_s3: OpenS3, bucket: str) -> None:
    old, created = made(1)
    new, _ = made(0)
    store = open_s3(f"s3://{bucket}/p")
    parent = await put(store, old, **living(created, 2))
    await store.apply_lifecycle(5)
    other = open_s3(f"s3://{bucket}/p")
    await other.begin(new, parent.layers, ttl=4 * 86_400 - 60)
    await other.abandon(new)
    with pytest.raises(BackupIntegrityError, match="by its rules the bucket removes"):
        await other.begin(new, parent.layers, ttl=4 * 86_400 + 60)
