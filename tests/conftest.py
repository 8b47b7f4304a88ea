"""What tests of every folder may use."""

from collections.abc import Iterator

import pytest

from helpers.s3 import S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One real S3 server for all tests of the process that ask for it; each test makes a bucket of its own."""
    with S3Server() as server:
        yield server
