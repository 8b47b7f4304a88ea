"""Every kind of store, as one fixture: a new kind joins the suite by a line here."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from helpers.s3 import S3Server
from sandpoint.settings import read_settings
from sandpoint.stores import Store, open_store
from sandpoint.stores.s3 import S3Store

OpenStore = Callable[[], Store]
OpenS3 = Callable[..., S3Store]

KINDS = ("local", "s3", "s3-https-prefix")


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in the environment, and no endpoint."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    return s3_server


@pytest.fixture(scope="session")
def shared_bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def open_s3(s3_environment: S3Server, shared_bucket: str) -> OpenS3:
    """Open the same store, each time as another process would: by default a prefix of the test's own."""
    own = f"s3://{shared_bucket}/{uuid4()}"  # a bucket of its own would take its time

    def open_again(url: str = own, *, endpoint: str | None = None, direct: bool = False) -> S3Store:
        settings = read_settings(s3_endpoint_url=endpoint or s3_environment.http_url, s3_direct=direct)
        store = open_store(url, settings)
        assert isinstance(store, S3Store)
        return store

    return open_again


@pytest.fixture
def bucket(s3_environment: S3Server) -> str:
    return s3_environment.make_bucket()


@pytest.fixture(params=KINDS)
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Open the same store once more, as another process would."""
    kind = request.param
    if kind == "local":
        return lambda: open_store((tmp_path / "store").as_uri())
    open_s3: OpenS3 = request.getfixturevalue("open_s3")
    if kind == "s3-https-prefix":
        https_url = request.getfixturevalue("s3_environment").https_url
        return lambda: open_s3(endpoint=https_url)
    url = f"s3://{request.getfixturevalue('bucket')}"
    return lambda: open_s3(url)


@pytest.fixture
def store(open_again: OpenStore) -> Store:
    return open_again()
