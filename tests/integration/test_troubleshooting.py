"""README's troubleshooting quotes errors as they are: each is made to happen, and none is quoted that does not."""

import re
import socket
import subprocess
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import ElicitResult

from helpers.cli import Program
from helpers.documents import README, ROOT
from helpers.http_server import HttpServer
from helpers.mcp import text

ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"
BUCKET = {"SANDPOINT_STORE": "s3://my-bucket/sandpoint", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


class Home:
    """A person's home, with a project, where commands go wrong."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.project = base / "project"
        for folder in (self.project, base / "other"):
            folder.mkdir()
        (self.project / "a.txt").write_text("a\n")
        self.sandpoint = Program(
            SANDPOINT_STORE=(base / "store").as_uri(), SANDPOINT_STATE_DIR=str(base / "state"), HOME=str(base)
        )

    def error(self, *arguments: str, **variables: str) -> str:
        """Return the error of a command as an agent is told it, in a home that README might speak of."""
        told = self.sandpoint(*arguments, "--json", **variables)
        error: dict[str, str] = told.json["error"]
        return self.named(f"{error['code']}: {error['message']}")

    def named(self, message: str) -> str:
        """Return a message with the paths, ids and times of README instead of its own."""
        message = message.replace(str(self.base), "/home/me")
        message = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", message)
        return re.sub(r"\d\d:\d\d:\d\d", "TIME", re.sub(r"\d{4}-\d\d-\d\d", "DAY", message))

    def create(self, *options: str) -> str:
        """Back the project up, and return the id."""
        done: dict[str, Any] = self.sandpoint("create", str(self.project), *options, "--json").json
        return str(done["id"])

    def create_error(self, **variables: str) -> str:
        """Return the error of backing the project up."""
        return self.error("create", str(self.project), **variables)


def not_on_path(home: Home) -> str:
    script = "require('child_process').spawn('sandpoint', ['serve']).on('error', error => console.log(error.message))"
    # Node starts programs as most clients do, being what they are written in.
    node = ["node", "-e", f"process.env.PATH = '{home.base}'; {script}"]
    return subprocess.run(node, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def expired(home: Home) -> str:
    backup_id = home.create("--ttl", "0.1")
    time.sleep(0.2)
    return home.error("restore", backup_id)


def altered(home: Home) -> str:
    backup_id = home.create()
    layer = home.base / "store" / "backups" / backup_id / "data.sqsh"
    content = bytearray(layer.read_bytes())
    content[200] ^= 255
    layer.write_bytes(content)
    return home.error("restore", backup_id)


def dismissed(home: Home) -> str:
    """Close the question before a restore, as a person may."""
    backup_id = home.create()
    (home.project / "a.txt").write_text("b\n")

    async def dismiss(context: object, params: object) -> ElicitResult:
        return ElicitResult(action="cancel")

    async def restore() -> str:
        server = StdioServerParameters(
            command=home.sandpoint.path, args=["serve"], cwd=home.project, env=home.sandpoint.environment
        )
        async with Client(server, elicitation_callback=dismiss) as client:
            return text(await client.call_tool("restore_backup", {"backup_id": backup_id}))

    return home.named(anyio.run(restore))


def over_http(home: Home, *options: str) -> str:
    """Return why a server over HTTP ends at its start."""
    told = home.sandpoint("serve", "--transport=http", *options).err
    message, code = re.fullmatch(r"error: (.*) \[([A-Z_]+)\]\n", told, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{code}: {message}"


def port_taken(home: Home) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        return over_http(home, f"--port={port}").replace(str(port), "8484")


def another_name(home: Home) -> str:
    with HttpServer(home.project, store=home.base / "store", state=home.base / "state") as server:
        url = urlsplit(server.url)
        connection = HTTPConnection(str(url.hostname), url.port)
        connection.request("POST", url.path, headers={"Host": "box:8484"})
        answer = connection.getresponse()
        told = f"{answer.status} {answer.read().decode()}"
        connection.close()
    return told


SCENES: dict[str, Callable[[Home], str]] = {
    "the client does not find the program": not_on_path,
    "another directory": lambda home: home.create_error(SANDPOINT_ALLOWED_DIRS=str(home.base / "other")),
    "a setting that cannot be read": lambda home: home.error("list", SANDPOINT_ALLOWED_DIRS="projects"),
    "no squashfs-tools": lambda home: home.create_error(PATH=str(home.base)),
    "the store inside": lambda home: home.create_error(SANDPOINT_STORE=(home.project / "store").as_uri()),
    "no such backup": lambda home: home.error("restore", ID),
    "expired": expired,
    "altered": altered,
    "a question that was dismissed": dismissed,
    "a store that is no URL": lambda home: home.error("list", SANDPOINT_STORE=str(home.base / "backups")),
    "no credentials": lambda home: home.error("list", **BUCKET),
    "no server": lambda home: home.error(
        "list",
        **BUCKET,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        SANDPOINT_S3_ENDPOINT_URL="http://127.0.0.1:9",
    ),
    "a server that anybody could use": lambda home: over_http(home, "--host=0.0.0.0"),
    "a port that is taken": port_taken,
    "a name that the server does not know": another_name,
    "no Docker engine": lambda home: home.error(
        "create", "/workspace", "--sandbox=docker:agent", DOCKER_HOST=f"unix://{home.base}/docker.sock"
    ),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for variable in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    return Home(tmp_path)


def quoted() -> list[str]:
    section = README.read_text().split("\n## Troubleshooting\n", 1)[1].split("\n## ", 1)[0]
    return [block.strip() for block in re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("scene", SCENES)
def test_an_error_is_quoted_as_it_is(home: Home, scene: str) -> None:
    assert SCENES[scene](home) in quoted()


def test_no_error_is_quoted_that_is_not_made_to_happen() -> None:
    assert len(quoted()) == len(set(quoted())) == len(SCENES)


def test_what_the_page_says_is_quoted_as_it_is() -> None:
    section = README.read_text().split("\n## Troubleshooting\n", 1)[1].split("\n## ", 1)[0]
    [told] = re.findall(r'\*\*The page\*\* says "([^"]+)"', section)
    assert told in (ROOT / "server" / "sandpoint" / "mcp_server" / "window.py").read_text()
