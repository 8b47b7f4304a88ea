"""The real server process over stdio, on real trees, in both revisions of the protocol."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import pytest
from mcp import Client

from helpers.mcp import text
from helpers.mcp_runs import call, damage, failure, listing, put_tool, stored_files
from sandpoint.mcp_server import build_server
from sandpoint.service import open_service
from sandpoint.settings import Settings

pytestmark = pytest.mark.anyio

Mode = Literal["auto", "legacy"]
Connect = Callable[..., AbstractAsyncContextManager[Client]]
UNKNOWN_ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"


async def the_way_there_and_back(client: Client, project: Path) -> None:
    before = listing(project)
    created = await call(client, "create_backup", dir=str(project), name="before", metadata={"by": "test"})
    backup_id = created["id"]
    assert created["dir"] == str(project)
    assert created["kind"] == "full"
    assert created["file_count"] == 5
    assert created["total_bytes"] > created["size_bytes"] / 10 > 0

    listed = await call(client, "list_backups", dir=str(project), name="before")
    assert [backup["id"] for backup in listed["backups"]] == [backup_id]
    assert listed["backups"][0]["metadata"] == {"by": "test"}
    assert (await call(client, "list_backups", name="other"))["backups"] == []

    assert await call(client, "diff_backup", backup_id=backup_id) == {
        "added_count": 0,
        "modified_count": 0,
        "removed_count": 0,
    }
    damage(project)
    broken = listing(project)
    changes = await call(client, "diff_backup", backup_id=backup_id)
    assert "junk/new.txt" in changes["added"]
    assert "run.sh" in changes["modified"]
    assert "src/app.py" in changes["removed"]

    planned = await call(client, "restore_backup", backup_id=backup_id, mode="copy", dry_run=True)
    assert planned["dry_run"] is True
    assert "undo_id" not in planned
    assert listing(project) == broken

    restored = await call(client, "restore_backup", backup_id=backup_id, mode="copy")
    assert (restored["success"], restored["mode"], restored["dir"]) == (True, "copy", str(project))
    assert listing(project) == before

    assert "undo_id" in restored["to_undo"]
    undone = await call(client, "restore_backup", backup_id=restored["undo_id"], mode="copy", undo=False)
    assert not {"undo_id", "to_undo"} & undone.keys()
    assert listing(project) == broken
    await call(client, "restore_backup", backup_id=backup_id, mode="copy", paths=["src"])
    assert (project / "src" / "app.py").exists()
    assert (project / "junk" / "new.txt").exists()

    verified = await call(client, "verify_backup", backup_id=backup_id)
    assert verified["ok"] is True
    assert verified["checked_bytes"] >= created["size_bytes"]

    deleted = await call(client, "delete_backup", backup_id=backup_id)
    assert (deleted["id"], deleted["deleted"]) == (backup_id, True)
    assert await failure(client, "restore_backup", backup_id=backup_id) == "BACKUP_NOT_FOUND"


async def test_there_and_back_by_a_real_process(connect: Connect, project: Path) -> None:
    async with connect() as client:
        await the_way_there_and_back(client, project)


async def test_there_and_back_in_memory(tmp_path: Path, project: Path, mode: Mode) -> None:
    settings = Settings(store=(tmp_path / "store").as_uri(), state_dir=str(tmp_path / "state"))
    async with Client(build_server(open_service(settings)), mode=mode) as client:
        await the_way_there_and_back(client, project)


async def test_pages_of_a_list(connect: Connect, project: Path) -> None:
    async with connect() as client:
        made = [(await call(client, "create_backup", dir=str(project), name=str(n)))["id"] for n in range(3)]
        first = await call(client, "list_backups", limit=2)
        second = await call(client, "list_backups", limit=2, cursor=first["next_cursor"])
        broken = await failure(client, "list_backups", cursor="not a cursor")
    assert [backup["id"] for backup in first["backups"] + second["backups"]] == made[::-1]
    assert "next_cursor" not in second
    assert broken == "INVALID_BACKUP_CONFIG"


async def test_two_backups_are_compared(connect: Connect, project: Path) -> None:
    async with connect() as client:
        old = (await call(client, "create_backup", dir=str(project)))["id"]
        damage(project)
        new = (await call(client, "create_backup", dir=str(project)))["id"]
        changes = await call(client, "diff_backup", backup_id=old, other_id=new)
    assert "junk/new.txt" in changes["added"]
    assert "src/app.py" in changes["removed"]


async def test_contents_are_compared_and_a_patch_has_room(connect: Connect, project: Path) -> None:
    long = "".join(f"{number}\n" for number in range(10_000))
    (project / "long.txt").write_text(long)
    (project / "src" / "old.py").write_text("old\n")
    os.utime(project / "run.sh", ns=(1, 1))
    async with connect() as client:
        old = (await call(client, "create_backup", dir=str(project)))["id"]
        (project / "long.txt").write_text(long.replace("\n", "!\n"))
        (project / "src" / "app.py").write_text("print('bye')\n")
        (project / "src" / "old.py").unlink()
        (project / "données.txt").write_bytes(b"\0")
        os.utime(project / "run.sh", ns=(2, 2))
        changes = await call(client, "diff_backup", backup_id=old, content=True)
        assert changes["modified"] == ["données.txt", "long.txt", "run.sh", "same.sh", "src/app.py"]
        assert "\n-print('hello')\n+print('bye')\n" in changes["patch"]
        assert "\n--- a/src/old.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-old\n" in changes["patch"]
        assert "long.txt" not in changes["patch"]
        assert changes["not_in_patch"]["limit"] == ["long.txt"]
        assert changes["not_in_patch"]["binary"] == ["données.txt"]
        assert changes["not_in_patch"]["mtime"] == ["run.sh", "same.sh"]

        new = (await call(client, "create_backup", dir=str(project)))["id"]
        part = await call(client, "diff_backup", backup_id=old, other_id=new, paths=["long.txt"], content=True)
        assert part["not_in_patch"] == {"cut": ["long.txt"]}
        assert "\n-0\n-1\n" in part["patch"]
        (project / "src" / "app.py").write_text("")
        assert (await call(client, "diff_backup", backup_id=new, paths=["run.sh"]))["modified_count"] == 0
        assert (await call(client, "diff_backup", backup_id=new))["modified"] == ["src/app.py"]
        assert await failure(client, "diff_backup", backup_id=new, paths=["../x"]) == "INVALID_BACKUP_CONFIG"


@asynccontextmanager
async def confined(tmp_path: Path, allowed: Path) -> AsyncIterator[Client]:
    """Connect to a server that may use one directory only."""
    settings = Settings(
        store=(tmp_path / "store").as_uri(), state_dir=str(tmp_path / "state"), allowed_dirs=(str(allowed),)
    )
    async with Client(build_server(open_service(settings))) as client:
        yield client


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Return a directory that no server may use."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret\n")
    return private


async def back_up_twice(tmp_path: Path, directory: Path, *, state: str) -> tuple[str, str]:
    """Back up a directory as the command line does, and once more with another file in it."""
    service = open_service(Settings(store=(tmp_path / "store").as_uri(), state_dir=str(tmp_path / state)))
    first = await service.create(str(directory))
    (directory / "second").write_text("secret too\n")
    return first.id, (await service.create(str(directory))).id


async def test_backups_of_what_is_not_allowed_are_out_of_reach(tmp_path: Path, project: Path, private: Path) -> None:
    first, second = await back_up_twice(tmp_path, private, state="state")
    above, _ = await back_up_twice(tmp_path, project.parent, state="state")
    before = listing(project)
    async with confined(tmp_path, project) as client:
        own = (await call(client, "create_backup", dir=str(project)))["id"]
        assert [backup["id"] for backup in (await call(client, "list_backups"))["backups"]] == [own]
        assert (await call(client, "list_backups", dir=str(private)))["backups"] == []
        cases: list[tuple[str, dict[str, object]]] = [
            ("restore_backup", {"backup_id": first}),
            ("restore_backup", {"backup_id": first, "dir": str(project)}),
            ("restore_backup", {"backup_id": first, "dir": str(project / "new"), "dry_run": True}),
            ("restore_backup", {"backup_id": above, "dir": str(project)}),
            ("fork_backup", {"backup_id": first, "dirs": [str(project / "new")]}),
            ("verify_backup", {"backup_id": first}),
            ("delete_backup", {"backup_id": first}),
        ]
        for content in (False, True):
            cases += [
                ("diff_backup", {"backup_id": first, "dir": str(project), "content": content}),
                ("diff_backup", {"backup_id": first, "other_id": second, "content": content}),
                ("diff_backup", {"backup_id": own, "other_id": second, "content": content}),
                ("diff_backup", {"backup_id": second, "other_id": own, "content": content}),
            ]
        for tool, arguments in cases:
            result = await client.call_tool(tool, arguments)
            assert text(result).startswith("INVALID_BACKUP_CONFIG: "), (tool, arguments, text(result))
            assert "outside the allowed directories" in text(result)
            assert "secret" not in text(result)
    assert listing(project) == before
    service = open_service(Settings(store=(tmp_path / "store").as_uri(), state_dir=str(tmp_path / "state")))
    assert (await service.verify(first)).ok


async def test_backups_of_other_sandboxes_are_within_reach(tmp_path: Path, project: Path, private: Path) -> None:
    first, second = await back_up_twice(tmp_path, private, state="state of another machine")
    async with confined(tmp_path, project) as client:
        assert [backup["id"] for backup in (await call(client, "list_backups"))["backups"]] == [second, first]
        assert await failure(client, "restore_backup", backup_id=first) == "INVALID_BACKUP_CONFIG"
        await call(client, "restore_backup", backup_id=first, dir=str(project / "copy"))
        assert listing(project / "copy").keys() == {"key"}
        changes = await call(client, "diff_backup", backup_id=first, dir=str(project / "copy"), content=True)
        assert changes == {"added_count": 0, "modified_count": 0, "removed_count": 0}
        for content in (False, True):
            changes = await call(client, "diff_backup", backup_id=first, other_id=second, content=content)
            assert changes["added"] == ["second"]
        assert (await call(client, "verify_backup", backup_id=second))["ok"] is True
        assert (await call(client, "delete_backup", backup_id=second))["deleted"] is True


async def test_bad_directories_and_options_are_refused_and_nothing_is_done(
    connect: Connect, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "allowed" / "shortcut").symlink_to(project)
    before = listing(project)
    cases: dict[str, dict[str, object]] = {
        "relative": {"dir": "project"},
        "dots": {"dir": f"{project}/../project"},
        "nul": {"dir": f"{project}\0"},
        "missing": {"dir": f"{project}/nowhere"},
        "a file": {"dir": f"{project}/run.sh"},
        "a link": {"dir": str(tmp_path / "allowed" / "shortcut")},
        "through a link": {"dir": str(tmp_path / "allowed" / "shortcut" / "src")},
        "outside": {"dir": str(tmp_path)},
        "root": {"dir": "/"},
        "proc": {"dir": "/proc"},
        "empty": {"dir": ""},
        "long name": {"dir": str(project), "name": "n" * 257},
        "control character": {"dir": str(project), "name": "a\x1bb"},
        "no time to live": {"dir": str(project), "ttl": 0},
        "negative time to live": {"dir": str(project), "ttl": -5},
        "endless time to live": {"dir": str(project), "ttl": 1e300},
        "unknown argument": {"dir": str(project), "gitignore": True},
        "number for a word": {"dir": str(project), "name": 7},
        "word for a number": {"dir": str(project), "ttl": "7"},
    }
    async with connect(SANDPOINT_ALLOWED_DIRS=str(tmp_path / "allowed")) as client:
        answers = {case: await failure(client, "create_backup", **arguments) for case, arguments in cases.items()}
        assert answers == dict.fromkeys(cases, "INVALID_BACKUP_CONFIG")
        assert (await call(client, "list_backups"))["backups"] == []
    assert stored_files(tmp_path) == []
    assert listing(project) == before


@pytest.mark.parametrize("refused", ["/", "/proc", "/proc/self", "/sys", "store", "holding the store"])
async def test_system_directories_and_the_store_are_refused_though_allowed(
    connect: Connect, tmp_path: Path, refused: str
) -> None:
    names = {"store": tmp_path / "store", "holding the store": tmp_path}
    (tmp_path / "store").mkdir()
    async with connect(SANDPOINT_ALLOWED_DIRS="/") as client:
        answer = await failure(client, "create_backup", dir=str(names.get(refused, refused)))
    assert answer == "INVALID_BACKUP_CONFIG"
    assert stored_files(tmp_path) == []


async def test_bad_restores_are_refused_and_leave_the_directory(
    connect: Connect, project: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    async with connect() as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        brief = (await call(client, "create_backup", dir=str(project), ttl=1))["id"]
        damage(project)
        before = listing(project)
        await anyio.sleep(1.1)
        cases: dict[str, tuple[str, dict[str, object]]] = {
            "no id": ("INVALID_BACKUP_CONFIG", {"backup_id": "../../etc/passwd"}),
            "unknown": ("BACKUP_NOT_FOUND", {"backup_id": UNKNOWN_ID}),
            "expired": ("BACKUP_EXPIRED", {"backup_id": brief}),
            "outside": ("INVALID_BACKUP_CONFIG", {"backup_id": backup_id, "dir": str(outside)}),
            "absolute path": ("INVALID_BACKUP_CONFIG", {"backup_id": backup_id, "paths": ["/etc"]}),
            "path above": ("INVALID_BACKUP_CONFIG", {"backup_id": backup_id, "paths": ["../x"]}),
            "unknown mode": ("INVALID_BACKUP_CONFIG", {"backup_id": backup_id, "mode": "swap"}),
            "unknown argument": ("INVALID_BACKUP_CONFIG", {"backup_id": backup_id, "force": True}),
        }
        answers = {case: await failure(client, "restore_backup", **given) for case, (_, given) in cases.items()}
        assert answers == {case: expected for case, (expected, _) in cases.items()}
        forks = [[str(project), str(outside)], [str(project), f"{project}/src"], ["project"], [f"{project}/link/x"]]
        for dirs in forks:
            assert await failure(client, "fork_backup", backup_id=backup_id, dirs=dirs) == "INVALID_BACKUP_CONFIG"
        for tool in ("diff_backup", "verify_backup", "delete_backup"):
            assert await failure(client, tool, backup_id="7") == "INVALID_BACKUP_CONFIG"
            assert await failure(client, tool, backup_id=UNKNOWN_ID) == "BACKUP_NOT_FOUND"
    assert listing(project) == before
    assert listing(outside)["precious"][-1] == b"mine"


@pytest.mark.parametrize("name", ["data.sqsh", "manifest.zst", "meta.json"])
async def test_what_was_altered_in_the_store_never_reaches_the_directory(
    connect: Connect, project: Path, tmp_path: Path, name: str
) -> None:
    async with connect() as client:
        backup_id = (await call(client, "create_backup", dir=str(project)))["id"]
        (file,) = (tmp_path / "store").rglob(f"{backup_id}/{name}")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.chmod(0o600)
        file.write_bytes(content)
        damage(project)
        before = listing(project)
        answer = await failure(client, "restore_backup", backup_id=backup_id)
    assert answer == "BACKUP_INTEGRITY_FAILED"
    assert listing(project) == before


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder to put first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


async def test_a_missing_mksquashfs_is_told(connect: Connect, project: Path, tools: Path, tmp_path: Path) -> None:
    async with connect(PATH=str(tools)) as client:
        result = await client.call_tool("create_backup", {"dir": str(project)})
    assert text(result).startswith("BACKUP_CREATE_FAILED: ")
    assert "apt-get install squashfs-tools" in text(result)
    assert stored_files(tmp_path) == []


async def test_a_missing_git_is_told(connect: Connect, project: Path, tools: Path, tmp_path: Path) -> None:
    for program in ("mksquashfs", "setpriv"):
        if found := shutil.which(program):
            (tools / program).symlink_to(found)
    async with connect(PATH=str(tools)) as client:
        result = await client.call_tool("create_backup", {"dir": str(project), "use_gitignore": True})
    assert text(result).startswith("BACKUP_CREATE_FAILED: ")
    assert "git" in text(result)
    assert stored_files(tmp_path) == []


async def test_a_failing_mksquashfs_is_told(connect: Connect, project: Path, tools: Path, tmp_path: Path) -> None:
    path = put_tool(tools, "mksquashfs", "echo 'FATAL ERROR: the disk is on fire' >&2; exit 1")
    async with connect(PATH=path) as client:
        result = await client.call_tool("create_backup", {"dir": str(project)})
        assert text(result).startswith("BACKUP_CREATE_FAILED: ")
        assert "the disk is on fire" in text(result)
        assert (await call(client, "list_backups"))["backups"] == []
    assert stored_files(tmp_path) == []


async def test_a_store_that_cannot_be_used_is_told_by_each_tool(connect: Connect, project: Path) -> None:
    async with connect(SANDPOINT_STORE="ftp://nowhere") as client:
        assert len((await client.list_tools()).tools) == 8
        assert await failure(client, "create_backup", dir=str(project)) in {
            "INVALID_BACKUP_CONFIG",
            "STORE_UNAVAILABLE",
        }
        assert await failure(client, "list_backups") in {"INVALID_BACKUP_CONFIG", "STORE_UNAVAILABLE"}


async def test_settings_that_cannot_be_read_are_told_by_each_tool(connect: Connect) -> None:
    async with connect(SANDPOINT_ALLOWED_DIRS="not/absolute") as client:
        result = await client.call_tool("list_backups", {})
    assert text(result).startswith("INVALID_BACKUP_CONFIG: ")
    assert "not/absolute" in text(result)


async def test_progress_arrives_and_rises(connect: Connect, project: Path) -> None:
    for number in range(2000):
        (project / f"{number}.txt").write_text(str(number))
    heard: list[tuple[float, str]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    async with connect() as client:
        result = await client.call_tool("create_backup", {"dir": str(project)}, progress_callback=listen)
        assert not result.is_error, text(result)
        backup_id = (result.structured_content or {})["id"]
        made, heard = heard, []
        damage(project)
        await client.call_tool("restore_backup", {"backup_id": backup_id, "mode": "copy"}, progress_callback=listen)
    for told in (made, heard):
        values = [value for value, _ in told]
        assert values
        assert values == sorted(set(values))
        assert all(message for _, message in told)
