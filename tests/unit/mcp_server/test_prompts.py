import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, TextContent

from helpers.mcp import ID, FakeService
from sandpoint.mcp_server import build_server
from sandpoint.mcp_server.prompts import CHECKPOINT, RECOVER, checkpoint_before_risky_change, recover_workspace

pytestmark = pytest.mark.anyio

Mode = Literal["auto", "legacy"]


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> Mode:
    revision: Mode = request.param
    return revision


async def said(client: Client, name: str, **arguments: str) -> str:
    (message,) = (await client.get_prompt(name, arguments)).messages
    assert message.role == "user"
    assert isinstance(message.content, TextContent)
    return message.content.text


async def test_both_are_listed_with_their_arguments(service: FakeService, mode: Mode) -> None:
    async with Client(build_server(service), mode=mode) as client:
        prompts = {prompt.name: prompt for prompt in (await client.list_prompts()).prompts}
    arguments = {
        name: {each.name: each.required for each in prompt.arguments or ()} for name, prompt in prompts.items()
    }
    assert arguments == {
        CHECKPOINT: {"dir": False, "change": False},
        RECOVER: {"dir": False, "backup_id": False, "problem": False},
    }
    for prompt in prompts.values():
        assert prompt.title
        assert prompt.description
        assert all(argument.description for argument in prompt.arguments or ())


async def test_they_name_tools_that_there_are(service: FakeService, mode: Mode) -> None:
    async with Client(build_server(service), mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        texts = [await said(client, CHECKPOINT), await said(client, RECOVER), await said(client, RECOVER, backup_id=ID)]
    words = {word.strip(".,:;()") for text in texts for word in text.replace("(", " ").split()}
    named = {word for word in words if word.endswith(("_backup", "_backups"))}
    assert named == {"create_backup", "restore_backup", "diff_backup", "list_backups"}
    assert named <= {*tools}
    arguments = json.loads(next(line for line in texts[0].splitlines() if line.startswith("{")))
    assert {*arguments} <= {*tools["create_backup"].input_schema["properties"]}
    assert "dry_run" in tools["restore_backup"].input_schema["properties"]


async def test_a_checkpoint_has_the_arguments_ready(service: FakeService, mode: Mode) -> None:
    async with Client(build_server(service), mode=mode) as client:
        text = await said(client, CHECKPOINT, dir="/work/app", change='rename "all"')
    arguments = '{"dir": "/work/app", "name": "before-risky-change", "description": "rename \\"all\\""}'
    assert arguments in text.splitlines()
    assert "absolute path" not in text


async def test_without_a_directory_the_model_is_asked_for_it(service: FakeService, mode: Mode) -> None:
    async with Client(build_server(service), mode=mode) as client:
        for name in (CHECKPOINT, RECOVER):
            assert "as dir the root of what we work in" in await said(client, name)


async def test_a_known_backup_is_not_searched_for(service: FakeService, mode: Mode) -> None:
    async with Client(build_server(service), mode=mode) as client:
        text = await said(client, RECOVER, dir="/work/app", backup_id=f" {ID.upper()} ", problem="all tests fail")
    assert f'{{"dir": "/work/app", "backup_id": "{ID}", "problem": "all tests fail"}}' in text
    assert "list_backups" not in text


HOSTILE = st.text(alphabet=st.characters(codec=None) | st.sampled_from('"\\\n\r`{}\u202e\u2028\x1b\x00'), max_size=40)


@given(HOSTILE, HOSTILE)
def test_nothing_that_is_typed_leaves_its_quotes(dir: str, change: str) -> None:
    plain = checkpoint_before_risky_change("d", "c").splitlines()
    lines = checkpoint_before_risky_change(dir or "d", change or "c").split("\n")
    (data,) = (line for line in lines if line.startswith("{"))
    assert [line for line in lines if line != data] == [line for line in plain if not line.startswith("{")]
    assert json.loads(data) == {"dir": dir or "d", "name": "before-risky-change", "description": change or "c"}
    assert data.isprintable()
    assert "`" not in data


@given(HOSTILE)
def test_nor_does_what_went_wrong(problem: str) -> None:
    plain, typed = (recover_workspace("d", ID, text).split("\n") for text in ("p", problem or "p"))
    assert [number for number, (one, other) in enumerate(zip(plain, typed, strict=True)) if one != other] in ([], [1])


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("nope", {}, "there is no prompt 'nope'"),
        (RECOVER, {"backup_id": "latest"}, "INVALID_BACKUP_CONFIG: backup_id"),
        (RECOVER, {"problem": "x" * 5000}, "INVALID_BACKUP_CONFIG: problem: at most 4096"),
        (CHECKPOINT, {"directory": "/work"}, "INVALID_BACKUP_CONFIG: directory.*takes: dir, change"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    service: FakeService, mode: Mode, name: str, arguments: dict[str, Any], why: str
) -> None:
    async with Client(build_server(service), mode=mode) as client:
        with pytest.raises(MCPError, match=why) as caught:
            await client.get_prompt(name, arguments)
    assert caught.value.error.code == INVALID_PARAMS
