import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.uri_template import UriTemplate

from helpers.mcp import ID
from sandpoint.mcp_server.uris import TEMPLATES, BackupUri, is_ours, metadata_uri, parse_uri, path_uri

NAMES = st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & set(b"/\0") and name not in {b".", b".."})
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)


@given(PATHS)
def test_any_path_comes_back_from_its_uri(path: bytes) -> None:
    assert parse_uri(path_uri(ID, "file", path)) == BackupUri(ID, "file", os.fsdecode(path))
    assert parse_uri(path_uri(ID, "tree", path, after="caf%E9")) == BackupUri(ID, "tree", os.fsdecode(path), "caf%E9")


@given(st.text(min_size=1, max_size=6).filter(lambda text: "\0" not in text and (text.isascii() or text.isprintable())))
def test_what_a_client_makes_of_a_template_is_read_as_it_was_meant(name: str) -> None:
    if "/" in name or name in {".", ".."}:
        return
    uri = UriTemplate.parse(TEMPLATES["file"]).expand({"id": ID, "path": f"src/{name}"})
    assert parse_uri(uri) == BackupUri(ID, "file", f"src/{name}")


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        (f"backup://{ID}", BackupUri(ID)),
        (f"backup://{ID}/", BackupUri(ID)),
        (f"BACKUP://{ID.upper()}", BackupUri(ID)),
        (f"backup://{ID}/tree", BackupUri(ID, "tree")),
        (f"backup://{ID}/tree/", BackupUri(ID, "tree")),
        (f"backup://{ID}/tree/?after=x", BackupUri(ID, "tree", "", "x")),
        (f"backup://{ID}/tree/src/", BackupUri(ID, "tree", "src")),
        (f"backup://{ID}/file/src/app.py", BackupUri(ID, "file", "src/app.py")),
        (f"backup://{ID}/file/src%2Fapp.py", BackupUri(ID, "file", "src/app.py")),
        (f"backup://{ID}/file/two words", BackupUri(ID, "file", "two words")),
        (f"backup://{ID}/file/what%3F", BackupUri(ID, "file", "what?")),
        (f"backup://{ID}/file/100%", BackupUri(ID, "file", "100%")),
        (f"backup://{ID}/file/%E2%98%83", BackupUri(ID, "file", "\N{SNOWMAN}")),
        (f"backup://{ID}/file/%FF", BackupUri(ID, "file", os.fsdecode(b"\xff"))),
        (f"backup://{ID}/file/a+b", BackupUri(ID, "file", "a+b")),
    ],
)
def test_each_form_is_known(uri: str, meant: BackupUri) -> None:
    assert is_ours(uri)
    assert parse_uri(uri) == meant


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "backup",
        "backup:",
        "backup://",
        "backup://latest",
        "backup:///etc/passwd",
        f"backup://{ID}x",
        f"file://{ID}",
        f"backup://{ID}?",
        f"backup://{ID}?x=1",
        f"backup://{ID}//x",
        f"backup://{ID}/tree?",
        f"backup://{ID}/meta",
        f"backup://{ID}/file",
        f"backup://{ID}/file/",
        f"backup://{ID}/file/what?",
        f"backup://{ID}/file/what?after=x",
        f"backup://{ID}/file/a#b",
        f"backup://{ID}/tree/?before=x",
        f"backup://{ID}/tree/?after=",
        f"backup://{ID}/tree//etc",
        f"backup://{ID}/tree/%2Fetc",
        f"backup://{ID}/tree/..",
        f"backup://{ID}/tree/a/../../b",
        f"backup://{ID}/file/%2E%2E%2Fsecret",
        f"backup://{ID}/file/a/./b",
        f"backup://{ID}/file/a%00b",
        f"backup://{ID}/file/\ud800",
        f"backup://{ID}/file/" + "x" * 70_000,
    ],
)
def test_what_can_name_nothing_is_none(uri: str) -> None:
    assert parse_uri(uri) is None


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    parsed = parse_uri(f"backup://{ID}/{text}")
    assert parsed is None or parsed.id == ID


def test_the_shortest_form() -> None:
    assert metadata_uri(ID) == f"backup://{ID}"
