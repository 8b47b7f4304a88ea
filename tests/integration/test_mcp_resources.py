"""Backups as resources over the protocol, in both of its revisions, on real trees."""

import base64
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.uri_template import UriTemplate
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    Completion,
    PromptReference,
    Resource,
    ResourceTemplateReference,
    TextResourceContents,
)

from helpers.foreign import back_up
from helpers.mcp import sandpoint_server
from helpers.place import Place
from sandpoint.errors import StoreUnavailableError
from sandpoint.mcp_server import build_server, resources
from sandpoint.mcp_server.completion import MAX_VALUES
from sandpoint.mcp_server.server import build_lazy_server
from sandpoint.mcp_server.where import Where
from sandpoint.sandboxes.local import LocalSandbox
from sandpoint.service import BackupService
from sandpoint.services import Services
from sandpoint.settings import Settings

pytestmark = pytest.mark.anyio

Mode = Literal["auto", "legacy"]
UNKNOWN = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"
ODD_NAMES = ("two words", "new\nline", "#hash", "what?", "100%", "naïve", os.fsdecode(b"caf\xe9"), "back\\slash")


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> Mode:
    revision: Mode = request.param
    return revision


@pytest.fixture
def not_found(mode: Mode) -> int:
    """The code of a resource that is not there."""
    return INVALID_PARAMS if mode == "auto" else -32002


Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(place: Place, mode: Mode) -> Connect:
    @asynccontextmanager
    async def connected(service: BackupService | None = None) -> AsyncIterator[Client]:
        async with Client(build_server(service or place.service), mode=mode) as client:
            yield client

    return connected


def build(place: Place) -> None:
    (place.tree / "src" / "sub").mkdir(parents=True)
    (place.tree / "src" / "app.py").write_text("print('hello')\n")
    (place.tree / "src" / "logo.png").write_bytes(b"\x89PNG\0")
    (place.tree / "link").symlink_to("src/app.py")
    os.mkfifo(place.tree / "pipe")
    for name in ODD_NAMES:
        (place.tree / name).write_bytes(os.fsencode(f"this is {name}"))


async def read(client: Client, uri: str) -> TextResourceContents | BlobResourceContents:
    (content,) = (await client.read_resource(uri)).contents
    assert content.uri == uri
    return content


async def read_text(client: Client, uri: str) -> str:
    content = await read(client, uri)
    assert isinstance(content, TextResourceContents)
    return content.text


async def read_json(client: Client, uri: str) -> dict[str, Any]:
    content = await read(client, uri)
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    return dict(json.loads(content.text))


async def failure(client: Client, uri: str) -> tuple[int, str]:
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    assert caught.value.error.data == {"uri": uri}
    return caught.value.error.code, caught.value.error.message


def template(view: str) -> ResourceTemplateReference:
    return ResourceTemplateReference(uri=f"backup://{{id}}/{view}/{{path}}" if view else "backup://{id}")


async def complete(
    client: Client, ref: ResourceTemplateReference | PromptReference, name: str, typed: str, **known: str
) -> Completion:
    return (await client.complete(ref, {"name": name, "value": typed}, known)).completion


async def backups_of(client: Client) -> list[Resource]:
    """Return the resources that are backups: the page is one too."""
    listed = (await client.list_resources()).resources
    return [each for each in listed if each.uri.startswith("backup:")]


