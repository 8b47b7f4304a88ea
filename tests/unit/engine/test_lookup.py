"""Folders and entries out of manifest files: what the whole manifest says, at a fraction of its memory."""

import os
import stat
import subprocess
import sys
from itertools import pairwise

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.engine import HEADER, Stopped, entry, folder, manifest, never, stop
from sandpoint.engine.lookup import Lookup, list_folder
from sandpoint.engine.manifest import MAGIC, Entry, Header, Manifest, display, make_manifest, read_one
from sandpoint.errors import BackupIntegrityError, NoSuchPathError
from sandpoint.models import FolderOptions, Listing

NAMES = st.sampled_from([b"a", b"a-b", b"a.c", b"a0", b"b", b"\xff", b"n\nl", b"\\xff", "\N{SNOWMAN}".encode(), b"z"])


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Entry]:
    tree = {b"": folder(b"")}
    directories = [b""]
    for name in draw(st.lists(NAMES, max_size=12)):
        holder = draw(st.sampled_from(directories))
        path = holder + b"/" + name if holder else name
        if path in tree:
            continue
        if draw(st.booleans()):
            tree[path] = folder(path, mtime_ns=draw(st.integers(0, 3)))
            directories.append(path)
        else:
            tree[path] = entry(path, size=draw(st.integers(0, 3)))
    return tree


@st.composite
def chains(draw: st.DrawFn) -> list[bytes]:
    """The manifest files of a full backup and of deltas on it."""
    states = [make_manifest(HEADER, tree.values()) for tree in draw(st.lists(trees(), min_size=1, max_size=4))]
    contents = [states[0].content]
    for before, after in pairwise(states):
        changed = [path for path in after.entries if after.entries[path] != before.entries.get(path)]
        brought = draw(st.sets(st.sampled_from(changed))) if changed else set()
        contents.append(after.since(before, brought).content)
    return contents


def listed(contents: list[bytes], path: bytes, **options: object) -> Listing:
    values = {"path": os.fsdecode(path), "limit": 1000} | options
    return list_folder(Lookup(contents), FolderOptions.model_validate(values), never)


@given(chains())
@settings(max_examples=150)
def test_every_path_is_found_as_the_whole_manifest_has_it(contents: list[bytes]) -> None:
    whole, lookup = Manifest.from_chain(contents), Lookup(contents)
    for path in {path for content in contents for path in read_one(content).entries}:
        found = lookup.find(path)
        wanted = whole.entries.get(path)
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert (found.path, found.mode, found.size, found.mtime_ns) == (
                wanted.path,
                wanted.mode,
                wanted.size,
                wanted.mtime_ns,
            )
            assert lookup.layer_of(path) == whole.layers.get(path, 0)


@given(chains())
@settings(max_examples=150)
def test_every_folder_holds_what_the_whole_manifest_says(contents: list[bytes]) -> None:
    whole = Manifest.from_chain(contents)
    for path in (path for path, each in whole.entries.items() if each.is_dir):
        listing = listed(contents, path)
        children = whole.children.get(path, [])
        assert listing.exact_path == path
        assert [entry.exact_name for entry in listing.entries] == [child.rpartition(b"/")[2] for child in children]
        assert listing.entry_count == len(children)
        assert listing.next_cursor is None
        folders = listed(contents, path, kinds=("directory",))
        assert folders.entry_count == sum(whole.entries[child].is_dir for child in children)


@given(chains(), st.integers(1, 3))
@settings(max_examples=50)
def test_pages_make_up_the_whole_folder(contents: list[bytes], limit: int) -> None:
    names: list[bytes] = []
    cursor = None
    while True:
        page = listed(contents, b"", limit=limit, cursor=cursor)
        names += [entry.exact_name for entry in page.entries]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.entries) == limit
    assert names == [entry.exact_name for entry in listed(contents, b"").entries]


SMALL = manifest(
    entry(b"caf\xe9", size=3),
    entry(b"caf\\xe9", size=4),
    folder(b"d\xff"),
    entry(b"d\xff/in\nside", size=5),
    entry(b"link", stat.S_IFLNK | 0o777, target=b"to\xff"),
    entry(b"pipe", stat.S_IFIFO | 0o600),
).content


