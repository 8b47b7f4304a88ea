"""A store in a bucket: its settings, its errors, secrets, and what writers and removers do to each other."""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers.s3 import S3Server
from helpers.stores import (
    LAYER,
    MANIFEST,
    describe,
    id_at,
    ids,
    put,
    put_raw,
    read_file,
    receive,
    send,
    stored,
    upload_files,
    write_file,
)
from sandpoint.errors import BackupIntegrityError, BackupNotFoundError, InvalidBackupConfigError, StoreUnavailableError
from sandpoint.models import GetGrant, MultipartGrant, PutGrant, RelayGrant, SentFile, StoredFile
from sandpoint.settings import read_settings
from sandpoint.stores import open_store, s3_bucket, s3_client, s3_markers
from sandpoint.stores.s3 import S3Store
from sandpoint.stores.s3_client import Connection
from sandpoint.stores.s3_markers import new_lease
from sandpoint.stores.s3_transfers import granted_s, part_bytes

pytestmark = pytest.mark.anyio

OpenS3 = Callable[..., S3Store]
FIRST, SECOND, THIRD = id_at(1), id_at(2), id_at(3)
SECRET = "hushhushhush"
R2 = {
    "CLOUDFLARE_ACCOUNT_ID": "acc0",
    "R2_ACCESS_KEY_ID": "keyid",
    "R2_SECRET_ACCESS_KEY": SECRET,
    "BACKUP_BUCKET_NAME": "mine",
}


@pytest.fixture
def s3(open_s3: OpenS3) -> S3Store:
    return open_s3()


def connection_of(url: str, environment: dict[str, str]) -> Connection:
    store = open_store(url, read_settings(environment))
    assert isinstance(store, S3Store)
    return store._bucket.connection


def keys(store: S3Store, below: str = "") -> list[str]:
    return [found.key for found in store._bucket.files(below)]


# -- settings --


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://b", "b", ""),
        ("s3://b/", "b", ""),
        ("s3://b/p", "b", "p/"),
        ("s3://b/p/q/", "b", "p/q/"),
        ("s3://b/a%20b", "b", "a b/"),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix(url: str, bucket: str, prefix: str) -> None:
    store = open_store(url, read_settings({}))
    assert isinstance(store, S3Store)
    assert (store._bucket.connection, store._bucket.prefix) == (Connection(bucket), prefix)
    assert store.local_path is None
    assert store.relay is None


@pytest.mark.parametrize("url", ["s3:", "s3://", "s3:///p", "s3://b/a//b", "s3://b/../c", "s3://b/p?x=1", "s3://b/%00"])
def test_a_url_that_names_none(url: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^store: .*s3://bucket"):
        open_store(url, read_settings({}))


def test_a_key_that_was_written_into_the_url_is_not_said_again() -> None:
    with pytest.raises(InvalidBackupConfigError) as raised:
        open_store(f"s3://key:{SECRET}@bucket/p", read_settings({}))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(("url", "bucket"), [("s3://b/p", "b"), ("s3://", "mine"), ("s3:///p", "mine")])
def test_r2_is_found_by_its_own_variables(url: str, bucket: str) -> None:
    found = connection_of(url, R2)
    assert found == Connection(bucket, "https://acc0.r2.cloudflarestorage.com", "auto", "keyid", SECRET)
    assert SECRET not in repr(found)


def test_another_endpoint_wins_over_r2s() -> None:
    found = connection_of("s3://b", R2 | {"SANDPOINT_S3_ENDPOINT_URL": "http://x:1"})
    assert found == Connection("b", "http://x:1")


@pytest.mark.parametrize("given", ["R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"])
def test_each_variable_of_r2_that_is_missing_is_named(given: str) -> None:
    with pytest.raises(InvalidBackupConfigError) as raised:
        open_store("s3://", read_settings({given: SECRET}))
    assert {name for name in R2 if name in str(raised.value)} == {*R2} - {given}
    assert SECRET not in str(raised.value)


def test_what_is_set_for_r2_is_nothing_to_other_stores(tmp_path: Path) -> None:
    assert open_store(tmp_path.as_uri(), read_settings({"R2_ACCESS_KEY_ID": "x"})).local_path == str(tmp_path)


def test_secrets_are_in_no_settings_that_are_shown() -> None:
    settings = read_settings(R2 | {"SANDPOINT_STORE": "s3://b"})
    store = open_store(settings.store, settings)
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(store), repr(vars(store))):
        assert SECRET not in shown


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp//x"])
async def test_an_endpoint_that_is_none(open_s3: OpenS3, url: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match="SANDPOINT_S3_ENDPOINT_URL"):
        await open_s3(endpoint=url).check()


