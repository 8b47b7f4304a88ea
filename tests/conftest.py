"""What tests of every folder may use. It is loaded only where it is asked for: boto3 and docker take a while."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from helpers.docker import Engine, Target
    from helpers.lanes import Lanes
    from helpers.proxy import Proxy
    from helpers.s3 import S3Server


# How long an example takes, or is drawn for, says nothing on a machine that runs other tests beside.
settings.register_profile(
    "beside others", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("beside others")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> "Lanes | None":
    """Let `--dist loadfile` keep together what is of one file or one Docker engine."""
    if config.option.dist != "loadfile":
        return None
    from helpers.lanes import Lanes

    return Lanes(config, log)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    """One real S3 server for all tests of the process that ask for it; each test makes a bucket of its own.

    All clients share what takes most of the time that each takes to make: its description, a large JSON file.
    """
    import botocore.loaders
    import botocore.session

    from helpers.s3 import S3Server

    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patched, S3Server() as server:
        patched.setattr(botocore.session, "create_loader", lambda _path: loader)
        yield server


@pytest.fixture
def s3_proxy(s3_server: "S3Server") -> Iterator["Proxy"]:
    """A proxy before the server, that breaks nothing yet."""
    from helpers.proxy import Proxy

    with Proxy(s3_server.address) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def docker_engine() -> Iterator["Engine"]:
    """The Docker engine, which `DOCKER_HOST` names meanwhile: one that runs, or one that all test processes share."""
    from helpers.docker import engine

    with engine() as found:
        yield found


@pytest.fixture(scope="session")
def busybox(docker_engine: "Engine") -> str:
    """The image with busybox alone."""
    return docker_engine.busybox_image()


@pytest.fixture(scope="session")
def debian(docker_engine: "Engine") -> str:
    """The image with Python, squashfs-tools, git, util-linux and PostgreSQL."""
    return docker_engine.debian_image()


@pytest.fixture
def start_container(docker_engine: "Engine", busybox: str) -> Iterator[Callable[..., "Target"]]:
    """Start throw-away containers of the test by `start_container(image, **options)`, of busybox by default."""
    with ExitStack() as stack:

        def start(image: str = busybox, command: list[str] | None = None, **options: Any) -> "Target":
            return stack.enter_context(docker_engine.container(image, command, **options))

        yield start
