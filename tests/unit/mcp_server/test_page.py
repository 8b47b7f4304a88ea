import re
import subprocess
import sys
from importlib.resources import files
from typing import Literal

import pytest
from mcp import Client
from mcp_types import TextResourceContents

from helpers.mcp import FakeService, code, text
from sandpoint.mcp_server import build_server
from sandpoint.mcp_server.assembly import content_policy, read_page
from sandpoint.mcp_server.page import PAGE_URI

pytestmark = pytest.mark.anyio

PARTS = files("sandpoint.mcp_server") / "timeline"


@pytest.mark.parametrize(("mode", "extensions"), [("auto", {"io.modelcontextprotocol/ui": {}}), ("legacy", None)])
async def test_the_tool_names_the_page_and_the_server_says_that_it_has_apps_where_the_revision_can(
    mode: Literal["auto", "legacy"], extensions: dict[str, object] | None, service: FakeService
) -> None:
    async with Client(build_server(service), mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools["show_backups"].meta == {"ui": {"resourceUri": PAGE_URI}}
        assert [name for name, tool in tools.items() if tool.meta] == ["show_backups"]
        assert client.server_capabilities.extensions == extensions


async def test_a_host_reads_the_page_with_its_type(service: FakeService) -> None:
    async with Client(build_server(service)) as client:
        [listed] = [each for each in (await client.list_resources()).resources if each.uri == PAGE_URI]
        assert listed.mime_type == "text/html;profile=mcp-app"
        [content] = (await client.read_resource(PAGE_URI)).contents
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "text/html;profile=mcp-app"
    assert content.text == read_page()
    assert content.meta == {"ui": {"prefersBorder": True}}


async def test_a_client_without_pages_gets_the_list(service: FakeService) -> None:
    async with Client(build_server(service)) as client:
        result = await client.call_tool("show_backups", {"dir": "/work/app", "limit": 5})
    assert not result.is_error
    assert '"backups":[]' in text(result)
    [(operation, asked)] = service.calls
    assert operation == "list"
    assert (asked["dir"], asked["limit"]) == ("/work/app", 5)


@pytest.mark.parametrize("arguments", [{"path": "/work"}, {"limit": "5"}, {"limit": 0}, {"dir": 7}])
async def test_its_arguments_mean_what_they_say(arguments: dict[str, object], service: FakeService) -> None:
    async with Client(build_server(service)) as client:
        result = await client.call_tool("show_backups", arguments)
    assert result.is_error
    assert code(result) == "INVALID_BACKUP_CONFIG"
    assert "show_backups takes: dir, limit" in text(result)
    assert service.calls == []


def test_the_page_is_one_document_that_loads_nothing() -> None:
    page = read_page()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert not re.search(r"@import|url\(|https?://", page)
    assert len(page) < 120_000


def test_every_part_is_in_it_once() -> None:
    page = read_page()
    parts = [part for part in PARTS.iterdir() if not part.name.endswith(".html")]
    assert len(parts) == 8
    for part in parts:
        assert page.count(part.read_text("utf-8")) == 1, part.name


def test_no_part_can_end_its_own_element_or_make_markup_of_text() -> None:
    for part in PARTS.iterdir():
        source = part.read_text("utf-8")
        if not part.name.endswith(".html"):
            assert "</script" not in source
            assert "</style" not in source
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\b|\son\w+=", source)


def test_the_policy_lets_run_what_the_page_has_and_no_more() -> None:
    scripts = read_page().count("<script>")
    assert content_policy().count("'sha256-") == scripts + read_page().count("<style>")
    assert "unsafe" not in content_policy()


def test_a_server_reads_the_page_when_it_is_asked_for_and_not_before() -> None:
    program = (
        "import sys; from sandpoint.mcp_server import build_server; from sandpoint.service import BackupService; "
        "build_server(BackupService.__new__(BackupService)); "
        "print([name for name in sys.modules if name in "
        "('sandpoint.mcp_server.assembly', 'sandpoint.mcp_server.window')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
