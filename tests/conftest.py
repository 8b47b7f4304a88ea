"""What tests of every folder may use. It is loaded only where it is asked for: boto3 takes a while."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.proxy import Proxy
    from helpers.s3 import S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    """One real S3 server for all tests of the process that ask for it; each test makes a bucket of its own."""
    from helpers.s3 import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture
def s3_proxy(s3_server: "S3Server") -> Iterator["Proxy"]:
    """A proxy before the server, that breaks nothing yet."""
    from helpers.proxy import Proxy

    with Proxy(s3_server.address) as proxy:
        yield proxy