async def test_the_newest_backups_are_listed_with_the_templates(
    place: Place, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.tree.mkdir()
    monkeypatch.setattr(resources, "MAX_LISTED", 2)
    backups = [await place.service.create(str(place.tree), name=f"number {number}") for number in range(3)]
    await place.service.create(str(place.tree), name="over", ttl=0.001)
    async with connect() as client:
        listed = await backups_of(client)
        templates = (await client.list_resource_templates()).resource_templates
        assert [each.uri for each in listed] == [f"backup://{backup.id}" for backup in reversed(backups[1:])]
        assert listed[0].title == f"number 2 of {place.tree}"
        assert listed[0].mime_type == "application/json"
        assert listed[0].annotations is not None
        assert listed[0].annotations.last_modified == f"{backups[2].created_at:%Y-%m-%dT%H:%M:%SZ}"
        told = await read_json(client, listed[0].uri)
    assert [each.uri_template for each in templates] == [
        "backup://{id}",
        "backup://{id}/tree/{path}",
        "backup://{id}/file/{path}",
    ]
    assert all(each.description for each in templates)
    assert (told["id"], told["name"], told["dir"]) == (backups[2].id, "number 2", str(place.tree))


async def test_every_file_is_reached_from_the_root_of_the_tree(place: Place, connect: Connect) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        metadata = await read_json(client, f"backup://{backup.id}")
        root = await read_json(client, metadata["tree"])
        found = {}
        for entry in root["entries"]:
            if entry["kind"] == "file":
                uri = entry.get("uri", f"backup://{backup.id}/file/{entry['name']}")
                content = await read(client, uri)
                raw = content.text.encode() if isinstance(content, TextResourceContents) else content.blob
                found[entry["name"]] = raw if isinstance(raw, bytes) else base64.b64decode(raw)
    assert sorted(found.values()) == sorted(os.fsencode(f"this is {name}") for name in ODD_NAMES)
    assert root["entry_count"] == len(ODD_NAMES) + 3
    kinds = {entry["name"]: entry for entry in root["entries"]}
    assert kinds["link"]["target"] == "src/app.py"
    assert kinds["src"]["mode"] == f"{(place.tree / 'src').stat().st_mode & 0o7777:04o}"


async def test_what_a_client_makes_of_the_template_reaches_the_file(place: Place, connect: Connect) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        for name in ("src/app.py", "two words", "new\nline", "#hash", "what?", "100%", "naïve", "back\\slash"):
            uri = UriTemplate.parse(template("file").uri).expand({"id": backup.id, "path": name})
            assert await read_text(client, uri) == (place.tree / name).read_text()
        for uri in (f"backup://{backup.id}/tree/src", f"backup://{backup.id}/tree/src%2F"):
            names = [entry["name"] for entry in (await read_json(client, uri))["entries"]]
            assert names == ["app.py", "logo.png", "sub"]


async def test_text_comes_as_text_and_the_rest_as_bytes(place: Place, connect: Connect) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))
    (place.tree / "src" / "app.py").write_text("broken")
    async with connect() as client:
        source = await read(client, f"backup://{backup.id}/file/src/app.py")
        logo = await read(client, f"backup://{backup.id}/file/src/logo.png")
    assert isinstance(source, TextResourceContents)
    assert (source.text, source.mime_type) == ("print('hello')\n", "text/x-python")
    assert isinstance(logo, BlobResourceContents)
    assert (base64.b64decode(logo.blob), logo.mime_type) == (b"\x89PNG\0", "image/png")


async def test_a_large_folder_comes_in_pages(place: Place, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    monkeypatch.setattr(resources, "MAX_ENTRIES", 3)
    backup = await place.service.create(str(place.tree))
    names: list[str] = []
    async with connect() as client:
        uri: str | None = f"backup://{backup.id}/tree/"
        while uri is not None:
            page = await read_json(client, uri)
            assert len(page["entries"]) <= 3
            assert page["entry_count"] == len(ODD_NAMES) + 3
            names += [entry["name"] for entry in page["entries"]]
            uri = page.get("next")
    assert len(names) == len({*names}) == len(ODD_NAMES) + 3


async def test_what_is_not_there_is_not_found(place: Place, connect: Connect, not_found: int) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        for uri in (
            f"backup://{UNKNOWN}",
            f"backup://{UNKNOWN}/tree/",
            f"backup://{UNKNOWN}/file/src/app.py",
            f"backup://{backup.id}/tree/nothing",
            f"backup://{backup.id}/file/nothing",
            f"backup://{backup.id}/file/link/x",
            f"backup://{backup.id}/file/../secret",
            f"backup://{backup.id}/file/%2e%2e%2fsecret",
            f"backup://{backup.id}/tree//etc",
            "backup://latest",
            "other://thing",
        ):
            code, message = await failure(client, uri)
            assert code == not_found, uri
            assert "INTERNAL" not in message
        _, message = await failure(client, f"backup://{UNKNOWN}")
        assert message.startswith("BACKUP_NOT_FOUND: ")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file/src", "path: src is a directory; read backup://ID/tree/src"),
        ("file/link", "path: link is a symlink; links are not followed, so read what it leads to: src/app.py"),
        ("file/pipe", "path: pipe is a pipe; it has no contents"),
        ("tree/link", "path: link is a symlink, not a folder"),
        ("tree/what%3F", "path: what? is a file, not a folder; read backup://ID/file/what%3F"),
        ("tree/?after=a%2Fb", "cursor: "),
    ],
)
async def test_what_cannot_be_read_so_is_refused_with_the_way_to(
    place: Place, connect: Connect, uri: str, said: str
) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        code, message = await failure(client, f"backup://{backup.id}/{uri}")
    assert code == INTERNAL_ERROR
    assert message.startswith(f"INVALID_BACKUP_CONFIG: {said}".replace("ID/", f"{backup.id}/"))


