"""The page as an MCP App: in a frame of a host that is the specification's own AppBridge, before a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client
from mcp_types import CallToolResult
from playwright.sync_api import Browser, FrameLocator, Page, expect

from helpers import app_host
from helpers.mcp import sandpoint_server
from helpers.place import Place
from helpers.trees import assert_same, list_tree, write
from helpers.window import CONTRASTS, PATIENCE_MS, PlaceBeside, chromium, watch
from sandpoint.mcp_server.page import PAGE_URI
from sandpoint.stores.local import LocalStore

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; media-src 'self' data:; connect-src 'none'"
)
"""What the specification lets a page do that asks for nothing."""

ABLE: dict[str, Any] = {"serverTools": {}, "updateModelContext": {"text": {}}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The host's script, with the packages in it."""
    output = tmp_path_factory.mktemp("host") / "host.js"
    return app_host.bundle(output)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the one server may work in: a tree for each test, one store."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def place(shared: Path, request: pytest.FixtureRequest) -> Place:
    base = shared / request.node.name
    place = PlaceBeside(base, store=LocalStore(str(shared / "store")), state=shared / "state")
    write(place.tree / "README.md", "one\n")
    place.create(name="first")
    write(place.tree / "README.md", "two\n")
    place.create(name="second")
    return place


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def client(shared: Path, portal: BlockingPortal) -> Iterator[Client]:
    """A client of a real server over stdio."""
    server = sandpoint_server(shared, store=shared / "store", state=shared / "state", SANDPOINT_CONFIRM="never")
    with portal.wrap_async_context_manager(Client(server)) as client:
        yield client


