"""Clients made with the TypeScript SDKs: of both revisions, over both transports."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from helpers.clients import Outcome, Revision, Sandpoint, TypeScriptClient
from helpers.mcp_runs import make_project
from helpers.site import wait_until
from helpers.trees import assert_same, list_tree

TOKEN = "a-token-of-the-tests"
UNKNOWN_ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"
BACKUP, TREE, FILE = "backup://{id}", "backup://{id}/tree/{path}", "backup://{id}/file/{path}"
CAN_ASK: dict[str, Any] = {"elicitation": {"form": {}}}


@dataclass(frozen=True)
class Way:
    """How a client speaks to the server: `connect` makes another such."""

    base: Path
    server: Sandpoint
    client: TypeScriptClient
    connect: Callable[..., TypeScriptClient]


@pytest.fixture(
    scope="module",
    params=[(revision, transport) for revision in get_args(Revision) for transport in ("stdio", "http")],
    ids="-".join,
)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """One server and one client that can ask its user, for all tests of one kind."""
    revision, transport = request.param
    base = tmp_path_factory.mktemp("way")
    (base / "work").mkdir()
    path = f"{put_stoppable_mksquashfs(base)}:{os.environ['PATH']}"
    server = Sandpoint(base / "work", base / "store", base / "state", {"PATH": path, "SANDPOINT_HTTP_TOKEN": TOKEN})
    with ExitStack() as stack:
        target: dict[str, Any] = {"stdio": server.stdio}
        if transport == "http":
            url = stack.enter_context(server.over_http())
            target = {"url": url, "headers": {"Authorization": f"Bearer {TOKEN}"}}

        def connect(**capabilities: Any) -> TypeScriptClient:
            return TypeScriptClient(revision, capabilities=capabilities, **target)

        client = stack.enter_context(connect(**CAN_ASK))
        client.get("listTools")  # from then on the client checks every result against its tool's schema
        yield Way(base, server, client, connect)


def put_stoppable_mksquashfs(base: Path) -> Path:
    """Put a mksquashfs into a folder and return that: while `hold` exists it says so in `held`, and hangs."""
    folder = base / "tools"
    folder.mkdir()
    real = shutil.which("mksquashfs")
    tool = folder / "mksquashfs"
    hangs = f"echo $$ >{base}/held.new && mv {base}/held.new {base}/held && exec sleep 300"
    tool.write_text(f'#!/bin/sh\n[ -e {base}/hold ] && {hangs}\nexec {real} "$@"\n')
    tool.chmod(0o755)
    return folder


@pytest.fixture
def client(way: Way) -> TypeScriptClient:
    return way.client


@pytest.fixture
def project(way: Way, request: pytest.FixtureRequest) -> Path:
    return make_project(way.server.cwd / request.node.name)


def use(client: TypeScriptClient, tool: str, **how: Any) -> Outcome:
    told = {name: how.pop(name) for name in ("answer", "cancel_when") if name in how}
    return client.ask("callTool", {"name": tool, "arguments": how}, **told)


def test_the_server_introduces_itself(client: TypeScriptClient) -> None:
    assert client.get("revision") == client.revision
    assert client.get("getServerVersion")["title"] == "Sandpoint"
    assert "Back up BEFORE a risky step" in client.get("getInstructions")
    assert client.get("getServerCapabilities").keys() >= {"tools", "resources", "prompts"}


def test_every_tool_returns_what_its_schema_says(client: TypeScriptClient, project: Path) -> None:
    backup_id = client.call("create_backup", dir=str(project), name="all", metadata={"by": "test"})["id"]
    (project / "src" / "app.py").write_text("print('bye')\n")
    other = client.call("create_backup", dir=str(project))
    assert other["kind"] == "delta"
    copy = str(project.with_name("copy"))
    results = {
        "list_backups": client.call("list_backups", dir=str(project), limit=1),
        "diff_backup": client.call("diff_backup", backup_id=backup_id, content=True),
        "restore_backup": client.call("restore_backup", backup_id=backup_id, dry_run=True),
        "fork_backup": client.call("fork_backup", backup_id=backup_id, dirs=[copy], mode="copy"),
        "verify_backup": client.call("verify_backup", backup_id=backup_id),
        "delete_backup": client.call("delete_backup", backup_id=other["id"]),
    }
    assert results["list_backups"]["next_cursor"]
    assert "+print('bye')" in results["diff_backup"]["patch"]
    assert results["restore_backup"]["changes"]["modified"] == ["src/app.py"]
    assert results["verify_backup"]["ok"] is True
    assert results["delete_backup"]["id"] == other["id"]
    listed = {tool["name"] for tool in client.get("listTools")["tools"]}
    assert {"create_backup", *results} <= listed


def test_an_error_is_a_result_with_a_code_and_never_an_exception(client: TypeScriptClient, project: Path) -> None:
    wrong = {
        "create_backup": ({"dir": "/etc"}, "INVALID_BACKUP_CONFIG"),
        "restore_backup": ({"backup_id": UNKNOWN_ID}, "BACKUP_NOT_FOUND"),
        "fork_backup": ({"backup_id": UNKNOWN_ID, "dirs": [str(project)]}, "BACKUP_NOT_FOUND"),
        "list_backups": ({"limit": "5"}, "INVALID_BACKUP_CONFIG"),
        "diff_backup": ({"backup_id": "../../etc"}, "INVALID_BACKUP_CONFIG"),
        "verify_backup": ({}, "INVALID_BACKUP_CONFIG"),
        "delete_backup": ({"backup_id": UNKNOWN_ID, "force": True}, "INVALID_BACKUP_CONFIG"),
    }
    for tool, (arguments, code) in wrong.items():
        failed = client.get("callTool", {"name": tool, "arguments": arguments})
        assert failed["isError"] is True
        assert failed["content"][0]["text"].startswith(f"{code}: ")
        assert failed["_meta"]["sandpoint/code"] == code


def test_progress_rises_and_says_what_is_happening(client: TypeScriptClient, project: Path) -> None:
    heard = use(client, "create_backup", dir=str(project)).progress
    values = [step["progress"] for step in heard]
    assert values == sorted(set(values))
    assert len(values) > 1
    assert all(step["message"] for step in heard)


def test_a_restore_is_made_when_the_user_has_seen_the_plan_and_agrees(client: TypeScriptClient, project: Path) -> None:
    before = list_tree(project)
    backup_id = client.call("create_backup", dir=str(project))["id"]
    (project / "new").touch()
    (project / "run.sh").unlink()
    outcome = use(client, "restore_backup", backup_id=backup_id)
    [question] = outcome.questions
    assert {"- new", "+ run.sh"} <= set(question["message"].splitlines())
    assert outcome.result["structuredContent"]["undo_id"]
    assert_same(before, list_tree(project))


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_a_restore_that_the_user_does_not_want_touches_nothing(
    client: TypeScriptClient, project: Path, action: str
) -> None:
    backup_id = client.call("create_backup", dir=str(project))["id"]
    (project / "new").touch()
    changed = list_tree(project)
    outcome = use(client, "restore_backup", backup_id=backup_id, answer={"action": action})
    assert len(outcome.questions) == 1
    assert outcome.result["isError"] is True
    assert outcome.result["_meta"]["sandpoint/code"] == "NOT_CONFIRMED"
    assert_same(changed, list_tree(project))


def test_a_restore_that_changes_nothing_asks_nothing(client: TypeScriptClient, project: Path) -> None:
    backup_id = client.call("create_backup", dir=str(project))["id"]
    assert use(client, "restore_backup", backup_id=backup_id).questions == []
    (project / "new").touch()
    assert use(client, "restore_backup", backup_id=backup_id, dry_run=True).questions == []


def test_a_client_that_cannot_ask_its_user_is_not_asked(way: Way, project: Path) -> None:
    with way.connect() as client:
        backup_id = client.call("create_backup", dir=str(project))["id"]
        (project / "new").touch()
        client.call("restore_backup", backup_id=backup_id)
    assert not (project / "new").exists()


def test_a_backup_is_read_without_a_restore(client: TypeScriptClient, project: Path) -> None:
    backup_id = client.call("create_backup", dir=str(project), name="read")["id"]
    templates = {template["uriTemplate"] for template in client.get("listResourceTemplates")["resourceTemplates"]}
    assert templates >= {BACKUP, TREE, FILE}
    assert f"backup://{backup_id}" in {resource["uri"] for resource in client.get("listResources")["resources"]}
    assert json.loads(read(client, BACKUP, id=backup_id)["text"])["name"] == "read"
    entries = json.loads(read(client, TREE, id=backup_id, path="src")["text"])["entries"]
    assert [entry["name"] for entry in entries] == ["app.py", "empty"]
    file = read(client, FILE, id=backup_id, path="src/app.py")
    assert file["mimeType"] == "text/x-python"
    assert file["text"] == (project / "src" / "app.py").read_text()
    content = read(client, FILE, id=backup_id, path="données.txt")["blob"]
    assert base64.b64decode(content) == (project / "données.txt").read_bytes()
    missing = client.ask("readResource", {"uri": f"backup://{backup_id}/file/nothing"})
    assert missing.error is not None
    assert "nothing is not in the backup" in missing.error["message"]


def read(client: TypeScriptClient, template: str, **values: str) -> dict[str, Any]:
    """Read what the client's own expansion of a template leads to."""
    [content] = client.get("readTemplate", template, values)["contents"]
    assert isinstance(content, dict)
    return content


