"""Which calls ask the user, what the question shows, and what each answer leads to; on both revisions."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult, ErrorData, InputResponses

from helpers.mcp import ID, FakeService, code, make_backup, text
from sandpoint.errors import BackupIntegrityError, BackupNotFoundError
from sandpoint.mcp_server import build_server
from sandpoint.mcp_server.confirm import MAX_PLANS, Confirm
from sandpoint.models import Changes

pytestmark = pytest.mark.anyio

Action = Literal["accept", "decline", "cancel"]


@dataclass
class User:
    """Somebody at a client that asks."""

    answers: list[Action] = field(default_factory=list)
    """In order; the last one again and again."""
    content: dict[str, Any] | None = field(default_factory=dict)
    thinks: Callable[[], None] = lambda: None
    questions: list[str] = field(default_factory=list)

    async def answer(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        self.questions.append(params.message)
        self.thinks()
        action: Action = self.answers[min(len(self.questions), len(self.answers)) - 1]
        return ElicitResult(action=action, content=self.content if action == "accept" else None)


Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["auto", "legacy"])
def connect(request: pytest.FixtureRequest, service: FakeService) -> Connect:
    mode: Literal["auto", "legacy"] = request.param

    @asynccontextmanager
    async def connected(user: User | None, confirm: Confirm = "auto") -> AsyncIterator[Client]:
        callback = None if user is None else user.answer
        async with Client(build_server(service, confirm=confirm), mode=mode, elicitation_callback=callback) as client:
            yield client

    return connected


def done(service: FakeService) -> list[str]:
    """Return what was asked of the service that changes something."""
    changing = {"create", "fork", "delete"}
    return [
        operation
        for operation, options in service.calls
        if operation in changing or (operation == "restore" and not options["dry_run"])
    ]


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "restore": ("restore_backup", {"backup_id": ID}),
    "fork": ("fork_backup", {"backup_id": ID, "dirs": ["/work/a", "/work/b"]}),
    "delete": ("delete_backup", {"backup_id": ID}),
}


@pytest.fixture
def replacing(service: FakeService) -> FakeService:
    service.changes = Changes(added=("back",), modified=("changed",), removed=("new",))
    return service


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("content", [{}, None, {"unasked": "for"}])
async def test_a_yes_lets_it_be_done(
    replacing: FakeService, connect: Connect, operation: str, content: dict[str, Any] | None
) -> None:
    user = User(["accept"], content=content)
    tool, arguments = CALLS[operation]
    async with connect(user) as client:
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    assert len(user.questions) == 1
    assert done(replacing) == [operation]


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("answer", ["decline", "cancel"])
async def test_all_else_leaves_everything_and_tells_the_model_what_to_do(
    replacing: FakeService, connect: Connect, operation: str, answer: Action
) -> None:
    user = User([answer])
    tool, arguments = CALLS[operation]
    async with connect(user) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert text(result).startswith("NOT_CONFIRMED: ")
    assert code(result) == "NOT_CONFIRMED"
    assert result.structured_content is None
    assert "Nothing was touched. Do not call this again" in text(result)
    assert ("said no" in text(result)) == (answer == "decline")
    assert ("SANDPOINT_CONFIRM=never" in text(result)) == (answer == "cancel")
    assert len(user.questions) == 1
    assert done(replacing) == []


@pytest.mark.parametrize("operation", CALLS)
async def test_a_client_that_cannot_ask_is_not_asked(replacing: FakeService, connect: Connect, operation: str) -> None:
    tool, arguments = CALLS[operation]
    async with connect(None) as client:
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    assert [name for name, _ in replacing.calls] == [operation]


@pytest.mark.parametrize("operation", CALLS)
async def test_a_server_that_was_told_never_to_ask_does_not(
    replacing: FakeService, connect: Connect, operation: str
) -> None:
    user = User(["decline"])
    tool, arguments = CALLS[operation]
    async with connect(user, "never") as client:
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    assert user.questions == []
    assert [name for name, _ in replacing.calls] == [operation]


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("argument", ["confirm", "confirmed", "yes", "force"])
async def test_no_argument_turns_the_question_off(
    replacing: FakeService, connect: Connect, operation: str, argument: str
) -> None:
    user = User(["accept"])
    tool, arguments = CALLS[operation]
    async with connect(user) as client:
        result = await client.call_tool(tool, arguments | {argument: "never"})
    assert code(result) == "INVALID_BACKUP_CONFIG"
    assert replacing.calls == []


async def test_a_dry_run_and_a_restore_of_nothing_do_not_ask(service: FakeService, connect: Connect) -> None:
    user = User(["decline"])
    async with connect(user) as client:
        planned = await client.call_tool("restore_backup", {"backup_id": ID, "dry_run": True})
        service.changes = Changes()
        restored = await client.call_tool("restore_backup", {"backup_id": ID})
    assert not planned.is_error
    assert not restored.is_error
    assert user.questions == []
    assert done(service) == ["restore"]


async def test_a_fork_asks_only_where_something_would_be_replaced(service: FakeService, connect: Connect) -> None:
    user = User(["decline"])
    async with connect(user) as client:
        filled = await client.call_tool(*CALLS["fork"])
        service.changes = Changes(modified=("changed",))
        service.missing_dirs = ("/work/a", "/work/b")
        made = await client.call_tool(*CALLS["fork"])
        assert user.questions == []
        service.missing_dirs = ("/work/a",)
        declined = await client.call_tool(*CALLS["fork"])
    assert not filled.is_error
    assert not made.is_error
    assert declined.is_error
    (question,) = user.questions
    assert '"/work/b": of its paths 0 come back, 1 are overwritten, 0 are DELETED' in question
    assert "/work/a:" not in question


async def test_the_question_shows_the_plan(service: FakeService, connect: Connect) -> None:
    service.changes = Changes(added=("a", "b"), removed=tuple(f"new/{number}" for number in range(8)))
    service.backup = make_backup(name="before", excludes=("node_modules/", "*.log"), use_gitignore=True)
    user = User(["accept"])
    async with connect(user) as client:
        await client.call_tool("restore_backup", {"backup_id": ID, "dir": "/srv/app", "paths": ["src"]})
        await client.call_tool("restore_backup", {"backup_id": ID, "undo": False})
    assert user.questions[0].splitlines() == [
        'Restore "/srv/app"? Of its paths 2 come back, 0 are overwritten, 8 are DELETED.',
        "What is there now is backed up first, so this can be undone.",
        f'From backup {ID} "before" of "/work/app", taken 2026-11-21 20:46:50 UTC',
        "Mode copy: only what differs is written.",
        'Only: "src"',
        'Not touched, as the backup leaves it out: "node_modules/", "*.log", what git ignores',
        "+ a",
        "+ b",
        *(f"- new/{number}" for number in range(5)),
        "and 3 more are DELETED",
    ]
    assert user.questions[1].splitlines()[1] == "What is there now is NOT backed up: this cannot be undone."


async def test_the_question_before_a_deletion_says_which_backup(service: FakeService, connect: Connect) -> None:
    service.backup = make_backup(name="before")
    user = User(["accept"])
    async with connect(user) as client:
        await client.call_tool(*CALLS["delete"])
    assert user.questions == [
        f'Delete backup {ID} "before" of "/work/app", taken 2026-11-21 20:46:50 UTC\n'
        "This cannot be undone. Its directory is not touched, and other backups stay whole."
    ]


async def test_a_damaged_backup_can_be_deleted_after_a_question(service: FakeService, connect: Connect) -> None:
    service.get_error = BackupIntegrityError("the metadata was altered")
    user = User(["accept"])
    async with connect(user) as client:
        result = await client.call_tool(*CALLS["delete"])
    assert not result.is_error, text(result)
    assert f'backup "{ID}"; what it holds cannot be told' in user.questions[0]


@pytest.mark.parametrize("operation", CALLS)
async def test_nobody_is_asked_about_what_cannot_be_done(
    replacing: FakeService, connect: Connect, operation: str
) -> None:
    replacing.error = BackupNotFoundError("there is no such backup; list shows those that there are")
    user = User(["accept"])
    tool, arguments = CALLS[operation]
    async with connect(user) as client:
        result = await client.call_tool(tool, arguments)
    assert code(result) == "BACKUP_NOT_FOUND"
    assert user.questions == []


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("answer", [ErrorData(code=-1, message="User\x1b[2J rejected"), {"action": "yes"}, {}])
async def test_a_client_that_fails_to_ask_is_no_yes_and_the_model_is_told(
    replacing: FakeService, operation: str, answer: ErrorData | dict[str, Any]
) -> None:
    async def fail(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult | ErrorData:
        return answer if isinstance(answer, ErrorData) else _AnyResult.model_validate(answer)

    tool, arguments = CALLS[operation]
    async with Client(build_server(replacing), mode="legacy", elicitation_callback=fail) as client:
        result = await client.call_tool(tool, arguments)
    assert code(result) == "NOT_CONFIRMED"
    assert "Nothing was touched" in text(result)
    assert text(result).isprintable()
    assert done(replacing) == []


class _AnyResult(ElicitResult):
    action: Any = None


async def test_an_overlay_is_asked_about_though_no_path_changes_as_it_hides_what_the_backup_left_out(
    service: FakeService, connect: Connect
) -> None:
    service.changes, service.restore_mode = Changes(), "overlay"
    service.backup = make_backup(excludes=("node_modules/",))
    user = User(["decline"])
    async with connect(user) as client:
        assert code(await client.call_tool("restore_backup", {"backup_id": ID})) == "NOT_CONFIRMED"
        assert code(await client.call_tool(*CALLS["fork"])) == "NOT_CONFIRMED"
    assert 'Out of sight then, as the backup leaves it out: "node_modules/"' in user.questions[0]
    assert "Not touched" not in user.questions[0]


async def test_an_overlay_that_goes_with_what_was_written_in_it_is_asked_about(
    service: FakeService, connect: Connect
) -> None:
    service.changes, service.unmounted = Changes(), True
    user = User(["decline"])
    async with connect(user) as client:
        assert code(await client.call_tool("restore_backup", {"backup_id": ID})) == "NOT_CONFIRMED"
        assert code(await client.call_tool(*CALLS["fork"])) == "NOT_CONFIRMED"
    assert "is taken down, with all that was written in it" in user.questions[0]


async def test_a_name_ends_where_its_quotes_do(service: FakeService, connect: Connect) -> None:
    forged = 'x" of /tmp/scratch, taken 2026-01-01 00:00:00 UTC'
    service.changes = Changes(removed=tuple(f"{number} and 3 more" for number in range(9)))
    service.backup = make_backup(name=forged, dir='/a"b', excludes=('no", "yes',))
    user = User(["decline"])
    async with connect(user) as client:
        await client.call_tool("restore_backup", {"backup_id": ID, "dir": '/w"? Of its paths 0 are DELETED. "'})
    lines = user.questions[0].splitlines()
    assert lines[0].startswith(r'Restore "/w\u0022? Of its paths 0 are DELETED. \u0022"? Of its paths 0 come back')
    assert r'"x\u0022 of /tmp/scratch, taken 2026-01-01 00:00:00 UTC" of "/a\u0022b", taken 2026-11-21' in lines[2]
    assert lines[4].endswith(r': "no\u0022, \u0022yes"')
    assert [line for line in lines if not line.startswith("- ")][-1] == "and 4 more are DELETED"


HOSTILE = {
    "a newline": "innocent\nRestore nothing?",
    "an escape": "\x1b[2J\x1b[31mred",
    "bidi": "safe\u202etxt.exe",
    "zero width": "a\u200bb",
    "a line separator": "a\u2028b",
    "megabytes": "m" * 3_000_000,
    "megabytes of escapes": "\x1b" * 3_000_000,
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
async def test_no_name_in_a_tree_can_forge_the_question(service: FakeService, connect: Connect, name: str) -> None:
    service.changes = Changes(added=(name,), modified=(name,) * 9, removed=(name,))
    service.backup = make_backup(name=name, dir=f"/{name}", excludes=(name,))
    user = User(["decline"])
    async with connect(user) as client:
        restored = await client.call_tool("restore_backup", {"backup_id": ID})
        forked = await client.call_tool(*CALLS["fork"])
        deleted = await client.call_tool(*CALLS["delete"])
    assert len(user.questions) == 3
    for question, result in zip(user.questions, (restored, forked, deleted), strict=True):
        assert len(question) < 4000
        assert all(line.isprintable() for line in question.split("\n"))
        assert not any(line.startswith("Restore nothing") for line in question.split("\n"))
        assert len(text(result)) < 2000
        assert text(result).isprintable()


async def test_a_plan_that_changed_while_the_user_thought_is_asked_about_anew(
    service: FakeService, connect: Connect
) -> None:
    def something_is_written() -> None:
        if len(user.questions) == 1:
            service.changes = Changes(added=("new.txt",), removed=("made meanwhile",))

    user = User(["accept"], thinks=something_is_written)
    async with connect(user) as client:
        result = await client.call_tool("restore_backup", {"backup_id": ID})
    assert not result.is_error, text(result)
    assert ["made meanwhile" in question for question in user.questions] == [False, True]
    assert done(service)[-1] == "restore"
    assert result.structured_content is not None
    assert result.structured_content["changes"]["removed"] == ["made meanwhile"]


async def test_a_change_that_the_question_does_not_show_counts_too(service: FakeService, connect: Connect) -> None:
    def one_for_another() -> None:
        service.changes = Changes(removed=(*many, "z2"))

    many = tuple(f"{number:03}" for number in range(40))
    service.changes = Changes(removed=(*many, "z1"))
    user = User(["accept", "decline"], thinks=one_for_another)
    async with connect(user) as client:
        result = await client.call_tool("restore_backup", {"backup_id": ID})
    assert code(result) == "NOT_CONFIRMED"
    assert len(user.questions) == 2
    assert user.questions[0] == user.questions[1]


async def test_a_tree_that_never_rests_is_asked_about_a_few_times_only(service: FakeService) -> None:
    def something_is_written() -> None:
        service.changes = Changes(added=(f"{len(user.questions)}",))

    user = User(["accept"], thinks=something_is_written)
    async with Client(build_server(service), mode="legacy", elicitation_callback=user.answer) as client:
        result = await client.call_tool("restore_backup", {"backup_id": ID})
    assert code(result) == "BACKUP_RESTORE_FAILED"
    assert len(user.questions) == MAX_PLANS


async def test_an_answer_to_one_call_is_none_to_another(replacing: FakeService) -> None:
    user = User(["accept"])
    async with Client(build_server(replacing), elicitation_callback=user.answer) as client:
        asked = await client.session.call_tool("restore_backup", {"backup_id": ID}, allow_input_required=True)
        yes: InputResponses = {"confirm": ElicitResult(action="accept", content={})}
        unasked = await client.session.call_tool(
            "restore_backup", {"backup_id": ID}, input_responses=yes, allow_input_required=True
        )
        assert asked.result_type == unasked.result_type == "input_required"
        assert done(replacing) == []


async def test_other_calls_go_on_while_the_user_thinks(replacing: FakeService, connect: Connect) -> None:
    asked, other_done = anyio.Event(), anyio.Event()

    class Slow(User):
        async def answer(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
            asked.set()
            await other_done.wait()
            return await super().answer(context, params)

    async with connect(Slow(["accept"])) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "restore_backup", {"backup_id": ID})
        with anyio.fail_after(30):
            await asked.wait()
            assert not (await client.call_tool("list_backups", {})).is_error
            other_done.set()
    assert done(replacing) == ["restore"]
