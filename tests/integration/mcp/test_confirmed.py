"""The question before a restore, a fork and a deletion: a real server on a real tree, asked over stdio."""

import shutil
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import anyio
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult

from helpers.mcp import text
from helpers.mcp_runs import call, damage, failure, listing

pytestmark = pytest.mark.anyio

Connect = Callable[..., AbstractAsyncContextManager[Client]]


async def _at_once() -> None:
    """Think nothing."""


@dataclass
class User:
    """Somebody at the client, who does something else before each answer."""

    answers: list[Literal["accept", "decline", "cancel"]]
    meanwhile: Callable[[], Awaitable[None]] = _at_once
    questions: list[str] = field(default_factory=list)

    async def answer(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        self.questions.append(params.message)
        await self.meanwhile()
        return ElicitResult(action=self.answers[len(self.questions) - 1], content={})


async def test_each_operation_is_done_after_a_yes_and_not_after_a_no(connect: Connect, project: Path) -> None:
    user = User(["decline", "cancel", "accept", "decline", "accept", "decline", "accept"])
    fork = project / "src" / "fork"
    async with connect(elicitation_callback=user.answer) as client:
        backup_id = (await call(client, "create_backup", dir=str(project), name="before"))["id"]
        intact = listing(project)
        await call(client, "restore_backup", backup_id=backup_id)
        await call(client, "restore_backup", backup_id=backup_id, dry_run=True)
        damage(project)
        broken = listing(project)
        for _ in range(2):
            assert await failure(client, "restore_backup", backup_id=backup_id) == "NOT_CONFIRMED"
            assert listing(project) == broken
        restored = await call(client, "restore_backup", backup_id=backup_id)
        assert listing(project) == intact
        assert len(user.questions) == 3
        assert "come back" in user.questions[2]
        assert '"before"' in user.questions[2]

        await call(client, "fork_backup", backup_id=backup_id, dirs=[str(fork)], mode="copy")
        assert listing(fork) == intact
        (fork / "mine").write_text("work of an hour")
        assert await failure(client, "fork_backup", backup_id=backup_id, dirs=[str(fork)]) == "NOT_CONFIRMED"
        assert (fork / "mine").exists()
        await call(client, "fork_backup", backup_id=backup_id, dirs=[str(fork)], mode="copy")
        assert not (fork / "mine").exists()

        undo_id = restored["undo_id"]
        assert await failure(client, "delete_backup", backup_id=undo_id) == "NOT_CONFIRMED"
        await call(client, "delete_backup", backup_id=undo_id)
        assert await failure(client, "delete_backup", backup_id=undo_id) == "BACKUP_NOT_FOUND"
    assert len(user.questions) == 7


async def test_what_changes_while_the_user_thinks_is_asked_about_and_others_go_on(
    connect: Connect, project: Path
) -> None:
    user = User(["accept", "accept"])
    async with connect(elicitation_callback=user.answer) as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        intact = listing(project)
        damage(project)

        async def work_on() -> None:
            (project / "junk" / f"{len(user.questions)}.txt").write_text("more")
            if len(user.questions) == 2:
                (project / "junk" / "2.txt").unlink()
            await call(client, "create_backup", dir=str(project), name="taken meanwhile")

        user.meanwhile = work_on
        await call(client, "restore_backup", backup_id=backup_id)
        assert listing(project) == intact
        named = await call(client, "list_backups", name="taken meanwhile")
        assert named["count"] == 2
    assert ["junk/1.txt" in question for question in user.questions] == [False, True]


async def test_a_call_that_is_cancelled_while_the_user_thinks_does_nothing(connect: Connect, project: Path) -> None:
    asked = anyio.Event()

    async def for_ever() -> None:
        asked.set()
        await anyio.sleep_forever()

    user = User(["accept"], meanwhile=for_ever)
    async with connect(elicitation_callback=user.answer) as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        damage(project)
        broken = listing(project)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "restore_backup", {"backup_id": backup_id})
            with anyio.fail_after(30):
                await asked.wait()
            tasks.cancel_scope.cancel()
        assert (await call(client, "diff_backup", backup_id=backup_id))["removed_count"] > 0
        assert [each["id"] for each in (await call(client, "list_backups"))["backups"]] == [backup_id]
    assert listing(project) == broken


async def test_the_settings_of_the_server_turn_the_question_off(connect: Connect, project: Path) -> None:
    user = User([])
    async with connect(elicitation_callback=user.answer, SANDPOINT_CONFIRM="never") as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        intact = listing(project)
        damage(project)
        await call(client, "restore_backup", backup_id=backup_id)
        await call(client, "delete_backup", backup_id=backup_id)
    assert listing(project) == intact
    assert user.questions == []


async def test_a_setting_that_means_nothing_is_told(connect: Connect) -> None:
    async with connect(SANDPOINT_CONFIRM="sometimes") as client:
        result = await client.call_tool("list_backups", {})
    assert text(result).startswith("INVALID_BACKUP_CONFIG: ")
    assert "confirm" in text(result)


async def test_hostile_names_do_not_forge_the_question(connect: Connect, project: Path) -> None:
    user = User(["accept"])
    names = ["0\nRestore nothing", "1\x1b[2J", "2\u202egpj.exe", "3" * 255]
    async with connect(elicitation_callback=user.answer) as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        shutil.rmtree(project / "src")
        for name in names:
            (project / name).touch()
        (project / b"4caf\xe9".decode("utf-8", "surrogateescape")).touch()
        await call(client, "restore_backup", backup_id=backup_id)
    (question,) = user.questions
    assert all(line.isprintable() and len(line) < 200 for line in question.split("\n"))
    removed = [line for line in question.split("\n") if line.startswith("- ")]
    assert removed[:3] == ["- 0\\nRestore nothing", "- 1\\x1b[2J", "- 2\\u202egpj.exe"]
    assert len(removed) == 5