def test_ids_and_paths_are_completed(client: TypeScriptClient, project: Path) -> None:
    backup_id = client.call("create_backup", dir=str(project))["id"]
    assert backup_id in complete(client, FILE, "id", backup_id[:8])
    assert complete(client, FILE, "path", "src/a", id=backup_id) == ["src/app.py"]
    assert complete(client, TREE, "path", "s", id=backup_id) == ["src/"]


def complete(client: TypeScriptClient, template: str, argument: str, typed: str, **known: str) -> list[str]:
    asked = {
        "ref": {"type": "ref/resource", "uri": template},
        "argument": {"name": argument, "value": typed},
        "context": {"arguments": known},
    }
    values = client.get("complete", asked)["completion"]["values"]
    assert isinstance(values, list)
    return values


def test_prompts_tell_the_model_what_to_call(client: TypeScriptClient, project: Path) -> None:
    listed = {prompt["name"] for prompt in client.get("listPrompts")["prompts"]}
    assert listed == {"checkpoint_before_risky_change", "recover_workspace"}
    asked = {"name": "checkpoint_before_risky_change", "arguments": {"dir": str(project)}}
    [message] = client.get("getPrompt", asked)["messages"]
    assert "create_backup" in message["content"]["text"]
    assert str(project) in message["content"]["text"]


def test_a_cancelled_backup_leaves_nothing(way: Way, client: TypeScriptClient, project: Path) -> None:
    hold, held = way.base / "hold", way.base / "held"
    before = stored_files(way)
    hold.touch()
    outcome = use(client, "create_backup", dir=str(project), cancel_when=held)
    hold.unlink()
    assert outcome.error is not None
    assert "enough" in outcome.error["message"]
    wait_until(lambda: stored_files(way) == before)
    wait_until(lambda: not Path("/proc", held.read_text().strip()).exists())
    assert client.call("list_backups", dir=str(project))["backups"] == []
    made = client.call("create_backup", dir=str(project))
    assert client.call("verify_backup", backup_id=made["id"])["ok"] is True


def stored_files(way: Way) -> list[str]:
    """Return what the store has; os.walk goes on where a folder has just gone."""
    found = [os.path.join(folder, name) for folder, _, names in os.walk(way.server.store) for name in names]
    return sorted(path for path in found if os.path.basename(path) != "lock")
