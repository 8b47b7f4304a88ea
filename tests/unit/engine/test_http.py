"""Files to and from a store by presigned URLs: with a real server, and with one that does what it should not."""

import errno
import hashlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
import pytest
import trustme

from helpers.engine import Stopped, never, stop
from helpers.s3 import S3Server
from helpers.scripted import Exchange, Fault, ScriptedServer
from helpers.site import wait_until
from sandpoint.engine import http, http_answers, http_download, http_line
from sandpoint.errors import BackupIntegrityError, InvalidBackupConfigError, SandpointError, StoreUnavailableError
from sandpoint.models import GetGrant, MultipartGrant, PutGrant

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

KEY = "backups/0192f0c1-2a3b-7c4d-8e5f-60718293a4b5/data.sqsh"
MIB = 1 << 20
PART = 5 * MIB
RANGE = 256 << 10
SECRET = "X-Amz-Signature=5ec4e7"
CONTENT = os.urandom(3 * RANGE + 1000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all times and sizes."""
    monkeypatch.setattr(http_answers, "ATTEMPTS", 4)
    monkeypatch.setattr(http_answers, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http_line, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_line, "CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(http_download, "RANGE_BYTES", RANGE)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("sandpoint")] == []


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "fetched"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "data.sqsh"
    path.write_bytes(CONTENT)
    return path


def get_grant(server: ScriptedServer) -> GetGrant:
    return GetGrant(key=KEY, url=f"{server.url}/object?{SECRET}")


def put_grant(server: ScriptedServer) -> PutGrant:
    return PutGrant(key=KEY, url=f"{server.url}/object?{SECRET}", headers={})


def multipart_grant(server: ScriptedServer, parts: int = 4, part_bytes: int = RANGE) -> MultipartGrant:
    urls = tuple(f"{server.url}/part{number}?{SECRET}" for number in range(parts))
    return MultipartGrant(key=KEY, part_bytes=part_bytes, urls=urls)


def download(server: ScriptedServer, target: Path) -> bytes:
    digest = http.download(get_grant(server), len(CONTENT), str(target), never)
    content = target.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert not Path(f"{target}.ranges").exists()
    return content


# -- a real server --


@dataclass
class Bucket:
    """A bucket of a real server, with grants for one key."""

    client: "S3Client"
    name: str

    def params(self, **more: object) -> dict[str, object]:
        return {"Bucket": self.name, "Key": KEY, **more}

    def get(self, expires_s: int = 600) -> GetGrant:
        url = self.client.generate_presigned_url("get_object", Params=self.params(), ExpiresIn=expires_s)
        return GetGrant(key=KEY, url=url)

    def put(self) -> PutGrant:
        return PutGrant(key=KEY, url=self.client.generate_presigned_url("put_object", Params=self.params()), headers={})

    def multipart(self, size: int, part_bytes: int = PART) -> tuple[str, MultipartGrant]:
        upload = self.client.create_multipart_upload(Bucket=self.name, Key=KEY)["UploadId"]
        urls = tuple(
            self.client.generate_presigned_url(
                "upload_part", Params=self.params(UploadId=upload, PartNumber=number + 1)
            )
            for number in range(max(1, -(-size // part_bytes)))
        )
        return upload, MultipartGrant(key=KEY, part_bytes=part_bytes, urls=urls)

    def complete(self, upload: str, etags: tuple[str, ...]) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        self.client.complete_multipart_upload(
            Bucket=self.name,
            Key=KEY,
            UploadId=upload,
            MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
        )


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    return Bucket(s3_server.client(), s3_server.make_bucket())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a real server its time."""
    monkeypatch.setattr(http_line, "READ_TIMEOUT_S", 30.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("size", [0, 1, PART, 3 * PART + 7])
def test_what_is_sent_to_a_real_server_in_parts_comes_back(
    bucket: Bucket, tmp_path: Path, target: Path, size: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    upload, grant = bucket.multipart(size)
    bucket.complete(upload, http.upload(str(path), grant, never))
    digest = http.download(bucket.get(), size, str(target), never)
    assert target.read_bytes() == path.read_bytes()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert b"".join(http.stream(bucket.get(), never)) == path.read_bytes()
    assert os.listdir(tmp_path) == ["file", "fetched"] or sorted(os.listdir(tmp_path)) == ["fetched", "file"]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_what_is_sent_to_a_real_server_whole_comes_back(
    bucket: Bucket, tmp_path: Path, target: Path, size: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert http.upload(str(path), bucket.put(), never) == ()
    http.download(bucket.get(), size, str(target), never)
    assert target.read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_over_tls_with_certificates_named_by_the_environment(
    s3_server: S3Server, stored: Path, target: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(s3_server.ca_file))
    bucket = Bucket(s3_server.client(url=s3_server.https_url), s3_server.make_bucket())
    http.upload(str(stored), bucket.put(), never)
    http.download(bucket.get(), len(CONTENT), str(target), never)
    assert target.read_bytes() == CONTENT


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    s3_server: S3Server, stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
    bucket = Bucket(s3_server.client(url=s3_server.https_url), s3_server.make_bucket())
    with pytest.raises(StoreUnavailableError, match=r"certificate cannot be trusted.*AWS_CA_BUNDLE"):
        http.upload(str(stored), bucket.put(), never)


def test_a_bundle_that_is_not_there_is_named(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    grant = PutGrant(key=KEY, url=f"https://127.0.0.1:1/object?{SECRET}", headers={})
    with pytest.raises(InvalidBackupConfigError, match=r"AWS_CA_BUNDLE.*/nowhere/ca.pem"):
        http.upload(str(stored), grant, never)


@pytest.mark.usefixtures("patient")
def test_a_real_servers_refusals_are_told_apart(
    s3_server: S3Server, bucket: Bucket, stored: Path, target: Path
) -> None:
    with pytest.raises(BackupIntegrityError, match=f"{KEY} is missing"):
        http.download(bucket.get(), 1, str(target), never)
    with pytest.raises(StoreUnavailableError, match="bucket is not there"):
        http.upload(str(stored), Bucket(bucket.client, "no-such-bucket").put(), never)
    forged = Bucket(s3_server.client(secret_key="another"), bucket.name)
    with pytest.raises(StoreUnavailableError, match="refuses the grant's signature"):
        http.upload(str(stored), forged.put(), never)
    http.upload(str(stored), bucket.put(), never)
    short_lived = bucket.get(expires_s=1)
    time.sleep(2.1)
    with pytest.raises(StoreUnavailableError, match=r"the grant has expired.*try again"):
        http.download(short_lived, len(CONTENT), str(target), never)


@pytest.mark.usefixtures("patient")
def test_parts_of_an_upload_that_was_given_up_are_refused(bucket: Bucket, stored: Path) -> None:
    upload, grant = bucket.multipart(len(CONTENT))
    bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=KEY, UploadId=upload)
    with pytest.raises(StoreUnavailableError, match="its upload was given up meanwhile"):
        http.upload(str(stored), grant, never)


# -- downloads that go wrong --


def drop(exchange: Exchange) -> bool:
    exchange.drop()
    return True


def drop_midway(exchange: Exchange) -> bool:
    content = exchange.range_head()
    exchange.send(content[: len(content) // 2])
    exchange.drop()
    return True


def stall(exchange: Exchange) -> bool:
    exchange.hang()
    return True


def stall_midway(exchange: Exchange) -> bool:
    content = exchange.range_head()
    exchange.send(content[: len(content) // 2])
    exchange.hang()
    return True


def trickle(exchange: Exchange) -> bool:
    exchange.trickle(exchange.range_head())
    return True


def trickle_head(exchange: Exchange) -> bool:
    exchange.trickle(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000)
    return True


def status(number: int, code: str = "", message: str = "") -> Fault:
    def fail(exchange: Exchange) -> bool:
        if exchange.command == "PUT":
            exchange.body()
        exchange.fail(number, code, message)
        return True

    fail.__name__ = f"{number}{code}"
    return fail


PASSING = [drop, drop_midway, stall, stall_midway, trickle, trickle_head, status(500), status(503, "SlowDown")]
PASSING += [status(number) for number in (408, 429, 502, 504)] + [status(400, "RequestTimeout")]


@pytest.mark.parametrize("fault", PASSING)
def test_a_range_that_fails_is_fetched_again(fault: Fault, target: Path) -> None:
    with ScriptedServer(CONTENT, fault, fault) as server:
        assert download(server, target) == CONTENT


@pytest.mark.parametrize("fault", PASSING)
def test_a_stream_that_breaks_goes_on(fault: Fault) -> None:
    with ScriptedServer(CONTENT, fault, fault) as server:
        assert b"".join(http.stream(get_grant(server), never)) == CONTENT


def test_a_range_goes_on_where_it_broke(target: Path) -> None:
    with ScriptedServer(CONTENT, drop_midway, drop_midway) as server:
        assert download(server, target) == CONTENT
        assert server.sent <= len(CONTENT)


def test_a_stream_goes_on_where_it_broke() -> None:
    with ScriptedServer(CONTENT, drop_midway) as server:
        assert b"".join(http.stream(get_grant(server), never)) == CONTENT
        assert [asked for asked, _ in server.requests] == ["GET", f"bytes={len(CONTENT) // 2}-{len(CONTENT) - 1}"]


@pytest.mark.parametrize("fault", [drop, stall, trickle, status(503)])
def test_a_server_that_never_recovers_is_given_up(fault: Fault, target: Path) -> None:
    with ScriptedServer(CONTENT) as server:
        server.always = fault
        with pytest.raises(StoreUnavailableError, match=f"{KEY} cannot be read.*4 times.*try again"):
            download(server, target)


def other_range(exchange: Exchange) -> bool:
    start, end = exchange.span
    length = end - start
    exchange.head(206, length, Content_Range=f"bytes {start + 1}-{end}/{len(CONTENT)}")
    exchange.send(bytes(length))
    return True


def whole(exchange: Exchange) -> bool:
    exchange.head(200, len(CONTENT))
    exchange.send(CONTENT)
    return True


def short_range(exchange: Exchange) -> bool:
    start, end = exchange.span
    exchange.head(206, 10, Content_Range=f"bytes {start}-{end - 1}/{len(CONTENT)}")
    exchange.send(CONTENT[:10])
    return True


def no_range(exchange: Exchange) -> bool:
    start, end = exchange.span
    exchange.head(206, end - start)
    exchange.send(bytes(end - start))
    return True


def zipped(exchange: Exchange) -> bool:
    exchange.send(exchange.range_head(Content_Encoding="gzip"))
    return True


def elsewhere(exchange: Exchange) -> bool:
    exchange.head(307, 0, Location=f"{exchange.owner.url}/elsewhere?{SECRET}")
    return True


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (other_range, "another range"),
        (whole, "200 where a range was asked for"),
        (short_range, "another range"),
        (no_range, "how long"),
        (zipped, "encoded"),
        (elsewhere, "redirect, which is not followed"),
        (status(403, "RequestTimeTooSkewed"), "clocks"),
        (status(403, "RequestExpired"), "has expired.*try again"),
        (status(403, "AccessDenied", "Request has expired"), "has expired.*try again"),
        (status(403, "AccessDenied", "No"), "do not allow it"),
        (status(403, "<script>"), "403"),
        (status(404, "NoSuchBucket"), "bucket is not there"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_an_error_at_once(fault: Fault, why: str, target: Path) -> None:
    with ScriptedServer(CONTENT) as server:
        server.always = fault
        with pytest.raises(StoreUnavailableError, match=f"{KEY} cannot be read.*{why}") as caught:
            download(server, target)
        assert all(path.startswith("/object") for _, path in server.requests)
        assert len(server.requests) <= 4
        assert "script" not in str(caught.value)


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1, RANGE - 1, 0])
def test_a_file_of_another_size_is_damage(size: int, target: Path) -> None:
    with (
        ScriptedServer(CONTENT) as server,
        pytest.raises(BackupIntegrityError, match=f"{KEY} has {len(CONTENT)} bytes"),
    ):
        http.download(get_grant(server), size, str(target), never)


@pytest.mark.parametrize("fault", [status(404), status(404, "NoSuchKey")])
def test_a_file_that_is_missing_is_damage(fault: Fault, target: Path) -> None:
    with ScriptedServer(CONTENT) as server:
        server.always = fault
        with pytest.raises(BackupIntegrityError, match=f"{KEY} is missing"):
            download(server, target)
        with pytest.raises(BackupIntegrityError, match=f"{KEY} is missing"):
            list(http.stream(get_grant(server), never))


def test_a_huge_error_is_not_read_to_its_end(target: Path) -> None:
    def endless(exchange: Exchange) -> bool:
        exchange.head(403, 1 << 40)
        while exchange.owner.sent < 64 * MIB and not exchange.owner.ended.is_set():
            before = exchange.owner.sent
            exchange.send(b"x" * MIB)
            if exchange.owner.sent == before:
                break
        exchange.close_connection = True
        return True

    with ScriptedServer(CONTENT) as server:
        server.always = endless
        with pytest.raises(StoreUnavailableError, match="403"):
            download(server, target)
        assert server.sent < 64 * MIB


def test_a_disk_that_is_full_is_found_before_anything_is_fetched(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with ScriptedServer(CONTENT) as server:
        with pytest.raises(OSError, match="No space left") as caught:
            download(server, target)
        assert caught.value.filename == str(target)
        assert server.requests == []
    assert target.stat().st_size == 0


# -- going on later --


def test_a_failed_download_goes_on_with_what_is_missing(target: Path) -> None:
    refused = f"bytes={RANGE}-{2 * RANGE - 1}"

    def refuse_one(exchange: Exchange) -> bool:
        if exchange.headers["Range"] != refused:
            return False
        wait_until(lambda: exchange.owner.sent == len(CONTENT) - RANGE)
        wait_until(lambda: len(Path(f"{target}.ranges").read_bytes().splitlines()) == 4)
        exchange.fail(403)
        return True

    with ScriptedServer(CONTENT) as server:
        server.always = refuse_one
        with pytest.raises(StoreUnavailableError):
            download(server, target)
        server.always = None
        server.requests.clear()
        assert download(server, target) == CONTENT
        assert [asked for asked, _ in server.requests] == [refused]


KILLED = """
import sys
from sandpoint.engine import http, http_download
from sandpoint.models import GetGrant
http_download.RANGE_BYTES = int(sys.argv[4])
http_download.LINES = 1
http.download(GetGrant(key="key", url=sys.argv[1]), int(sys.argv[2]), sys.argv[3], lambda: None)
"""


def test_after_a_kill_only_the_rest_is_fetched(target: Path) -> None:
    hanging = threading.Event()

    def hang_at_third(exchange: Exchange) -> bool:
        if exchange.span[0] < 2 * RANGE:
            return False
        exchange.send(exchange.range_head()[:1000])
        hanging.set()
        exchange.hang()
        return True

    with ScriptedServer(CONTENT) as server:
        server.always = hang_at_third
        arguments = [get_grant(server).url, str(len(CONTENT)), str(target), str(RANGE)]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
        assert hanging.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.always, server.sent = None, 0
        assert download(server, target) == CONTENT
        assert server.sent == len(CONTENT) - 2 * RANGE


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"nonsense\n",
        b"sandpoint ranges 1 5 5\n0\n1\n2\n",
        b"sandpoint ranges 1 %d %d\nx\n" % (len(CONTENT), RANGE),
        b"sandpoint ranges 1 %d %d\n-1\n9\n" % (len(CONTENT), RANGE),
        b"sandpoint ranges 1 %d %d\n0" % (len(CONTENT), RANGE),
        b"\xff" * 5000,
    ],
)
def test_a_note_that_cannot_be_read_is_no_note(note: bytes, target: Path) -> None:
    target.write_bytes(bytes(len(CONTENT)))
    Path(f"{target}.ranges").write_bytes(note)
    with ScriptedServer(CONTENT) as server:
        assert download(server, target) == CONTENT


def test_a_note_without_its_file_is_no_note(target: Path) -> None:
    Path(f"{target}.ranges").write_bytes(b"sandpoint ranges 1 %d %d\n0\n1\n" % (len(CONTENT), RANGE))
    with ScriptedServer(CONTENT) as server:
        assert download(server, target) == CONTENT


# -- uploads that go wrong --


def drop_upload(exchange: Exchange) -> bool:
    exchange.rfile.read(1000)
    exchange.drop()
    return True


def flip_a_bit(exchange: Exchange) -> bool:
    exchange.take(lambda body: bytes([body[0] ^ 1]) + body[1:])
    return True


def wrong_etag(exchange: Exchange) -> bool:
    exchange.body()
    exchange.head(200, 0, ETag=f'"{"0" * 32}"')
    return True


UPLOAD_FAULTS = [drop, drop_upload, stall, status(500), status(503), status(400, "BadDigest"), flip_a_bit, wrong_etag]


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
def test_a_part_that_fails_is_sent_again(fault: Fault, stored: Path) -> None:
    with ScriptedServer(b"", fault, fault) as server:
        etags = http.upload(str(stored), multipart_grant(server), never)
        parts = [server.taken[f"/part{number}?{SECRET}"] for number in range(4)]
    assert b"".join(parts) == CONTENT
    assert [etag.strip('"') for etag in etags] == [hashlib.md5(part).hexdigest() for part in parts]


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
def test_a_file_that_goes_whole_is_sent_again(fault: Fault, stored: Path) -> None:
    with ScriptedServer(b"", fault) as server:
        assert http.upload(str(stored), put_grant(server), never) == ()
        assert server.taken == {f"/object?{SECRET}": CONTENT}


@pytest.mark.parametrize("fault", [drop, stall, status(503), flip_a_bit, wrong_etag])
def test_an_upload_that_never_works_is_given_up(fault: Fault, stored: Path) -> None:
    with ScriptedServer() as server:
        server.always = fault
        with pytest.raises(StoreUnavailableError, match=f"{KEY} cannot be written.*4 times.*try again"):
            http.upload(str(stored), multipart_grant(server), never)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (status(400, "EntityTooLarge"), "bucket is full"),
        (status(403, "QuotaExceeded"), "bucket is full"),
        (status(507), "bucket is full"),
        (status(412, "PreconditionFailed"), "such a file already"),
        (status(404, "NoSuchUpload"), "given up"),
        (status(403, "SignatureDoesNotMatch"), "signature"),
        (elsewhere, "redirect"),
    ],
)
def test_an_upload_that_is_refused_is_not_sent_again(fault: Fault, why: str, stored: Path) -> None:
    with ScriptedServer() as server:
        server.always = fault
        with pytest.raises(StoreUnavailableError, match=f"{KEY} cannot be written.*{why}"):
            http.upload(str(stored), put_grant(server), never)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"x_amz_server_side_encryption": "aws:kms"},
        {"x_amz_server_side_encryption": "aws:kms:dsse"},
        {"x_amz_server_side_encryption_customer_algorithm": "AES256"},
    ],
)
def test_the_etag_of_an_encrypted_part_is_no_digest(headers: dict[str, str], stored: Path) -> None:
    def encrypted(exchange: Exchange) -> bool:
        exchange.body()
        exchange.head(200, 0, ETag=f'"{"0" * 32}"', **headers)
        return True

    with ScriptedServer() as server:
        server.always = encrypted
        assert http.upload(str(stored), multipart_grant(server), never) == (f'"{"0" * 32}"',) * 4


def test_the_headers_of_the_grant_are_sent(stored: Path) -> None:
    seen: list[str] = []

    def note(exchange: Exchange) -> bool:
        seen.extend(f"{name}: {value}" for name, value in exchange.headers.items())
        return False

    with ScriptedServer() as server:
        server.always = note
        grant = put_grant(server).model_copy(update={"headers": {"x-amz-acl": "private"}})
        http.upload(str(stored), grant, never)
    assert "x-amz-acl: private" in seen
    assert not any(line.lower().startswith("transfer-encoding") for line in seen)


def test_a_grant_for_another_size_is_refused(stored: Path) -> None:
    with ScriptedServer() as server:
        with pytest.raises(StoreUnavailableError, match="another size"):
            http.upload(str(stored), multipart_grant(server, parts=3), never)
        assert server.requests == []


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(stored: Path) -> None:
    def shrink(exchange: Exchange) -> bool:
        os.truncate(stored, 10)
        exchange.fail(500)
        exchange.close_connection = True
        return True

    with ScriptedServer(b"", shrink) as server, pytest.raises(OSError, match="shorter") as caught:
        http.upload(str(stored), put_grant(server), never)
    assert caught.value.filename == str(stored)


# -- stopping --

AT_ONCE_S = 10.0
"""By far less than the waits of these tests, and more than a busy machine lets a thread wait for the processor."""


def check_after(reached: Callable[[], bool]) -> tuple[Callable[[], None], list[float]]:
    """Return a check that raises once something is so, and the times of its calls."""
    times: list[float] = []

    def check() -> None:
        times.append(time.monotonic())
        if reached():
            raise Stopped

    return check, times


@pytest.mark.parametrize("fault", [stall, stall_midway, trickle, trickle_head, drop])
def test_a_check_stops_a_download_at_once(fault: Fault, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_line, "READ_TIMEOUT_S", 30.0)
    monkeypatch.setattr(http_answers, "BACKOFF_S", 30.0)
    with ScriptedServer(CONTENT) as server:
        server.always = fault
        check, times = check_after(lambda: len(server.requests) >= 4 and len(times) > 10)
        with pytest.raises(Stopped):
            http.download(get_grant(server), len(CONTENT), str(target), check)
        assert time.monotonic() - times[-1] < AT_ONCE_S
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert max(gaps) < AT_ONCE_S
        assert median(gaps) < 0.5


@pytest.mark.parametrize("fault", [stall, drop, status(503)])
def test_a_check_stops_an_upload_at_once(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_line, "READ_TIMEOUT_S", 30.0)
    monkeypatch.setattr(http_answers, "BACKOFF_S", 30.0)
    path = tmp_path / "large"
    path.write_bytes(bytes(16 * MIB))
    with ScriptedServer() as server:
        server.always = fault
        check, times = check_after(lambda: len(server.requests) >= 4 and len(times) > 10)
        with pytest.raises(Stopped):
            http.upload(str(path), multipart_grant(server, part_bytes=4 * MIB), check)
        assert time.monotonic() - times[-1] < AT_ONCE_S


def test_a_check_stops_an_upload_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_line, "READ_TIMEOUT_S", 30.0)
    path = tmp_path / "large"
    path.write_bytes(bytes(64 * MIB))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/object?{SECRET}"
        check, times = check_after(lambda: len(times) > 10)
        with pytest.raises(Stopped):
            http.upload(str(path), PutGrant(key=KEY, url=url, headers={}), check)
        assert time.monotonic() - times[-1] < AT_ONCE_S