def test_names_that_are_not_plain_are_shown_and_quoted() -> None:
    listing = listed([SMALL], b"")
    told = {entry.name: (entry.kind, entry.mode, entry.size_bytes, entry.quoted_name) for entry in listing.entries}
    assert len(listing.entries) == 5
    assert [entry.name for entry in listing.entries].count("caf\\xe9") == 2
    assert told["d\\xff"] == ("directory", "0755", 0, "d%FF")
    assert told["pipe"] == ("pipe", "0600", 0, None)
    (link,) = (entry for entry in listing.entries if entry.name == "link")
    assert (link.kind, link.target) == ("symlink", "to\\xff")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (os.fsdecode(b"caf\xe9"), 3),
        ("caf\\xe9", 4),  # what has just this name comes before what is shown so
        ("d\\xff/in\\nside", 5),
        (os.fsdecode(b"d\xff/in\nside"), 5),
        ("d\\xff/in\nside", 5),
    ],
)
def test_a_path_is_named_as_it_is_or_as_it_is_shown(name: str, size: int) -> None:
    assert Lookup([SMALL]).named(name).size == size


@pytest.mark.parametrize("name", ["nothing", "caf\\xe8", "link/x", "d\\xff/other", "nothing\\xff/x"])
def test_what_is_not_there_is_said_so(name: str) -> None:
    with pytest.raises(NoSuchPathError, match="is not in the backup"):
        Lookup([SMALL]).named(name)


def test_what_is_no_folder_is_told_alone() -> None:
    listing = listed([SMALL], b"caf\\xe9")
    assert (listing.path, listing.itself.kind, listing.itself.size_bytes) == ("caf\\xe9", "file", 4)
    assert (listing.entries, listing.entry_count) == ((), 0)


def test_only_names_that_start_so() -> None:
    assert [entry.exact_name for entry in listed([SMALL], b"", starts_with="caf").entries] == [b"caf\\xe9", b"caf\xe9"]
    assert [entry.exact_name for entry in listed([SMALL], b"", starts_with="d\\x").entries] == [b"d\xff"]
    assert listed([SMALL], b"", starts_with="q").entry_count == 0


def pack(*entries: object, header: Header = HEADER) -> bytes:
    head, body = msgspec.msgpack.encode(header), msgspec.msgpack.encode(list(entries))
    return zstandard.compress(MAGIC + len(head).to_bytes(4, "big") + head + body)


ROOT = folder(b"")
DELTA = msgspec.structs.replace(HEADER, is_delta=True)


@pytest.mark.parametrize(
    "contents",
    [
        [b""],
        [b"no manifest"],
        [SMALL[:-5]],
        [zstandard.compress(b"SNDPMAN2" + bytes(20))],
        [pack(ROOT, header=DELTA)],
        [pack(ROOT), pack(ROOT)],
        [pack(1, 2)],
        [pack(["text", 1])],
        [pack(ROOT, [b"short"])],
        [pack(ROOT, entry(b".."))],
        [pack(ROOT, entry(b"a\0b"))],
    ],
)
def test_a_damaged_manifest_is_said_to_be(contents: list[bytes]) -> None:
    with pytest.raises(BackupIntegrityError):
        listed(contents, b"")


@given(st.lists(st.binary(max_size=4).map(entry), max_size=8), st.lists(st.binary(max_size=4), max_size=4))
def test_entries_in_any_order_end_in_a_list_or_an_error(entries: list[Entry], removed: list[bytes]) -> None:
    delta = msgspec.structs.replace(DELTA, removed=tuple(removed))
    try:
        listing = listed([pack(ROOT, *entries), pack(*entries, header=delta)], b"")
    except (BackupIntegrityError, NoSuchPathError):
        return
    for each in listing.entries:
        assert each.exact_name not in {b"", b".", b".."}
        assert each.name == display(each.exact_name)


def test_a_check_stops_it() -> None:
    with pytest.raises(Stopped):
        list_folder(Lookup([SMALL]), FolderOptions(), stop)


MEASURED = """
import sys
from helpers.engine import entry, folder, HEADER
from sandpoint.engine.lookup import Lookup, list_folder
from sandpoint.models import FolderOptions

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

content = open(sys.argv[1], "rb").read()
before = peak()
listing = list_folder(Lookup([content]), FolderOptions(path="folder00007"), lambda: None)
assert listing.entry_count == 100
print(peak() - before)
"""


def test_a_look_into_a_large_tree_takes_little_memory(tmp_path: os.PathLike[str]) -> None:
    entries = [folder(b"")]
    for number in range(2000):
        entries.append(folder(b"folder%05d" % number))
        entries += [entry(b"folder%05d/some_file_name_%03d" % (number, each), size=each) for each in range(100)]
    path = os.path.join(tmp_path, "manifest.zst")
    with open(path, "wb") as file:
        file.write(make_manifest(HEADER, entries).content)
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, path],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(found.stdout) * 1024 / len(entries) < 250, "bytes for each entry"
