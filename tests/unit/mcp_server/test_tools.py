from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

import anyio
import pytest
from mcp import Client

from helpers.mcp import ID, FakeService, code, text
from sandpoint.errors import ERRORS, InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server import build_server
from sandpoint.mcp_server.failures import MAX_ERROR
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.where import Where
from sandpoint.models import Changes

pytestmark = pytest.mark.anyio

Connect = Callable[[FakeService], AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["auto", "legacy"])
def connect(request: pytest.FixtureRequest) -> Connect:
    mode: Literal["auto", "legacy"] = request.param

    @asynccontextmanager
    async def connected(service: FakeService) -> AsyncIterator[Client]:
        async with Client(build_server(service, allowed_dirs=["/work", "/srv"]), mode=mode) as client:
            yield client

    return connected


HINTS = {
    # read only, destructive, idempotent
    "create_backup": (False, False, False),
    "restore_backup": (False, True, True),
    "fork_backup": (False, True, True),
    "list_backups": (True, False, True),
    "delete_backup": (False, True, True),
    "diff_backup": (True, False, True),
    "verify_backup": (True, False, True),
    "show_backups": (True, False, True),
}


async def test_each_tool_says_what_it_is(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == list(HINTS)
    for tool in tools:
        assert tool.title
        assert tool.description
        assert "  " not in tool.description
        assert tool.annotations is not None
        assert tool.annotations.open_world_hint is False
        hints = tool.annotations
        assert (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint) == HINTS[tool.name]


async def test_each_schema_is_a_closed_object_with_described_arguments(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        for name, argument in tool.input_schema["properties"].items():
            assert argument["description"], (tool.name, name)
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"


async def test_the_allowed_directories_are_told(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert client.instructions is not None
        assert "/work, /srv" in client.instructions
    for name in ("create_backup", "restore_backup", "diff_backup"):
        assert "/work, /srv" in tools[name].input_schema["properties"]["dir"]["description"]
    assert "/work, /srv" in tools["fork_backup"].input_schema["properties"]["dirs"]["description"]


async def test_the_instructions_name_the_way_there_and_back(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        instructions = client.instructions or ""
    for word in (
        "BEFORE",
        "create_backup",
        "restore_backup",
        "dry_run",
        "undo_id",
        "list_backups",
        "diff_backup",
        "fork_backup",
    ):
        assert word in instructions


@pytest.mark.parametrize(
    ("tool", "arguments", "asked"),
    [
        (
            "create_backup",
            {"dir": "/work/app"},
            {
                "dir": "/work/app",
                "name": None,
                "description": None,
                "ttl": 259_200,
                "use_gitignore": False,
                "excludes": [],
                "metadata": None,
                "full": False,
                "freeze": False,
            },
        ),
        (
            "create_backup",
            {
                "dir": "/work/app",
                "name": "n",
                "description": "d",
                "ttl": 60,
                "use_gitignore": True,
                "excludes": ["*.log"],
                "metadata": {"k": "v"},
                "full": True,
                "freeze": True,
            },
            {
                "dir": "/work/app",
                "name": "n",
                "description": "d",
                "ttl": 60,
                "use_gitignore": True,
                "excludes": ["*.log"],
                "metadata": {"k": "v"},
                "full": True,
                "freeze": True,
            },
        ),
        (
            "restore_backup",
            {
                "backup_id": ID,
                "dir": "/work/b",
                "mode": "copy",
                "paths": ["a"],
                "dry_run": True,
                "undo": False,
            },
            {
                "backup_id": ID,
                "dir": "/work/b",
                "mode": "copy",
                "paths": ["a"],
                "dry_run": True,
                "undo": False,
            },
        ),
        (
            "list_backups",
            {"dir": "/work", "name": "n", "sandbox_id": "s", "limit": 3, "cursor": "c", "include_expired": True},
            {"dir": "/work", "name": "n", "sandbox_id": "s", "limit": 3, "cursor": "c", "include_expired": True},
        ),
        (
            "fork_backup",
            {"backup_id": ID, "dirs": ["/work/a", "/work/b"], "mode": "overlay", "undo": False},
            {"backup_id": ID, "dirs": ["/work/a", "/work/b"], "mode": "overlay", "undo": False},
        ),
        (
            "fork_backup",
            {"backup_id": ID, "dirs": '["/work/a"]'},
            {"backup_id": ID, "dirs": ["/work/a"], "mode": "auto", "undo": True},
        ),
        (
            "diff_backup",
            {"backup_id": ID, "other_id": ID, "dir": "/work", "paths": ["a"]},
            {"backup_id": ID, "other_id": ID, "dir": "/work", "paths": ["a"]},
        ),
        ("verify_backup", {"backup_id": ID}, {"backup_id": ID}),
        ("delete_backup", {"backup_id": ID}, {"backup_id": ID}),
    ],
)
async def test_arguments_reach_the_service_as_they_are(
    service: FakeService, connect: Connect, tool: str, arguments: dict[str, Any], asked: dict[str, Any]
) -> None:
    async with connect(service) as client:
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    assert service.calls == [(tool.split("_")[0], asked)]


async def test_contents_are_compared_when_asked_for(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        result = await client.call_tool("diff_backup", {"backup_id": ID, "paths": '["a"]', "content": True})
    assert not result.is_error, text(result)
    assert service.calls == [("diff_contents", {"backup_id": ID, "other_id": None, "dir": None, "paths": ["a"]})]


async def test_null_is_the_same_as_left_out(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        result = await client.call_tool("create_backup", {"dir": "/work", "name": None, "excludes": None})
    assert not result.is_error
    assert service.calls[0][1]["excludes"] == []


async def test_a_list_sent_as_json_text_is_a_list_and_a_name_never_is(service: FakeService, connect: Connect) -> None:
    arguments = {
        "dir": "/work",
        "name": "[1]",
        "excludes": '["*.log"]',
        "metadata": '{"k": "v"}',
        "description": "null",
    }
    async with connect(service) as client:
        result = await client.call_tool("create_backup", arguments)
    assert not result.is_error, text(result)
    _, asked = service.calls[0]
    assert (asked["name"], asked["description"]) == ("[1]", "null")
    assert (asked["excludes"], asked["metadata"]) == (["*.log"], {"k": "v"})


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("create_backup", {"dir": "/work", "tll": 5}, "tll"),
        ("create_backup", {}, "dir"),
        ("create_backup", {"dir": 7}, "dir"),
        ("create_backup", {"dir": "/work", "ttl": "7"}, "ttl"),
        ("create_backup", {"dir": "/work", "ttl": 0}, "ttl"),
        ("create_backup", {"dir": "/work", "ttl": -1}, "ttl"),
        ("create_backup", {"dir": "/work", "ttl": True}, "ttl"),
        ("create_backup", {"dir": "/work", "ttl": float("nan")}, "ttl"),
        ("create_backup", {"dir": "/work", "ttl": float("inf")}, "ttl"),
        ("create_backup", {"dir": "/work", "full": "yes"}, "full"),
        ("create_backup", {"dir": "/work", "full": 1}, "full"),
        ("create_backup", {"dir": "/work", "excludes": "*.log"}, "excludes"),
        ("create_backup", {"dir": "/work", "metadata": {"k": 1}}, "metadata.k"),
        ("restore_backup", {"backup_id": ID, "mode": "mount"}, "mode"),
        ("restore_backup", {"id": ID}, "backup_id"),
        ("diff_backup", {"backup_id": ID, "content": "yes"}, "content"),
        ("diff_backup", {"backup_id": ID, "paths": "src"}, "paths"),
        ("fork_backup", {"backup_id": ID}, "dirs"),
        ("fork_backup", {"backup_id": ID, "dirs": []}, "dirs"),
        ("fork_backup", {"backup_id": ID, "dirs": "/work"}, "dirs"),
        ("fork_backup", {"backup_id": ID, "dirs": ["/work"] * 101}, "dirs"),
        ("list_backups", {"limit": "7"}, "limit"),
        ("list_backups", {"limit": 0}, "limit"),
        ("list_backups", {"limit": 101}, "limit"),
        ("list_backups", {"limit": 2.5}, "limit"),
        ("delete_backup", {"backup_id": ID, "force": True}, "force"),
    ],
)
async def test_a_bad_argument_is_named_and_nothing_is_asked(
    service: FakeService, connect: Connect, tool: str, arguments: dict[str, Any], named: str
) -> None:
    async with connect(service) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert text(result).startswith(f"INVALID_BACKUP_CONFIG: {tool}: ")
    assert f" {named}: " in text(result)
    assert code(result) == "INVALID_BACKUP_CONFIG"
    assert "pydantic" not in text(result)
    assert service.calls == []


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_an_error_has_its_code_in_text_and_meta(
    service: FakeService, connect: Connect, error: type[SandpointError]
) -> None:
    service.error = error("cannot; do this instead")
    async with connect(service) as client:
        result = await client.call_tool("restore_backup", {"backup_id": ID})
    assert result.is_error
    assert text(result) == f"{error.code}: cannot; do this instead"
    assert code(result) == error.code
    assert result.structured_content is None


async def test_a_name_that_is_not_utf8_does_not_break_the_answer(service: FakeService, connect: Connect) -> None:
    service.error = ERRORS["BACKUP_CREATE_FAILED"]("cannot read 'caf\udce9'")
    async with connect(service) as client:
        result = await client.call_tool("create_backup", {"dir": "/work"})
    assert text(result) == r"BACKUP_CREATE_FAILED: cannot read 'caf\udce9'"


async def test_a_crash_is_logged_and_kept_from_the_model(
    service: FakeService, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = RuntimeError("the secret cause")
    async with connect(service) as client:
        result = await client.call_tool("verify_backup", {"backup_id": ID})
    assert result.is_error
    assert text(result).startswith("INTERNAL_ERROR: verify_backup ")
    assert "secret" not in text(result)
    assert result.structured_content is None
    assert "the secret cause" in caplog.text
    assert "Traceback" in caplog.text


async def test_an_unknown_tool_is_an_error(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        result = await client.call_tool("prune", {})
    assert result.is_error
    assert code(result) == "INVALID_BACKUP_CONFIG"
    assert text(result).startswith("INVALID_BACKUP_CONFIG: there is no tool 'prune'; nothing was done. There are: ")
    assert "create_backup" in text(result)


HUGE = "x" * 2_000_000
HOSTILE_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a huge unknown name": ("create_backup", {"dir": "/work", HUGE: 1}),
    "a name with a newline": ("create_backup", {"dir": "/work", "a\nBACKUP_NOT_FOUND: b\x1b[2J": 1}),
    "many unknown names": ("create_backup", {"dir": "/work"} | {f"n{number}": 1 for number in range(5000)}),
    "a huge text for a number": ("list_backups", {"limit": HUGE}),
    "a huge number": ("list_backups", {"limit": 10**4000}),
    "a huge time": ("create_backup", {"dir": "/work", "ttl": 10**400}),
    "nested lists": ("restore_backup", {"backup_id": ID, "paths": [[["a"]]]}),
    "lists of nothing": ("restore_backup", {"backup_id": ID, "paths": [None] * 5000}),
    "an object for a text": ("create_backup", {"dir": {"path": "/work"}}),
    "deep JSON": ("restore_backup", {"backup_id": ID, "paths": "[" * 100_000}),
    "null for what must be": ("create_backup", {"dir": None}),
    "a huge mode": ("restore_backup", {"backup_id": ID, "mode": HUGE}),
    "a huge cursor": ("diff_backup", {"backup_id": ID, "cursor": HUGE}),
    "a cursor of another kind": ("diff_backup", {"backup_id": ID, "cursor": 7}),
    "too many directories": ("fork_backup", {"backup_id": ID, "dirs": ["x" * 10_000] * 101}),
    "a huge tool": (HUGE, {}),
}


@pytest.mark.parametrize(("tool", "arguments"), HOSTILE_ARGUMENTS.values(), ids=HOSTILE_ARGUMENTS)
async def test_whatever_is_sent_the_answer_is_a_short_coded_error(
    service: FakeService, connect: Connect, tool: str, arguments: dict[str, Any]
) -> None:
    async with connect(service) as client:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert text(result).startswith("INVALID_BACKUP_CONFIG: ")
        assert code(result) == "INVALID_BACKUP_CONFIG"
        assert len(text(result)) <= MAX_ERROR
        assert text(result).isprintable()
        assert not (await client.call_tool("list_backups", {})).is_error


async def test_an_error_that_quotes_a_tree_moves_no_cursor(service: FakeService, connect: Connect) -> None:
    service.error = ERRORS["BACKUP_CREATE_FAILED"]("cannot read 'a\x1b[2Jb\u202ec'" + "x" * 10_000 + "; close the file")
    async with connect(service) as client:
        result = await client.call_tool("create_backup", {"dir": "/work"})
    assert text(result).startswith(r"BACKUP_CREATE_FAILED: cannot read 'a\x1b[2Jb\u202ec'")
    assert text(result).endswith("; close the file")
    assert len(text(result)) <= MAX_ERROR


async def test_a_difference_is_read_page_by_page(service: FakeService, connect: Connect) -> None:
    service.changes = Changes(added=tuple(f"{number:03}" for number in range(120)))
    arguments: dict[str, Any] = {"backup_id": ID}
    found: list[str] = []
    async with connect(service) as client:
        for left in (70, 20, None):
            told = (await client.call_tool("diff_backup", arguments)).structured_content
            assert told is not None
            assert (told["added_count"], told.get("more")) == (120, left)
            found += told["added"]
            if left:
                arguments["cursor"] = told["next_cursor"]
        assert "next_cursor" not in told
        other = await client.call_tool("diff_backup", arguments | {"content": True})
    assert found == list(service.changes.added)
    assert code(other) == "INVALID_BACKUP_CONFIG"


async def test_a_result_is_compact_and_the_same_twice(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        result = await client.call_tool("delete_backup", {"backup_id": ID})
    assert text(result) == f'{{"id":"{ID}","deleted":true,"freed_bytes":5}}'
    assert result.structured_content == {"id": ID, "deleted": True, "freed_bytes": 5}


async def test_an_empty_list_is_a_list(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        result = await client.call_tool("list_backups", {})
    assert result.structured_content == {"count": 0, "backups": []}


async def test_what_does_not_verify_is_a_result(service: FakeService, connect: Connect) -> None:
    async with connect(service) as client:
        result = await client.call_tool("verify_backup", {"backup_id": ID})
    assert not result.is_error
    assert result.structured_content is not None
    assert result.structured_content["ok"] is False
    assert result.structured_content["problem"] == "the manifest was altered"


async def test_progress_reaches_a_client_that_asks(service: FakeService, connect: Connect) -> None:
    heard: list[str | None] = []
    told = anyio.Event()

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)
        if progress == total:
            told.set()

    async with connect(service) as client:
        await client.call_tool("create_backup", {"dir": "/work"}, progress_callback=listen)
        with anyio.fail_after(30):
            await told.wait()
    assert heard == ["reading: 12%", "done: 100%"]


async def test_cancelling_the_request_cancels_the_service(service: FakeService, connect: Connect) -> None:
    service.hang = True
    async with connect(service) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "create_backup", {"dir": "/work"})
        with anyio.fail_after(30):
            await service.started.wait()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await service.cancelled.wait()
    assert service.cancelled.is_set()


class Several:
    """Services of which each use is noted; only docker:a and docker:b may be named."""

    def __init__(self, service: FakeService) -> None:
        self.service = service
        self.used: list[str | None] = []

    def check(self, name: str | None) -> str:
        if name not in {None, "docker:a", "docker:b"}:
            raise InvalidBackupConfigError(f"sandbox: {name!r} is not among those that may be used here")
        return name or "docker:a"

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[FakeService]:
        self.used.append(self.check(name))
        yield self.service

    @asynccontextmanager
    async def use_store(self) -> AsyncIterator[FakeService]:
        self.used.append("store")
        yield self.service


WITH_SANDBOX = {"create_backup", "restore_backup", "list_backups", "diff_backup"}


async def test_only_a_server_of_several_sandboxes_takes_their_names(service: FakeService) -> None:
    for several in (False, True):
        where = Where(sandbox="docker:a", sandboxes=("docker:a", "docker:b") if several else None)
        async with Client(build_lazy_server(Several(service), where=where)) as client:
            tools = {tool.name: tool.input_schema["properties"] for tool in (await client.list_tools()).tools}
            assert {name for name, properties in tools.items() if "sandbox" in properties} == (
                WITH_SANDBOX if several else set()
            )
            assert ("sandboxes" in tools["fork_backup"]) == several
            if several:
                assert "docker:a, docker:b. Default: docker:a." in tools["create_backup"]["sandbox"]["description"]
                assert "Several sandboxes are served" in (client.instructions or "")
            else:
                assert "inside the Docker container a, not of this machine" in (client.instructions or "")
                refused = await client.call_tool("create_backup", {"dir": "/w", "sandbox": "docker:a"})
                assert code(refused) == "INVALID_BACKUP_CONFIG"


async def test_a_tool_works_in_the_sandbox_that_it_is_told(service: FakeService) -> None:
    services = Several(service)
    where = Where(sandbox="docker:a", sandboxes=("docker:a", "docker:b"))
    async with Client(build_lazy_server(services, where=where)) as client:
        await client.call_tool("create_backup", {"dir": "/w", "sandbox": "docker:b"})
        await client.call_tool("restore_backup", {"backup_id": ID})
        await client.call_tool("verify_backup", {"backup_id": ID})
        assert services.used == ["docker:b", "docker:a", "store"]
        await client.call_tool("fork_backup", {"backup_id": ID, "dirs": ["/w"], "sandboxes": ["docker:a", "docker:b"]})
        assert services.used[3:] == ["docker:a", "docker:b"]
        refused = await client.call_tool("create_backup", {"dir": "/w", "sandbox": "docker:c"})
        assert code(refused) == "INVALID_BACKUP_CONFIG"
        many = [f"/w/{number}" for number in range(51)]
        arguments = {"backup_id": ID, "dirs": many, "sandboxes": ["docker:a", "docker:b"]}
        refused = await client.call_tool("fork_backup", arguments)
        assert text(refused).startswith("INVALID_BACKUP_CONFIG: sandboxes: 102 directories in all, and at most 100")