class Shown:
    """A host's page with ours in a frame; it calls tools by the client."""

    def __init__(self, browser: Browser, bundle: str, client: Client, portal: BlockingPortal) -> None:
        self.page: Page = browser.new_page(viewport={"width": 900, "height": 900})
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors = watch(self.page)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._client = client
        self._portal = portal
        self.page.expose_function("callTool", self._call)
        self.page.set_content("<!doctype html><title>host</title><body>")
        self.page.add_script_tag(content=bundle)

    def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((params["name"], params["arguments"]))
        return self.call(params["name"], params["arguments"])

    def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool as a host does."""
        result: CallToolResult = self._portal.call(self._client.call_tool, tool, arguments)
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)

    def show(
        self,
        *,
        capabilities: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> FrameLocator:
        """Call the tool that has the page, and show that with its result."""
        read = self._portal.call(self._client.read_resource, PAGE_URI)
        [content] = read.contents
        assert content.mime_type == "text/html;profile=mcp-app"
        shown = {
            "html": content.model_dump()["text"],
            "policy": POLICY,
            "capabilities": ABLE if capabilities is None else capabilities,
            "context": context or {},
            "toolArguments": arguments,
            "toolResult": result or self.call("show_backups", arguments),
        }
        self.page.evaluate("shown => window.show(shown)", shown)
        return self.page.frame_locator("iframe")

    def seen(self) -> Any:
        """Return what the host was told."""
        return self.page.evaluate("window.seen")


@pytest.fixture
def shown(browser: Browser, bundle: str, client: Client, portal: BlockingPortal) -> Iterator[Shown]:
    shown = Shown(browser, bundle, client, portal)
    try:
        yield shown
        assert shown.errors == []
    finally:
        shown.page.close()


def test_it_shows_the_tools_result_without_asking_for_it_again(shown: Shown, place: Place) -> None:
    frame = shown.show(dir=str(place.tree))
    expect(frame.locator(".row")).to_have_count(2)
    expect(frame.locator("#place")).to_have_text(str(place.tree))
    expect(frame.locator(".row").first).to_contain_text("~1")
    expect(frame.locator("tr.added")).to_contain_text("two")
    assert "list_backups" not in [tool for tool, _ in shown.calls]
    app = shown.page.evaluate("window.app")
    assert app["info"]["name"] == "sandpoint-timeline"
    assert app["capabilities"]["availableDisplayModes"] == ["inline", "fullscreen"]


def test_a_restore_with_preview_goes_through_the_host_and_the_model_is_told(shown: Shown, place: Place) -> None:
    frame = shown.show(dir=str(place.tree))
    before = list_tree(place.tree)
    frame.locator(".row", has_text="first").click()
    frame.get_by_role("button", name="Restore…").click()
    confirm = frame.get_by_role("button", name="Restore 1 path")
    expect(confirm).to_be_visible()
    assert_same(before, list_tree(place.tree))
    confirm.click()
    expect(frame.get_by_role("dialog", name="Restored")).to_contain_text("1 path overwritten")
    assert (place.tree / "README.md").read_text() == "one\n"
    frame.get_by_role("dialog").get_by_role("button", name="Undo…").click()
    frame.get_by_role("button", name="Restore 1 path").click()
    expect(frame.get_by_role("dialog", name="Restored")).to_be_visible()
    assert_same(before, list_tree(place.tree))
    told = [each["content"][0]["text"] for each in shown.seen()["contexts"]]
    assert "the user restored backup" in told[0]
    assert "To undo it: restore_backup with backup_id" in told[0]


def test_it_tells_its_size_and_keeps_to_the_room_that_it_is_given(shown: Shown, place: Place) -> None:
    frame = shown.show(context={"containerDimensions": {"width": 400, "maxHeight": 500}}, dir=str(place.tree))
    expect(frame.locator(".row")).to_have_count(2)
    shown.page.wait_for_function("window.seen.sizes.at(-1)?.height === 500")
    assert frame.locator("body").evaluate("body => body.scrollHeight <= innerHeight")


def test_it_looks_as_its_host_does_and_follows_when_that_changes(shown: Shown, place: Place) -> None:
    variables = {"--color-background-primary": "light-dark(rgb(250, 250, 240), rgb(20, 20, 30))", "--bad": "1"}
    frame = shown.show(context={"theme": "dark", "styles": {"variables": variables}}, dir=str(place.tree))
    body = frame.locator("body")
    expect(body).to_have_css("background-color", "rgb(20, 20, 30)")
    expect(frame.locator("tr.added")).to_contain_text("two")
    assert body.evaluate(CONTRASTS) == []
    shown.page.evaluate("window.bridge.sendHostContextChange({ theme: 'light' })")
    expect(body).to_have_css("background-color", "rgb(250, 250, 240)")
    assert frame.locator("html").evaluate("root => root.style.getPropertyValue('--bad')") == ""


def test_full_screen_is_offered_where_the_host_has_it(shown: Shown, place: Place) -> None:
    frame = shown.show(
        context={"displayMode": "inline", "availableDisplayModes": ["inline", "fullscreen"]}, dir=str(place.tree)
    )
    button = frame.get_by_role("button", name="Full screen")
    button.click()
    expect(button).to_be_hidden()
    assert shown.seen()["modes"] == ["fullscreen"]


def test_a_host_that_calls_no_tools_gets_the_list_to_look_at(shown: Shown, place: Place) -> None:
    frame = shown.show(capabilities={}, dir=str(place.tree))
    expect(frame.locator(".row")).to_have_count(2)
    expect(frame.get_by_role("button", name="Restore…")).to_have_count(0)
    expect(frame.get_by_role("button", name="Back up now…")).to_be_hidden()


def test_an_error_of_the_tool_is_shown_with_its_code(shown: Shown, place: Place) -> None:
    frame = shown.show(limit=0)
    expect(frame.get_by_role("alert")).to_contain_text("INVALID_BACKUP_CONFIG")


def test_a_result_without_our_meta_is_read_by_its_text(shown: Shown, place: Place) -> None:
    read = {"content": [{"type": "text", "text": "STORE_UNAVAILABLE: the store does not answer"}], "isError": True}
    frame = shown.show(result=read, dir=str(place.tree))
    expect(frame.get_by_role("alert")).to_contain_text("STORE_UNAVAILABLE the store does not answer")


def test_it_answers_the_host_that_takes_it_down(shown: Shown, place: Place) -> None:
    shown.show(dir=str(place.tree))
    assert shown.page.evaluate("window.bridge.teardownResource({})") == {}


def test_messages_of_others_than_the_host_are_ignored(shown: Shown, place: Place) -> None:
    frame = shown.show(dir=str(place.tree))
    expect(frame.locator(".row")).to_have_count(2)
    shown.page.frames[1].evaluate("""() => {
      const message = { jsonrpc: "2.0", method: "ui/notifications/host-context-changed", params: { theme: "dark" } };
      window.postMessage(message, "*");
    }""")
    expect(frame.locator("html")).not_to_have_css("color-scheme", "dark")
