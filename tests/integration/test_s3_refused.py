"""What a person is told when the store refuses: each cause by its own words, through the command line."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import Finished
from helpers.drill import hurry
from helpers.proxy import Fault, Proxy, Refusal, Request
from helpers.s3 import S3Server
from sandpoint.cli import main
from sandpoint.errors import InvalidBackupConfigError, StoreUnavailableError
from sandpoint.stores.s3_bucket import Bucket

AGAIN = "Try again"
NO_USE = "To try again as it is will not help"


class Machine:
    """One that has a directory to back up, and knows of a bucket by its environment."""

    def __init__(self, tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._tree = tree
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def create(self, **variables: str) -> Finished:
        """Run `sandpoint create`."""
        return self._run("create", str(self._tree), variables=variables)

    def list(self, **variables: str) -> Finished:
        """Run `sandpoint list`."""
        return self._run("list", variables=variables)

    def _run(self, *arguments: str, variables: dict[str, str]) -> Finished:
        with self._monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            status = main([*arguments, "--json"])
        return Finished(status, *self._capsys.readouterr())


@pytest.fixture
def machine(
    tmp_path: Path, s3_server: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Machine:
    hurry(monkeypatch, timeout_s=30.0)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content\n")
    environment = s3_server.environment() | {
        "SANDPOINT_STORE": f"s3://{s3_server.make_bucket()}/some/prefix",
        "SANDPOINT_S3_ENDPOINT_URL": s3_server.http_url,
        "SANDPOINT_STATE_DIR": str(tmp_path / "state"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Machine(tmp_path / "tree", capsys, monkeypatch)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def assert_told(finished: Finished, error: type[StoreUnavailableError | InvalidBackupConfigError], *said: str) -> None:
    """Fail unless a command ended by an error of this code, that says all of this."""
    told = finished.json["error"]
    assert (told["code"], finished.status) == (error.code, error.exit_status), finished
    for each in said:
        assert each in told["message"], told["message"]
    assert finished.err == ""


def test_wrong_secret(machine: Machine) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    for finished in (machine.list(**wrong), machine.create(**wrong)):
        assert_told(finished, StoreUnavailableError, "the secret access key is wrong", "AWS_SECRET_ACCESS_KEY", NO_USE)


def test_unknown_access_key(machine: Machine) -> None:
    finished = machine.create(AWS_ACCESS_KEY_ID="AKNOBODY")
    assert_told(finished, StoreUnavailableError, "access key is not known there", "AWS_ACCESS_KEY_ID", NO_USE)


def test_no_credentials(machine: Machine) -> None:
    finished = machine.create(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert_told(finished, InvalidBackupConfigError, "there are no credentials", "AWS_ACCESS_KEY_ID")


def test_half_of_the_credentials(machine: Machine) -> None:
    finished = machine.create(AWS_SECRET_ACCESS_KEY="")
    assert_told(finished, InvalidBackupConfigError, "one half of the credentials is missing", "AWS_SECRET_ACCESS_KEY")


def test_missing_bucket(machine: Machine) -> None:
    missing = {"SANDPOINT_STORE": "s3://no-such-bucket"}
    for finished in (machine.list(**missing), machine.create(**missing)):
        assert_told(
            finished, StoreUnavailableError, "no-such-bucket", "there is no such bucket", "SANDPOINT_STORE", NO_USE
        )


def test_refused_port(machine: Machine, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    finished = machine.create(SANDPOINT_S3_ENDPOINT_URL=url)
    assert_told(finished, StoreUnavailableError, url, "cannot be reached", "SANDPOINT_S3_ENDPOINT_URL", AGAIN)


def test_unknown_host(machine: Machine) -> None:
    finished = machine.create(SANDPOINT_S3_ENDPOINT_URL="http://nobody.invalid")
    assert_told(finished, StoreUnavailableError, "http://nobody.invalid", "cannot be reached", AGAIN)


def test_endpoint_that_is_no_url(machine: Machine) -> None:
    finished = machine.create(SANDPOINT_S3_ENDPOINT_URL="127.0.0.1:8333")
    assert_told(finished, InvalidBackupConfigError, "SANDPOINT_S3_ENDPOINT_URL", "https://host")


def test_certificate_that_is_not_trusted(machine: Machine, s3_server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "no authority").write_text("nothing\n")
    for bundle in ("/etc/ssl/certs/ca-certificates.crt", str(tmp_path / "no authority")):
        finished = machine.create(SANDPOINT_S3_ENDPOINT_URL=s3_server.https_url, AWS_CA_BUNDLE=bundle)
        assert_told(finished, StoreUnavailableError, "its certificate is not trusted", "AWS_CA_BUNDLE", NO_USE)


def test_bundle_of_no_name(machine: Machine, s3_server: S3Server) -> None:
    finished = machine.create(SANDPOINT_S3_ENDPOINT_URL=s3_server.https_url, AWS_CA_BUNDLE="")
    assert_told(finished, InvalidBackupConfigError, "AWS_CA_BUNDLE")


def test_plain_requests_to_tls(machine: Machine, s3_server: S3Server) -> None:
    url = s3_server.https_url.replace("https:", "http:")
    for finished in (
        machine.list(SANDPOINT_S3_ENDPOINT_URL=url),
        machine.create(SANDPOINT_S3_ENDPOINT_URL=url),
    ):
        assert_told(finished, StoreUnavailableError, url)


# -- what a server answers that a test cannot easily bring about --

REFUSALS = {
    "skewed clock": (
        Refusal("403 Forbidden", "RequestTimeTooSkewed"),
        ("clock", "NTP", NO_USE),
        ("the clocks of the store and of the machine that made the grant differ", NO_USE[3:]),
    ),
    "full disk": (
        Refusal("507 Insufficient Storage", "InsufficientStorage"),
        ("the storage is full", "sandpoint prune", NO_USE),
        ("the bucket is full", "prune", NO_USE[3:]),
    ),
    "full quota": (
        Refusal("403 Forbidden", "QuotaExceeded"),
        ("the storage is full", "sandpoint prune", NO_USE),
        ("the bucket is full", "prune", NO_USE[3:]),
    ),
    "ended session": (
        Refusal("400 Bad Request", "ExpiredToken"),
        ("the session's credentials have ended", "AWS_SESSION_TOKEN", NO_USE),
        ("the grant has expired", "try again"),
    ),
    "read only": (
        Refusal("403 Forbidden", "AccessDenied"),
        ("the credentials do not allow it", "PutObject", NO_USE),
        ("the credentials that the grant was made with do not allow it",),
    ),
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_refusal_to_the_store(machine: Machine, s3_proxy: Proxy, cause: str) -> None:
    refusal, said, _ = REFUSALS[cause]
    s3_proxy.fail(Fault.REFUSE, refusal=refusal, times=None)
    assert_told(machine.create(SANDPOINT_S3_ENDPOINT_URL=s3_proxy.url), StoreUnavailableError, *said)


@pytest.mark.parametrize("cause", REFUSALS)
def test_refusal_to_the_engine(machine: Machine, s3_proxy: Proxy, cause: str) -> None:
    refusal, _, said = REFUSALS[cause]
    s3_proxy.fail(Fault.REFUSE, refusal=refusal, times=None, when=is_file)
    finished = machine.create(SANDPOINT_S3_ENDPOINT_URL=s3_proxy.url)
    assert_told(finished, StoreUnavailableError, "data.sqsh cannot be written", *said, refusal.code)


def is_file(request: Request) -> bool:
    """Whether a request is one by a presigned URL."""
    return "X-Amz-Signature" in request.names


# -- clocks --


def shift_clock(patch: pytest.MonkeyPatch, hours: float) -> None:
    """Sign requests, and URLs, as a machine does whose clock is wrong."""

    def wrong_time(remove_tzinfo: bool = True) -> datetime:
        now = datetime.now(UTC) + timedelta(hours=hours)
        return now.replace(tzinfo=None) if remove_tzinfo else now

    patch.setattr("botocore.auth.get_current_datetime", wrong_time)


@pytest.mark.parametrize("hours", [-24, 24])
def test_wrong_clock(machine: Machine, monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    shift_clock(monkeypatch, hours)
    assert_told(machine.create(), StoreUnavailableError, "this machine's clock is wrong", "NTP", NO_USE)


def test_grants_that_have_expired(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    presign = Bucket.presign

    def presign_long_ago(*arguments: Any, **options: Any) -> str:
        with monkeypatch.context() as patch:
            shift_clock(patch, -1)
            return presign(*arguments, **options)

    monkeypatch.setattr(Bucket, "presign", presign_long_ago)
    assert_told(
        machine.create(), StoreUnavailableError, "data.sqsh cannot be written", "the grant has expired", "try again"
    )


def test_server_without_space(machine: Machine) -> None:
    with S3Server(options=("-volume.max=1",)) as full:
        finished = machine.create(
            SANDPOINT_STORE=f"s3://{full.make_bucket()}",
            SANDPOINT_S3_ENDPOINT_URL=full.http_url,
            AWS_ACCESS_KEY_ID=full.access_key,
            AWS_SECRET_ACCESS_KEY=full.secret_key,
        )
    assert_told(finished, StoreUnavailableError, "the server is busy or failing", "InternalError", AGAIN)
