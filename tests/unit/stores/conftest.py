"""Every kind of store, as one fixture: a new kind joins the suite by a line here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.s3 import S3Server
from sandpoint.settings import read_settings
from sandpoint.stores import Store, open_store
from sandpoint.stores.s3 import S3Store

OpenStore = Callable[[], Store]
OpenS3 = Callable[..., S3Store]

KINDS = {
    "local": "",
    "s3": "s3://{bucket}",
    "s3-prefix": "s3://{bucket}/some/where",
    "s3-https": "s3://{bucket}/p",
    "s3-direct": "s3://{bucket}",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in the environment, and no endpoint."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    return s3_server


@pytest.fixture
def bucket(s3_environment: S3Server) -> str:
    return s3_environment.make_bucket()


@pytest.fixture
def open_s3(s3_environment: S3Server, bucket: str) -> OpenS3:
    """Open the same bucket, each time as another process would."""

    def open_again(url: str = "s3://{bucket}", *, endpoint: str | None = None, direct: bool = False) -> S3Store:
        settings = read_settings(s3_endpoint_url=endpoint or s3_environment.http_url, s3_direct=direct)
        store = open_store(url.format(bucket=bucket), settings)
        assert isinstance(store, S3Store)
        return store

    return open_again


@pytest.fixture(params=KINDS)
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Open the same store once more, as another process would."""
    kind = request.param
    if kind == "local":
        return lambda: open_store((tmp_path / "store").as_uri())
    open_s3: OpenS3 = request.getfixturevalue("open_s3")
    server: S3Server = request.getfixturevalue("s3_environment")
    endpoint = server.https_url if kind == "s3-https" else server.http_url
    return lambda: open_s3(KINDS[kind], endpoint=endpoint, direct=kind == "s3-direct")


@pytest.fixture
def store(open_again: OpenStore) -> Store:
    return open_again()