def test_no_client_is_loaded_before_it_is_used() -> None:
    program = (
        "import sys, sandpoint.stores as stores; stores.open_store('file:///x'); assert 'sandpoint.stores.s3' not in "
        "sys.modules; stores.open_store('s3://b'); assert not {'boto3', 'botocore', 'urllib3'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# -- errors --


async def said_by(store: S3Store, *, error: type[Exception] = StoreUnavailableError) -> str:
    """Return the message of every operation that meets the same fault, which all say."""
    messages = []
    for use in (
        lambda: store.check(),
        lambda: store.read(FIRST),
        lambda: store.begin(FIRST),
        lambda: store.hide(FIRST),
        lambda: store.reclaim(),
        lambda: store.accept(f"backups/{FIRST}/data.sqsh", SentFile(size=1, sha256="0" * 64)),
        lambda: ids(store),
    ):
        with pytest.raises(error) as raised:
            await use()
        messages.append(str(raised.value))
        assert raised.value.__cause__ is None
    return "\n".join(messages)


async def test_a_wrong_secret_is_said(open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    said = await said_by(open_s3())
    assert said.count("the secret access key is wrong (SignatureDoesNotMatch, HTTP status 403)") == 7
    assert SECRET not in said


async def test_an_unknown_key_is_said(open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKNOBODY")
    assert (await said_by(open_s3())).count("its access key is not known there") == 7


async def test_missing_credentials_are_said(open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    said = await said_by(open_s3(), error=InvalidBackupConfigError)
    assert said.count("there are no credentials (NoCredentialsError); set AWS_ACCESS_KEY_ID") == 7


async def test_a_missing_bucket_is_said(open_s3: OpenS3) -> None:
    store = open_s3("s3://no-such-bucket")
    for use in (store.check, lambda: store.read(FIRST), lambda: store.begin(FIRST), lambda: store.hide(FIRST)):
        with pytest.raises(StoreUnavailableError, match=r"the bucket no-such-bucket at .*: there is no such bucket"):
            await use()


async def test_a_server_that_is_not_there_is_said(open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        said = await said_by(open_s3(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert said.count("the server cannot be reached (EndpointConnectionError)") == 7
    assert said.count("Try again") == 7


async def test_a_server_that_says_nothing_is_said(open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreUnavailableError, match=r"does not answer in time \(ReadTimeoutError\).* Try again$"):
            await open_s3(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}").read(FIRST)


async def test_a_certificate_that_nobody_trusts_is_said(
    open_s3: OpenS3, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(StoreUnavailableError, match=r"certificate is not trusted.*\(SSLError\).*AWS_CA_BUNDLE"):
        await open_s3(endpoint=s3_environment.https_url).read(FIRST)


async def test_a_wrong_clock_is_said(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_args: object, **_options: object) -> datetime:
        return datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=2)

    monkeypatch.setattr("botocore.auth.get_current_datetime", wrong)
    said = await said_by(s3)
    assert said.count("this machine's clock is wrong (RequestTimeTooSkewed, HTTP status 403); set it") == 7


@pytest.mark.parametrize(
    ("code", "status", "says", "again"),
    [
        ("AccessDenied", 403, "they need s3:GetObject", False),
        ("ExpiredToken", 400, "sign in again", False),
        ("PermanentRedirect", 301, "set AWS_REGION", False),
        ("QuotaExceeded", 403, "the storage is full", False),
        ("InsufficientStorage", 507, "the storage is full", False),
        ("Whatever", 507, "the storage is full", False),
        ("EntityTooLarge", 400, "the file is larger than the server takes", False),
        ("SlowDown", 503, "the server is busy or failing", True),
        ("InternalError", 500, "the server is busy or failing", True),
        ("", 502, "the server is busy or failing", True),
        ("Teapot", 418, "it answered with an error (Teapot, HTTP status 418)", False),
    ],
)
async def test_what_a_server_answers_is_said(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch, code: str, status: int, says: str, again: bool
) -> None:
    from botocore.exceptions import ClientError

    def fail(**_arguments: object) -> None:
        raise ClientError(
            {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
            "PutObject",
        )

    monkeypatch.setattr(s3._bucket.client, "put_object", fail)
    with pytest.raises(StoreUnavailableError) as raised:
        await s3.check()
    message = str(raised.value)
    assert "cannot write incoming/check-" in message
    assert says in message
    assert message.endswith("Try again") == again
    assert SECRET not in message


async def test_no_secret_is_in_any_log(
    open_s3: OpenS3, s3_environment: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = open_s3()
    written = await put(store, FIRST)
    await write_file(store, (await store.begin(SECOND)).layer_key, bytes(17 << 20))
    await store.abandon(SECOND)
    assert read_file(store, written.layers) == [LAYER]
    await ids(store)
    with pytest.raises(BackupNotFoundError):
        await store.read(THIRD)
    for secret in (s3_environment.secret_key, s3_environment.access_key, "Signature", "AWS4-HMAC"):
        assert secret not in caplog.text


# -- grants --


@pytest.mark.parametrize("size", [0, 1, 16 << 20, 1 << 30, 156 << 30, 160 << 30, 5 << 40])
def test_parts_are_few_and_large_enough(size: int) -> None:
    assert part_bytes(size) >= 16 << 20
    assert -(-size // part_bytes(size)) <= 10_000


def test_a_grant_lasts_as_long_as_a_slow_line_needs_and_no_longer_than_a_signature_may() -> None:
    assert granted_s(0) == 900
    assert granted_s(1 << 30) == 900 + 4096
    assert granted_s(1 << 50) == 7 * 86_400


async def test_a_small_file_is_granted_as_one_request_and_only_as_it_is(s3: S3Store) -> None:
    upload = await s3.begin(FIRST)
    described = stored(upload.layer_key, LAYER)
    assert described.sha256 is not None
    grant = await s3.grant_put(upload.layer_key, StoredFile(size=described.size, sha256=described.sha256))
    assert isinstance(grant, PutGrant)
    assert grant.url not in repr(grant)
    for other in (b"x" + LAYER, b"x" + LAYER[1:]):
        with pytest.raises(AssertionError):
            send(s3, grant, other)
    assert keys(s3, "backups/") == []
    send(s3, grant, LAYER)
    assert keys(s3, "backups/") == [upload.layer_key]


async def test_a_grant_is_for_one_file(s3: S3Store) -> None:
    written = await put(s3, FIRST)
    grant = s3.grant_get(written.layers[0])
    assert isinstance(grant, GetGrant)
    assert grant.url not in repr(grant)
    with pytest.raises(AssertionError):
        send(s3, PutGrant(key=grant.key, url=grant.url.replace("data.sqsh", "manifest.zst"), headers={}), b"x")
    assert receive(s3, written.layers[0]) == LAYER


async def test_files_of_other_sizes_or_digests_are_not_accepted(s3: S3Store) -> None:
    upload = await upload_files(s3, FIRST)
    sent = stored(upload.layer_key, LAYER)
    with pytest.raises(StoreUnavailableError, match="has 7 bytes in the store where 8 were sent; try again"):
        await s3.accept(upload.layer_key, SentFile(size=8, sha256=sent.sha256 or ""))
    with pytest.raises(StoreUnavailableError, match="is not in the store; try again"):
        await s3.accept(f"backups/{FIRST}/other.sqsh", SentFile(size=8, sha256="0" * 64))


async def in_parts(store: S3Store, content: bytes) -> tuple[str, SentFile]:
    upload = await store.begin(FIRST)
    sha256 = stored(upload.layer_key, content).sha256
    assert sha256 is not None
    grant = await store.grant_put(upload.layer_key, StoredFile(size=len(content), sha256=sha256))
    assert isinstance(grant, MultipartGrant)
    return upload.layer_key, SentFile(size=len(content), sha256=sha256, parts=send(store, grant, content))


async def test_an_answer_to_the_last_request_of_an_upload_may_be_lost(s3: S3Store) -> None:
    key, sent = await in_parts(s3, bytes(17 << 20))
    upload_id = s3._grants._uploads[key]
    assert s3._bucket.complete_upload(key, upload_id, sent.parts)
    s3._bucket.abort_upload(key, upload_id)
    await s3.accept(key, sent)
    assert [found.size for found in s3._bucket.files("backups/")] == [17 << 20]


async def test_an_upload_that_somebody_aborted_is_not_accepted(s3: S3Store) -> None:
    key, sent = await in_parts(s3, bytes(17 << 20))
    s3._bucket.abort_upload(key, s3._grants._uploads[key])
    with pytest.raises(StoreUnavailableError, match="is not in the store; try again"):
        await s3.accept(key, sent)


async def test_a_part_that_is_missing_is_not_accepted(s3: S3Store) -> None:
    key, sent = await in_parts(s3, bytes(33 << 20))
    with pytest.raises(StoreUnavailableError, match="was sent in 2 parts where 3 were to be"):
        await s3.accept(key, sent.model_copy(update={"parts": sent.parts[:2]}))
    await s3.abandon(FIRST)
    assert s3._bucket.uploads("") == []
    assert keys(s3) == []


async def test_an_upload_is_ended_by_its_id_where_the_server_lists_none(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_parts(s3, bytes(17 << 20))
    with monkeypatch.context() as patch:
        patch.setattr(s3._bucket, "uploads", lambda below: [])
        await s3.abandon(FIRST)
    assert s3._bucket.uploads("") == []


async def test_a_check_that_fails_leaves_nothing(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise StoreUnavailableError("no")

    monkeypatch.setattr(s3._markers, "doomed", fail)
    with pytest.raises(StoreUnavailableError, match="no"):
        await s3.check()
    assert keys(s3) == []


def test_deletions_carry_the_md5_that_some_servers_want(s3: S3Store) -> None:
    sent: list[str | None] = []
    s3._bucket.client.meta.events.register(
        "before-send.s3.DeleteObjects", lambda request, **_: sent.append(request.headers.get("Content-MD5"))
    )
    s3._bucket.delete(["backups/a", "backups/b"])
    assert len(sent) == 1
    assert sent[0]


async def test_parts_that_are_put_together_otherwise_are_not_accepted(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, sent = await in_parts(s3, bytes(33 << 20))
    complete = s3._bucket.complete_upload
    monkeypatch.setattr(s3._bucket, "complete_upload", lambda key, upload, parts: complete(key, upload, sent.parts))
    other = (sent.parts[0], f'"{"0" * 32}"', sent.parts[2])
    with pytest.raises(StoreUnavailableError, match="put together from other parts"):
        await s3.accept(key, sent.model_copy(update={"parts": other}))


# -- direct mode --


@pytest.fixture
def direct(open_s3: OpenS3) -> S3Store:
    return open_s3(direct=True)


@pytest.mark.parametrize("size", [0, 100, (16 << 20) - 1, 16 << 20, (33 << 20) + 5])
async def test_files_go_through_the_server_in_direct_mode(direct: S3Store, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    upload = await direct.begin(FIRST)
    assert isinstance(await direct.grant_put(upload.layer_key, StoredFile(size=size, sha256="0" * 64)), RelayGrant)
    await write_file(direct, upload.layer_key, content)
    described = stored(upload.layer_key, content)
    assert isinstance(direct.grant_get(described), RelayGrant)
    assert receive(direct, described) == content
    assert direct._bucket.uploads("") == []


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("calls", [0, 1, 3])
async def test_a_file_that_is_stopped_on_its_way_leaves_nothing(direct: S3Store, tmp_path: Path, calls: int) -> None:
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise StoppedError

    path = tmp_path / "file"
    path.write_bytes(bytes(65 << 20))
    assert direct.relay is not None
    with pytest.raises(StoppedError):
        direct.relay.write("backups/x/data.sqsh", str(path), check)
    assert (direct._bucket.uploads(""), keys(direct)) == ([], [])


async def test_a_file_that_breaks_off_is_read_on(direct: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * (12 << 10)
    await put_raw(direct, "backups/x/data.sqsh", content)
    get = direct._bucket.client.get_object

    def broken(**arguments: Any) -> Any:
        answer: Any = get(**arguments)
        return answer | {"Body": _Breaking(answer["Body"])}

    monkeypatch.setattr(direct._bucket.client, "get_object", broken)
    assert direct.relay is not None
    assert b"".join(direct.relay.read("backups/x/data.sqsh")) == content


class _Breaking:
    """A body that breaks off after one block."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        from botocore.exceptions import ReadTimeoutError

        yield self._body.read(size)
        raise ReadTimeoutError(endpoint_url="x")

    def close(self) -> None:
        self._body.close()


# -- commits --


def losing_the_answer(function: Callable[..., Any]) -> Callable[..., Any]:
    from botocore.exceptions import ConnectionClosedError

    def lose(**arguments: Any) -> Any:
        function(**arguments)
        raise ConnectionClosedError(endpoint_url="x")

    return lose


async def test_a_commit_whose_answer_was_lost_is_one(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await upload_files(s3, FIRST)
    client = s3._bucket.client
    monkeypatch.setattr(client, "put_object", losing_the_answer(client.put_object))
    written = describe(FIRST, upload)
    await s3.commit(written)
    assert await s3.read(FIRST) == written


async def test_a_commit_that_another_made_meanwhile_is_none(
    s3: S3Store, open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await upload_files(s3, FIRST)
    theirs = describe(FIRST, upload, name="theirs")
    monkeypatch.setattr(s3, "_check_unused", lambda _id: open_s3()._commit(theirs))
    with pytest.raises(StoreUnavailableError, match=f"has a backup {FIRST} already"):
        await s3.commit(describe(FIRST, upload, name="ours"))
    await s3.abandon(FIRST)
    assert await s3.read(FIRST) == theirs


async def test_what_is_committed_is_never_begun_again(s3: S3Store) -> None:
    await put(s3, FIRST)
    with pytest.raises(StoreUnavailableError, match=f"has a backup {FIRST} already"):
        await s3.begin(FIRST)
    await s3.abandon(FIRST)
    assert len(keys(s3)) == 3


async def test_nothing_but_the_backup_is_left_of_a_commit(s3: S3Store) -> None:
    await put(s3, FIRST)
    assert keys(s3) == [f"backups/{FIRST}/{name}" for name in ("data.sqsh", "manifest.zst", "meta.json")]


# -- writers and removers --


def end_lease(store: S3Store, backup_id: str) -> None:
    """Let a writer's lease have ended, as if it had died a day ago."""
    marker = json.loads(store._bucket.get(f"incoming/{backup_id}", 10_000) or b"{}")
    marker["until"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    store._bucket.put(f"incoming/{backup_id}", json.dumps(marker).encode())


async def test_a_dead_writers_parts_are_reclaimed_when_its_lease_has_ended(s3: S3Store, open_s3: OpenS3) -> None:
    dead = open_s3()
    upload = await upload_files(dead, FIRST)
    await dead.grant_put(upload.layer_key, StoredFile(size=20 << 20, sha256="0" * 64))
    assert await s3.reclaim() == ([], 0)
    assert len(s3._bucket.uploads("")) == 1
    end_lease(s3, FIRST)
    assert await s3.reclaimable() == ([FIRST], len(LAYER + MANIFEST))
    assert await s3.reclaim() == ([FIRST], len(LAYER + MANIFEST))
    assert (s3._bucket.uploads(""), keys(s3)) == ([], [])


async def test_what_a_dead_writer_needed_goes(s3: S3Store, open_s3: OpenS3) -> None:
    parent = await put(s3, FIRST)
    await open_s3().begin(SECOND, parent.layers)
    await s3.hide(FIRST)
    assert (await s3.reclaim())[1] == len(MANIFEST)
    end_lease(s3, SECOND)
    assert await s3.reclaim() == ([FIRST], len(LAYER))
    assert keys(s3) == []


@pytest.mark.parametrize("left", [timedelta(minutes=59), timedelta(0), timedelta(hours=-9)])
async def test_a_writer_whose_lease_is_about_to_end_commits_nothing(s3: S3Store, left: timedelta) -> None:
    upload = await upload_files(s3, FIRST)
    s3._leases[FIRST].until = datetime.now(UTC) + left
    with pytest.raises(StoreUnavailableError, match="took longer to write"):
        await s3.commit(describe(FIRST, upload))
    with pytest.raises(StoreUnavailableError, match="took longer to write"):
        await s3.grant_put(upload.layer_key, StoredFile(size=1, sha256="0" * 64))
    await s3.abandon(FIRST)
    assert keys(s3) == []


async def test_a_lease_is_renewed_for_a_file_that_takes_long(s3: S3Store) -> None:
    parent = await put(s3, FIRST)
    upload = await s3.begin(SECOND, parent.layers)
    before = s3._leases[SECOND].until
    await s3.grant_put(upload.layer_key, StoredFile(size=40 << 30, sha256="0" * 64))
    after = s3._leases[SECOND].until
    assert after - before > timedelta(hours=24)
    found = s3._markers._read(SECOND)
    assert found is not None
    assert (found.needs, found.until) == ((parent.layers[0].key,), after)


async def test_a_dead_remover_blocks_no_writer_for_ever(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = await put(s3, FIRST)
    s3._markers.doom([FIRST])  # and dies
    with pytest.raises(BackupIntegrityError, match="is about to be removed"):
        await s3.begin(SECOND, parent.layers)
    assert keys(s3, "incoming/") == []
    await s3.reclaim()
    assert len(keys(s3, "doomed/")) == 1
    monkeypatch.setattr(s3_markers, "DOOM_S", -1.0)
    await s3.begin(SECOND, parent.layers)
    await s3.abandon(SECOND)
    await s3.reclaim()
    assert keys(s3, "doomed/") == []


async def test_a_remover_that_took_too_long_removes_nothing(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = await put(s3, FIRST)
    await s3.hide(FIRST)
    monkeypatch.setattr(s3_markers, "DOOM_S", 0.0)
    with pytest.raises(StoreUnavailableError, match="try again"):
        await s3.reclaim()
    assert read_file(s3, gone.layers) == [LAYER]
    assert keys(s3, "doomed/") == []


STEPS = [
    ("_markers", "doom"),
    ("_markers", "writers"),
    ("_reclaimer", "_look"),
    ("_reclaimer", "_unneeded"),
    ("_reclaimer", "_named_by"),
    ("_bucket", "delete"),
    ("_markers", "lift"),
]


@pytest.fixture(params=[False, True], ids=["before", "after"])
def at_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def arrange(store: S3Store, part: str, step: str, then: Callable[[], None]) -> None:
        target = getattr(store, part)
        original = getattr(target, step)
        done: list[str] = []

        def with_another(*args: Any) -> Any:
            result = original(*args) if request.param else None
            if not done:
                done.append(step)
                then()
            return result if request.param else original(*args)

        monkeypatch.setattr(target, step, with_another)

    return arrange


@pytest.mark.parametrize(("part", "step"), STEPS, ids=[step for _, step in STEPS])
async def test_a_writer_that_begins_at_any_step_of_a_reclaim_has_what_it_needs_or_is_told(
    s3: S3Store, open_s3: OpenS3, at_step: Callable[..., None], part: str, step: str
) -> None:
    parent = await put(s3, FIRST)
    writer = open_s3()
    begun = []

    def begin() -> None:
        try:
            begun.append(writer._begin(SECOND, parent.layers))
        except BackupIntegrityError as error:
            assert "is missing" in str(error) or "about to be removed" in str(error)  # noqa: PT017

    at_step(s3, part, step, begin)
    await s3.hide(FIRST)
    await s3.reclaim()
    if begun:
        await writer.commit(describe(SECOND, begun[0], layers=parent.layers))
        await s3.reclaim()
        assert read_file(s3, parent.layers) == [LAYER]
    else:
        await put(writer, SECOND)
    assert await ids(s3) == [SECOND]
    assert keys(s3, "incoming/") + keys(s3, "doomed/") == []


@pytest.mark.parametrize(("part", "step"), STEPS, ids=[step for _, step in STEPS])
async def test_a_writer_that_ends_at_any_step_of_a_reclaim_has_what_it_needs(
    s3: S3Store, open_s3: OpenS3, at_step: Callable[..., None], part: str, step: str
) -> None:
    parent, gone = await put(s3, FIRST), await put(s3, THIRD)
    writer = open_s3()
    child = describe(SECOND, await upload_files(writer, SECOND, parent.layers), layers=parent.layers)
    at_step(s3, part, step, lambda: writer._commit(child))
    await s3.hide(FIRST)
    await s3.hide(THIRD)
    await s3.reclaim()
    if SECOND in writer._leases:  # the step was not come to
        await writer.commit(child)
    assert await ids(s3) == [SECOND]
    assert read_file(s3, [*child.layers, *child.manifests]) == [LAYER, MANIFEST]
    with pytest.raises(FileNotFoundError):
        read_file(s3, gone.layers)


@pytest.mark.parametrize(("part", "step"), STEPS, ids=[step for _, step in STEPS])
async def test_a_remover_that_ends_at_any_step_of_another_leaves_the_others_doom_in_force(
    s3: S3Store, open_s3: OpenS3, at_step: Callable[..., None], part: str, step: str
) -> None:
    parent = await put(s3, FIRST)
    writer, other = open_s3(), open_s3()
    begun = []

    def reclaim_and_begin() -> None:
        other._reclaimer.reclaim()
        try:
            begun.append(writer._begin(SECOND, parent.layers))
        except BackupIntegrityError:
            return

    at_step(s3, part, step, reclaim_and_begin)
    await s3.hide(FIRST)
    await s3.reclaim()
    if begun:
        assert read_file(s3, parent.layers) == [LAYER]
    assert keys(s3, "doomed/") == []


async def test_what_a_committed_writer_left_behind_holds_nothing_back(s3: S3Store, open_s3: OpenS3) -> None:
    await put(s3, FIRST)
    s3._markers.put(new_lease(FIRST, []))  # it died before it removed its marker
    await open_s3().hide(FIRST)
    assert (await s3.reclaim())[0] == [FIRST]
    assert keys(s3) == []


async def test_nothing_is_reclaimed_while_metadata_is_damaged(s3: S3Store) -> None:
    parent = await put(s3, FIRST)
    await put(s3, SECOND)
    await put_raw(s3, f"backups/{SECOND}/meta.json", b"{}")
    await s3.hide(FIRST)
    with pytest.raises(BackupIntegrityError):
        await s3.reclaim()
    assert read_file(s3, parent.layers) == [LAYER]
    assert keys(s3, "doomed/") == []


async def test_a_marker_that_nobody_understands_keeps_all(s3: S3Store) -> None:
    await put(s3, FIRST)
    await s3.hide(FIRST)
    await put_raw(s3, f"incoming/{SECOND}", b"{}")
    with pytest.raises(StoreUnavailableError, match=f"incoming/{SECOND} in .* cannot be understood"):
        await s3.reclaim()
    assert len(keys(s3, f"backups/{FIRST}")) == 2


async def test_an_upload_that_a_committed_writer_lost_sight_of_is_aborted(s3: S3Store) -> None:
    await put(s3, FIRST)
    s3._bucket.begin_upload(f"backups/{FIRST}/data.sqsh")
    assert await s3.reclaim() == ([], 0)
    assert s3._bucket.uploads("") == []
    assert await ids(s3) == [FIRST]


# -- scale --


async def test_more_than_a_page_of_backups_is_listed_and_reclaimed(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3._bucket.client.meta.events.register(
        "before-parameter-build.s3.ListObjectsV2", lambda params, **_rest: params.update(MaxKeys=3)
    )
    monkeypatch.setattr(s3_bucket, "_DELETED_AT_ONCE", 3)
    written = [id_at(number) for number in range(11)]
    for backup_id in written:
        await put(s3, backup_id)
    assert await ids(s3) == written[::-1]
    for backup_id in written[:10]:
        await s3.hide(backup_id)
    reclaimed, freed = await s3.reclaim()
    assert (sorted(reclaimed), freed) == (written[:10], 10 * len(LAYER + MANIFEST))
    assert {key.split("/")[1] for key in keys(s3)} == {written[10]}


async def test_the_newest_take_few_requests(s3: S3Store) -> None:
    for second in range(30):
        await put(s3, id_at(second))
    made: list[str] = []
    s3._bucket.client.meta.events.register("before-call.s3", lambda model, **_rest: made.append(model.name))
    found = s3.newest(about=21)
    assert [(await anext(found)).id for _ in range(20)] == [id_at(second) for second in range(29, 9, -1)]
    await found.aclose()  # type: ignore[attr-defined]
    assert len(made) <= 40
    assert made.count("GetObject") == 21