async def test_a_file_that_is_too_large_names_the_remedies(
    place: Place, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.tree.mkdir()
    (place.tree / "big").write_bytes(b"x" * 101)
    monkeypatch.setattr(resources, "MAX_FILE_BYTES", 100)
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        code, message = await failure(client, f"backup://{backup.id}/file/big")
    assert code == INTERNAL_ERROR
    for word in ("101 bytes", "at most 100", f"sandpoint cat {backup.id}", "restore_backup"):
        assert word in message


async def test_a_name_that_is_no_text_can_be_told(place: Place, connect: Connect, not_found: int) -> None:
    place.tree.mkdir()
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        code, message = await failure(client, f"backup://{backup.id}/file/%FF%1B[31m%0A")
    assert code == not_found
    assert "\\xff\\x1b[31m\\n is not in the backup" in message


async def test_backups_out_of_reach_are_neither_listed_nor_read_nor_completed(place: Place, connect: Connect) -> None:
    build(place)
    secret = await place.service.create(str(place.tree), name="secret")
    mine = place.base / "mine"
    mine.mkdir()
    sandbox = LocalSandbox(str(place.state), allowed_dirs=[str(mine)])
    confined = BackupService(sandbox, place.backups)
    own = await confined.create(str(mine))
    async with connect(confined) as client:
        assert [each.uri for each in await backups_of(client)] == [f"backup://{own.id}"]
        for view in ("", "/tree/", "/tree/src", "/file/src/app.py"):
            code, message = await failure(client, f"backup://{secret.id}{view}")
            assert code == INTERNAL_ERROR
            assert "outside the allowed directories" in message
        assert (await complete(client, template("file"), "id", "")).values == [own.id]
        assert (await complete(client, template("file"), "id", secret.id)).values == []
        assert (await complete(client, template("file"), "path", "src/", id=secret.id)).values == []
        prompt = PromptReference(name="recover_workspace")
        assert (await complete(client, prompt, "dir", "")).values == [str(mine)]


async def test_backups_of_other_sandboxes_are_resources_as_well(place: Place, connect: Connect, tmp_path: Path) -> None:
    build(place)
    other = BackupService(LocalSandbox(str(tmp_path / "elsewhere")), place.backups)
    theirs = await other.create(str(place.tree))
    ours = await place.service.create(str(place.tree))
    async with connect() as client:
        assert [each.uri for each in await backups_of(client)] == [
            f"backup://{ours.id}",
            f"backup://{theirs.id}",
        ]
        assert (await read_json(client, f"backup://{theirs.id}"))["sandbox_id"] == theirs.sandbox_id
        assert await read_text(client, f"backup://{theirs.id}/file/src/app.py") == "print('hello')\n"


async def test_what_another_program_backed_up_is_a_resource_as_well(place: Place, connect: Connect) -> None:
    build(place)
    backup_id = back_up(place, place.tree)
    async with connect() as client:
        folder = await read_json(client, f"backup://{backup_id}/tree/src")
        assert [entry["name"] for entry in folder["entries"]] == ["app.py", "logo.png", "sub"]
        assert await read_text(client, f"backup://{backup_id}/file/src/app.py") == "print('hello')\n"


async def test_ids_are_completed_by_their_beginning_and_by_what_is_known(place: Place, connect: Connect) -> None:
    place.tree.mkdir()
    first = await place.service.create(str(place.tree), name="Before migration")
    second = await place.service.create(str(place.tree))
    async with connect() as client:
        for view in ("", "tree", "file"):
            everything = await complete(client, template(view), "id", "")
            assert everything == Completion(values=[second.id, first.id], total=2, has_more=False)
        assert (await complete(client, template(""), "id", first.id[:-1].upper())).values == [first.id]
        assert (await complete(client, template(""), "id", "migration")).values == [first.id]
        assert (await complete(client, template(""), "id", "nonsense")).values == []
        prompt = PromptReference(name="recover_workspace")
        assert (await complete(client, prompt, "backup_id", "", dir=str(place.tree))).total == 2
        assert (await complete(client, prompt, "backup_id", "", dir="/elsewhere")).total == 0
        for name in ("recover_workspace", "checkpoint_before_risky_change"):
            known = await complete(client, PromptReference(name=name), "dir", str(place.base))
            assert known == Completion(values=[str(place.tree)], total=1, has_more=False)


async def test_paths_are_completed_folder_by_folder(place: Place, connect: Connect) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))

    async with connect() as client:

        async def values(view: str, typed: str, backup_id: str = backup.id) -> list[str]:
            return (await complete(client, template(view), "path", typed, id=backup_id)).values

        assert await values("tree", "") == ["src/"]
        assert await values("tree", "src/") == ["src/sub/"]
        assert await values("file", "src/") == ["src/app.py", "src/logo.png", "src/sub/"]
        assert await values("file", "src/a") == ["src/app.py"]
        assert await values("file", "nothing/a") == []
        assert await values("file", "../") == []
        assert await values("file", "", UNKNOWN) == []
        assert await values("file", "", "nonsense") == []
        assert (await complete(client, template("file"), "path", "")).values == []
        named = await values("file", "")
        assert {*named} == {"src/", *ODD_NAMES} - {os.fsdecode(b"caf\xe9")} | {"caf\\xe9"}
        for name in named:
            if not name.endswith("/"):
                await read(client, UriTemplate.parse(template("file").uri).expand({"id": backup.id, "path": name}))


