"""The server's image is built by `make image`, and serves: on stdio, over HTTP, and other containers."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from helpers.built import PIP, build, run, serves
from helpers.docker import Engine, Target
from helpers.documents import ROOT
from helpers.site import wait_until
from sandpoint.sandboxes.docker.host import TARGET_LABEL

HELPER_IMAGE = "sandpoint-test/helper"

BUILD_STAGE = "stage=sandpoint-build"
"""The label of what the image was built in."""

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of Sandpoint, all that it needs, and what builds it."""
    _, wheel = build(tmp_path_factory.mktemp("built"))
    folder = wheel.parent / "wheels"
    run(*PIP, "wheel", "--wheel-dir", str(folder), str(wheel), "hatchling>=1.27")
    return folder


@pytest.fixture(scope="module")
def image(docker_engine: Engine, debian: str, wheels: Path) -> Iterator[str]:
    """The server's image, built from the Dockerfile upon a base that has all but Sandpoint."""
    name = f"sandpoint-test/server:{wheels.stat().st_ino}"
    upon = f"--build-arg BASE={debian} --build-arg PIP_OPTIONS='--no-index --find-links wheels'"
    options = (f"IMAGE={name}", f"IMAGE_ARGS=--network none {upon}", f"WHEELS=-C {wheels.parent} wheels")
    run("make", "image", *options, cwd=ROOT)
    yield name
    docker_engine.client.images.remove(name, force=True)
    docker_engine.client.images.prune({"dangling": True, "label": BUILD_STAGE})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of the user that the image's server runs as."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("a")
    for path in (project, project / "a.txt"):
        os.chown(path, 1000, 1000)
    return project


async def test_the_image_serves_a_client_that_starts_it(image: str, project: Path, docker_engine: Engine) -> None:
    await serves(
        StdioServerParameters(
            command="docker",
            args=["run", "-i", "--rm", "--network=none", "-v", f"{project}:/workspace/project", image, "serve"],
            env={"DOCKER_HOST": docker_engine.url, "PATH": os.environ["PATH"]},
        ),
        "/workspace/project",
    )


async def test_the_image_serves_over_http_those_that_have_a_token(
    image: str, project: Path, tmp_path: Path, start_container: Callable[..., Target]
) -> None:
    token = "t" * 32
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{token}\n")
    tokens.chmod(0o400)
    os.chown(tokens, 1000, 1000)
    target = start_container(
        image,
        network_mode="bridge",
        ports={"8484/tcp": ("127.0.0.1", None)},
        volumes=[f"{project}:/workspace/project", f"{tokens}:/run/secrets/sandpoint-tokens:ro"],
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        tmpfs={"/tmp": ""},
        stop_signal="SIGTERM",
        healthcheck={"interval": 500_000_000},
    )
    await healthy(target)
    published = target.container.ports["8484/tcp"] or []
    url = f"http://127.0.0.1:{published[0]['HostPort']}/mcp"
    async with over_http(url, token) as transport:
        await serves(transport, "/workspace/project")
    async with create_mcp_http_client() as client:
        assert (await client.post(url, json={})).status_code == 401
    await anyio.to_thread.run_sync(lambda: target.container.stop(timeout=30))
    assert target.container.wait()["StatusCode"] in (0, 143)


def test_the_image_reaches_other_containers_by_the_engines_socket(
    image: str, debian: str, docker_engine: Engine, start_container: Callable[..., Target]
) -> None:
    box = start_container()
    box.write("/workspace/a.txt", "a\n")
    socket = docker_engine.url.removeprefix("unix://")
    variables = {"BASE": debian, "IMAGE": HELPER_IMAGE, "IDLE": "1"}
    told = run(
        *("docker", "run", "--rm", "--network=none", "-v", f"{socket}:/var/run/docker.sock"),
        f"--group-add={os.stat(socket).st_gid}",
        *(f"--env=SANDPOINT_DOCKER_HELPER_{name}={value}" for name, value in variables.items()),
        *(image, "create", "/workspace", "--sandbox", box.sandbox),
    )
    assert "Backed up /workspace" in told
    # The helper goes by itself.
    label = f"{TARGET_LABEL}={box.id}"
    wait_until(lambda: not docker_engine.client.api.containers(all=True, filters={"label": label}))


@asynccontextmanager
async def over_http(url: str, token: str) -> AsyncIterator[Any]:
    async with create_mcp_http_client({"Authorization": f"Bearer {token}"}) as client:
        yield streamable_http_client(url, http_client=client)


async def healthy(target: Target) -> None:
    """Wait until the engine finds the container's server well, by the image's own check."""
    with anyio.fail_after(60):
        while True:
            await anyio.to_thread.run_sync(target.container.reload)
            state = target.container.attrs["State"]
            assert state["Running"], target.container.logs().decode()
            if state["Health"]["Status"] == "healthy":
                return
            await anyio.sleep(0.1)
