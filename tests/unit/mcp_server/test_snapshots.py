"""What a client is told before the first call, to the letter: models act on each word of it.

After a change that is meant: `SNAPSHOTS=renew pytest tests/unit/mcp_server/test_snapshots.py`, and read `git diff`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from mcp import Client
from pydantic import BaseModel

from helpers.mcp import FakeService
from helpers.snapshots import check_snapshot
from sandpoint.mcp_server.one_service import OneService
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.where import Where

pytestmark = pytest.mark.anyio

PLACES = {
    "one_sandbox": Where(allowed_dirs=("/work", "/srv/app")),
    "several_sandboxes": Where(
        allowed_dirs=("/work",), sandbox="docker:web", sandboxes=("docker:web", "docker:agent-*")
    ),
}

MAX_TEXT = 2048
"""Bytes of a description or of the instructions that Claude Code passes on."""


async def told(service: FakeService, where: Where, mode: Literal["auto", "legacy"]) -> dict[str, Any]:
    async with Client(build_lazy_server(OneService(service), where=where), mode=mode) as client:
        tools = (await client.list_tools()).tools
        return {
            "instructions": client.instructions,
            "tools": [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools],
        }


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("place", PLACES)
async def test_what_a_client_is_told_is_what_was_reviewed(
    service: FakeService, place: str, mode: Literal["auto", "legacy"]
) -> None:
    check_snapshot(f"mcp_{place}", await told(service, PLACES[place], mode))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_prompts_and_resources_are_what_was_reviewed(
    service: FakeService, mode: Literal["auto", "legacy"]
) -> None:
    async with Client(build_lazy_server(OneService(service), where=Where()), mode=mode) as client:
        listed: dict[str, Sequence[BaseModel]] = {
            "prompts": (await client.list_prompts()).prompts,
            "resources": (await client.list_resources()).resources,
            "resource_templates": (await client.list_resource_templates()).resource_templates,
        }
    check_snapshot(
        "mcp_prompts_and_resources",
        {
            kind: [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in found]
            for kind, found in listed.items()
        },
    )


MANY = Where(
    allowed_dirs=tuple(f"/work/projects/number-{number}" for number in range(500)),
    sandboxes=tuple(f"docker:container-{number}" for number in range(500)),
)


@pytest.mark.parametrize("where", [*PLACES.values(), MANY], ids=[*PLACES, "many"])
async def test_nothing_is_so_long_that_a_client_cuts_it(service: FakeService, where: Where) -> None:
    found = await told(service, where, "auto")
    assert len(found["instructions"].encode()) <= MAX_TEXT
    for tool in found["tools"]:
        assert len(tool["description"].encode()) <= MAX_TEXT / 2, tool["name"]
        for name, argument in tool["inputSchema"]["properties"].items():
            assert len(argument["description"].encode()) <= MAX_TEXT / 2, (tool["name"], name)


async def test_the_instructions_name_every_tool_and_what_it_is_for(service: FakeService) -> None:
    found = await told(service, Where(), "auto")
    for tool in found["tools"]:
        assert tool["name"] in found["instructions"]


async def test_each_description_says_what_comes_next(service: FakeService) -> None:
    for tool in (await told(service, Where(), "auto"))["tools"]:
        assert "Next: " in tool["description"], tool["name"]
        assert any(word in tool["description"] for word in ("Use it ", "Rarely needed")), tool["name"]