async def test_no_more_values_than_the_protocol_allows(place: Place, connect: Connect) -> None:
    place.tree.mkdir()
    for number in range(MAX_VALUES + 5):
        (place.tree / f"file {number:03}").touch()
    backup = await place.service.create(str(place.tree))
    async with connect() as client:
        found = await complete(client, template("file"), "path", "file", id=backup.id)
        assert (len(found.values), found.total, found.has_more) == (MAX_VALUES, MAX_VALUES + 5, True)
        found = await complete(client, template("file"), "path", "file 10", id=backup.id)
        assert (found.values, found.has_more) == ([f"file 10{number}" for number in range(5)], False)


async def test_completing_what_is_no_argument_is_an_error(connect: Connect) -> None:
    async with connect() as client:
        for ref, name in (
            (template("file"), "paths"),
            (ResourceTemplateReference(uri="backup://{id}/other"), "id"),
            (PromptReference(name="nope"), "dir"),
        ):
            with pytest.raises(MCPError) as caught:
                await complete(client, ref, name, "")
            assert caught.value.error.code == INVALID_PARAMS


async def test_a_store_that_is_away_is_told_as_such(
    place: Place, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.tree.mkdir()
    backup = await place.service.create(str(place.tree))

    async def away(*_args: object, **_kwargs: object) -> None:
        raise StoreUnavailableError("the bucket cannot be reached; try again")

    for operation in ("list", "get", "tree"):
        monkeypatch.setattr(place.service, operation, away)
    async with connect() as client:
        assert len((await client.list_tools()).tools) >= 7
        for call in (
            client.list_resources(),
            client.read_resource(f"backup://{backup.id}"),
            complete(client, template(""), "id", ""),
            complete(client, template("file"), "path", "", id=backup.id),
        ):
            with pytest.raises(MCPError, match=r"^STORE_UNAVAILABLE: the bucket cannot be reached") as caught:
                await call
            assert caught.value.error.code == INTERNAL_ERROR


async def test_what_nobody_foresaw_is_not_told(place: Place, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(place.service, "get", broken)
    async with connect() as client:
        code, message = await failure(client, f"backup://{UNKNOWN}")
    assert code == INTERNAL_ERROR
    assert "secret" not in message


async def test_several_sandboxes_share_their_backups(place: Place, mode: Mode) -> None:
    build(place)
    settings = Settings(
        store=place.store.as_uri(), state_dir=str(place.state), sandboxes=("docker:agent-*",), allowed_dirs=None
    )
    backup = await place.service.create(str(place.tree))
    async with Services(settings) as services:
        server = build_lazy_server(services, where=Where(sandboxes=settings.sandboxes))
        async with Client(server, mode=mode) as client:
            assert [each.uri for each in await backups_of(client)] == [f"backup://{backup.id}"]
            assert await read_text(client, f"backup://{backup.id}/file/src/app.py") == "print('hello')\n"


async def test_a_real_server_has_them(place: Place, mode: Mode) -> None:
    build(place)
    backup = await place.service.create(str(place.tree))
    server = sandpoint_server(place.tree, store=place.store, state=place.state)
    async with Client(server, mode=mode) as client:
        capabilities = client.server_capabilities
        assert capabilities is not None
        assert capabilities.completions is not None
        assert [each.uri for each in await backups_of(client)] == [f"backup://{backup.id}"]
        assert await read_text(client, f"backup://{backup.id}/file/src/app.py") == "print('hello')\n"
        assert (await complete(client, template("file"), "path", "src/a", id=backup.id)).values == ["src/app.py"]