def test_an_upload_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(64 * MIB))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/object?{SECRET}"
        with pytest.raises(StoreUnavailableError, match="nearly nothing was heard"):
            http.upload(str(path), PutGrant(key=KEY, url=url, headers={}), never)


def test_a_check_stops_a_stream_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_line, "READ_TIMEOUT_S", 30.0)
    with ScriptedServer(CONTENT, stall_midway) as server:
        check, times = check_after(lambda: len(times) > 20)
        with pytest.raises(Stopped):
            list(http.stream(get_grant(server), check))
        assert time.monotonic() - times[-1] < AT_ONCE_S


def test_a_stream_that_is_left_leaves_nothing() -> None:
    with ScriptedServer(CONTENT * 20) as server:
        blocks = http.stream(get_grant(server), never)
        assert isinstance(blocks, Iterator)
        assert next(blocks)
        blocks.close()  # type: ignore[attr-defined]
        assert connections_to(server) == []


def connections_to(server: ScriptedServer) -> list[object]:
    port = int(server.url.rpartition(":")[2])
    return [each for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == port]


def test_a_check_that_stops_at_once_lets_nothing_begin(stored: Path, target: Path) -> None:
    with ScriptedServer(CONTENT) as server:
        with pytest.raises(Stopped):
            http.download(get_grant(server), len(CONTENT), str(target), stop)
        with pytest.raises(Stopped):
            http.upload(str(stored), multipart_grant(server), stop)
        with pytest.raises(Stopped):
            list(http.stream(get_grant(server), stop))
        assert server.requests == []


