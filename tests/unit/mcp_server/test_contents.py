import json

import pytest

from helpers.mcp import ID, make_backup
from sandpoint.mcp_server.contents import as_content, as_json, metadata_of, tree_of
from sandpoint.models import Listing, TreeEntry


@pytest.mark.parametrize(
    ("path", "content", "mime_type"),
    [
        (b"README.md", b"# Hello", "text/markdown"),
        (b"src/app.py", b"print()", "text/x-python"),
        (b"a.json", b"{}", "application/json"),
        (b"compose.yaml", b"a: 1", "application/yaml"),
        (b"a.svg", b"<svg/>", "image/svg+xml"),
        (b"page.html", b"<script>", "text/html"),
        (b"a.ts", b"let a = 1", "text/plain"),
        (b"Makefile", b"all:", "text/plain"),
        (b"caf\xe9", b"", "text/plain"),
        (b"data:text/html,x.py", b"x", "text/x-python"),
        (b"fake.png", b"plain text", "text/plain"),
        (b"old.gz", b"plain text", "text/plain"),
    ],
)
def test_text_is_text_of_its_kind(path: bytes, content: bytes, mime_type: str) -> None:
    told = as_content(path, content)
    assert (told.content, told.mime_type) == (content.decode(), mime_type)


@pytest.mark.parametrize(
    ("path", "content", "mime_type"),
    [
        (b"logo.png", b"\x89PNG\r\n\x1a\n\0", "image/png"),
        (b"a.tar.gz", b"\x1f\x8b\x08", "application/gzip"),
        (b"a.tar.xz", b"\xfd7zXZ\0", "application/octet-stream"),
        (b"latin.txt", b"caf\xe9", "application/octet-stream"),
        (b"nul.py", b"a\0b", "application/octet-stream"),
        (b"core", b"\x7fELF\0", "application/octet-stream"),
        (b"a.xml", b"\xff\xfe<\0", "application/octet-stream"),
    ],
)
def test_what_is_no_text_is_bytes(path: bytes, content: bytes, mime_type: str) -> None:
    told = as_content(path, content)
    assert (told.content, told.mime_type) == (content, mime_type)


def entry(name: str, **changes: object) -> TreeEntry:
    values = {"kind": "file", "mode": "0644", "size_bytes": 7, "mtime_ns": 1_700_000_000_123_456_789}
    return TreeEntry.model_validate({"name": name} | values | changes)


def test_an_entry_says_no_more_than_it_has_to() -> None:
    root = entry(".", kind="directory")
    entries = (
        entry("app.py"),
        entry("src", kind="directory", size_bytes=0),
        entry("link", kind="symlink", size_bytes=0, target="app.py"),
        entry("what?"),
        entry("d\\xff", kind="directory", quoted_name="d%FF"),
        entry("p\\xff", kind="pipe", quoted_name="p%FF"),
    )
    listing = Listing(
        path="o\\xff", quoted_path="o%FF", itself=root, entries=entries, entry_count=9, next_cursor="p%FF"
    )
    time = "2023-11-14T22:13:20Z"
    assert tree_of(ID, listing, max_characters=10_000) == {
        "id": ID,
        "path": "o\\xff",
        "entry_count": 9,
        "entries": [
            {"name": "app.py", "kind": "file", "mode": "0644", "size_bytes": 7, "mtime": time},
            {"name": "src", "kind": "directory", "mode": "0644", "mtime": time},
            {"name": "link", "kind": "symlink", "mode": "0644", "mtime": time, "target": "app.py"},
            {
                "name": "what?",
                "kind": "file",
                "mode": "0644",
                "size_bytes": 7,
                "mtime": time,
                "uri": f"backup://{ID}/file/o%FF/what%3F",
            },
            {"name": "d\\xff", "kind": "directory", "mode": "0644", "mtime": time, "uri": f"backup://{ID}/tree/o%FF/d%FF"},
            {"name": "p\\xff", "kind": "pipe", "mode": "0644", "mtime": time},
        ],
        "next": f"backup://{ID}/tree/o%FF?after=p%FF",
    }  # fmt: skip


def test_a_page_of_long_entries_is_cut_and_goes_on_after_the_last_one_told() -> None:
    entries = tuple(entry(f"{number}?", kind="symlink", target="t" * 1000) for number in range(10))
    listing = Listing(path="", itself=entry(".", kind="directory"), entries=entries, entry_count=30, next_cursor="9%3F")
    told = tree_of(ID, listing, max_characters=3_500)
    assert [each["name"] for each in told["entries"]] == ["0?", "1?", "2?"]
    assert (told["entry_count"], told["next"]) == (30, f"backup://{ID}/tree/?after=2%3F")
    one = tree_of(ID, listing, max_characters=10)
    assert ([each["name"] for each in one["entries"]], one["next"]) == (["0?"], f"backup://{ID}/tree/?after=0%3F")


def test_metadata_says_what_was_left_out_and_where_the_tree_is() -> None:
    told = metadata_of(make_backup(excludes=("*.log",), use_gitignore=True, sandbox_id="docker:web", name="n"))
    assert told["excludes"] == ["*.log"]
    assert told["use_gitignore"] is True
    assert (told["sandbox_id"], told["name"], told["tree"]) == ("docker:web", "n", f"backup://{ID}/tree/")
    assert "excludes" not in metadata_of(make_backup())


def test_json_is_compact_and_readable() -> None:
    told = as_json({"name": "naïve", "list": [1, 2]})
    assert (told.content, told.mime_type) == ('{"name":"naïve","list":[1,2]}', "application/json")
    assert json.loads(str(told.content))["list"] == [1, 2]