@pytest.mark.parametrize("fault", [None, drop, status(403)])
def test_no_connection_is_left_open(fault: Fault | None, stored: Path, target: Path) -> None:
    with ScriptedServer(CONTENT) as server:
        server.always = fault
        for work in (
            lambda: http.upload(str(stored), multipart_grant(server), never),
            lambda: http.download(get_grant(server), len(CONTENT), str(target), never),
            lambda: list(http.stream(get_grant(server), never)),
        ):
            if fault is None:
                work()
            else:
                with pytest.raises(StoreUnavailableError):
                    work()
            assert connections_to(server) == []


def test_a_line_that_is_closed_leaves_no_connection_though_its_answer_is_kept() -> None:
    """As the traceback of an error keeps it."""
    with ScriptedServer(CONTENT) as server:
        line = http_line.Line(server.url, None)
        with line.ask("GET", get_grant(server).url, {}) as answer:
            while line.read(answer, MIB):
                pass
        line.close()

        assert connections_to(server) == []
        assert answer.status == 200


# -- secrets --


@pytest.mark.parametrize("fault", [None, drop, drop_midway, status(403), status(503), elsewhere, zipped])
def test_no_signature_is_shown(
    fault: Fault | None, stored: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for logger in (None, "urllib3"):  # a store in a bucket, used before in this process, sets a level for the second
        caplog.set_level(logging.DEBUG, logger)
    shown = ""
    with ScriptedServer(CONTENT) as server:
        server.always = fault
        for work in (
            lambda: http.upload(str(stored), multipart_grant(server), never),
            lambda: http.download(get_grant(server), len(CONTENT), str(target), never),
            lambda: list(http.stream(get_grant(server), never)),
        ):
            try:
                work()
            except SandpointError as error:
                shown += "".join(traceback.format_exception(error))
                logging.getLogger("test").exception("it failed")
    shown += "".join(record.getMessage() + str(record.exc_text or "") + repr(record.args) for record in caplog.records)
    shown += caplog.text
    assert "urllib3" in caplog.text
    assert "X-Amz" not in shown
    assert "5ec4e7" not in shown


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a", "http://nowhere.invalid/a", "nonsense://host/a", "http://[/a"])
def test_a_url_that_leads_nowhere_is_not_shown(
    url: str, stored: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreUnavailableError, match=KEY) as caught:
        http.download(GetGrant(key=KEY, url=f"{url}?{SECRET}"), 5, str(target), never)
    assert "5ec4e7" not in "".join(traceback.format_exception(caught.value)) + caplog.text


# -- proxies --


def test_a_proxy_of_the_environment_is_used(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://user:word@"))
        grant = PutGrant(key=KEY, url=f"http://store.invalid/object?{SECRET}", headers={})
        http.upload(str(stored), grant, never)
        assert proxy.taken == {f"http://store.invalid/object?{SECRET}": CONTENT}


def test_a_host_without_a_proxy_is_asked_itself(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ScriptedServer() as server:
        http.upload(str(stored), put_grant(server), never)
        assert server.taken


def test_a_proxy_of_another_kind_is_refused(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:word@127.0.0.1:1")
    grant = PutGrant(key=KEY, url=f"http://store.invalid/object?{SECRET}", headers={})
    with pytest.raises(InvalidBackupConfigError, match="proxy") as caught:
        http.upload(str(stored), grant, never)
    assert "word" not in str(caught.value)


# -- memory --

MEASURED = """
import os, resource, sys
from sandpoint.engine import http
from sandpoint.models import GetGrant, MultipartGrant
size, path, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import sandpoint.engine.http_upload, sandpoint.engine.http_download
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
url = f"http://127.0.0.1:{port}/object"
http.upload(path, MultipartGrant(key="key", part_bytes=32 << 20, urls=(url,) * (size // (32 << 20))), lambda: None)
http.download(GetGrant(key="key", url=url), size, path + ".back", lambda: None)
for block in http.stream(GetGrant(key="key", url=url), lambda: None):
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def test_the_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(128 * MIB))

    def swallow(exchange: Exchange) -> bool:
        if exchange.command == "PUT":
            left = int(exchange.headers["Content-Length"])
            while left:
                left -= len(exchange.rfile.read(min(left, MIB)))
            exchange.head(200, 0, ETag='"etag"')
            return True
        return False

    with ScriptedServer(bytes(128 * MIB)) as server:
        server.always = swallow
        arguments = [str(128 * MIB), str(path), server.url.rpartition(":")[2]]
        ran = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 48 * MIB


def test_urllib3_is_loaded_by_the_first_transfer_only() -> None:
    code = "import sys, sandpoint.engine.http; print('urllib3' in sys.modules, 'tenacity' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]
