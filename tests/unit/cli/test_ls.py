import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.cli import ID, FakeService
from sandpoint.cli import main
from sandpoint.errors import NoSuchPathError
from sandpoint.models import Listing, TreeEntry

Answer = Callable[..., FakeService]


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def entry(name: str, **changes: Any) -> TreeEntry:
    values: dict[str, Any] = {"kind": "file", "mode": "0644", "size_bytes": 7, "mtime_ns": 1_700_000_000_123_456_789}
    return TreeEntry(name=name, **(values | changes))


ROOT = entry(".", kind="directory", mode="0755", size_bytes=0)
FOLDER = Listing(
    path="",
    itself=ROOT,
    entries=(
        entry("app.py", size_bytes=12_345),
        entry("link", kind="symlink", mode="0777", size_bytes=0, target="\\x1b[31m/etc"),
        entry("evil\u202ename"),
        entry("src", kind="directory", mode="2755", size_bytes=0),
    ),
    entry_count=4,
)


def test_a_folder_is_a_line_for_each_entry(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(tree=FOLDER)
    assert main(["ls", ID]) == 0
    assert service.calls == [("tree", {"backup_id": ID, "path": "", "cursor": None})]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["-0644", "12,345", "2023-11-14", "22:13:20", "app.py"],
        ["l0777", "2023-11-14", "22:13:20", "link", "->", "\\x1b[31m/etc"],
        ["-0644", "7", "2023-11-14", "22:13:20", "evil\\u202ename"],
        ["d2755", "2023-11-14", "22:13:20", "src/"],
    ]


def test_columns_are_aligned(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(tree=FOLDER)
    assert main(["ls", ID]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index("2023-") for line in lines}) == 1


def test_what_is_no_folder_is_one_line(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(tree=Listing(path="src/app.py", itself=entry("app.py")))
    assert main(["ls", ID, "src/app.py"]) == 0
    assert capsys.readouterr().out.split() == ["-0644", "7", "2023-11-14", "22:13:20", "app.py"]


def test_an_empty_folder_is_nothing(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(tree=Listing(path="", itself=ROOT))
    assert main(["ls", ID]) == 0
    assert capsys.readouterr().out == ""


def test_what_was_left_out_is_told_with_the_way_on(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    page = FOLDER.model_copy(update={"entry_count": 1000, "next_cursor": "caf%E9"})
    service = answer(tree=page)
    assert main(["ls", ID, "two words", "--limit", "4", "--store", "file:///s"]) == 0
    assert service.calls[0][1] == {"backup_id": ID, "path": "two words", "cursor": None, "limit": 4}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "4 of 1,000 entries; go on with the same command and --cursor caf%E9"


def test_json_has_all_fields(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(tree=FOLDER)
    assert main(["ls", ID, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["entry_count"] == 4
    assert told["next_cursor"] is None
    assert told["entries"][1] == {
        "name": "link",
        "kind": "symlink",
        "mode": "0777",
        "size_bytes": 0,
        "mtime_ns": 1_700_000_000_123_456_789,
        "target": "\\x1b[31m/etc",
        "quoted_name": None,
    }


@pytest.mark.parametrize("mtime_ns", [-(2**63), 2**63 - 1, 0])
def test_any_time_of_a_filesystem_can_be_said(
    answer: Answer, capsys: pytest.CaptureFixture[str], mtime_ns: int
) -> None:
    answer(tree=Listing(path="old", itself=entry("old", mtime_ns=mtime_ns)))
    assert main(["ls", ID, "old"]) == 0
    assert capsys.readouterr().out.split()[2] in {"1677-09-21", "2262-04-11", "1970-01-01"}


def test_an_error_has_its_status(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(tree=NoSuchPathError("path: x is not in the backup"))
    assert main(["ls", ID, "x"]) == NoSuchPathError.exit_status
    assert capsys.readouterr().err == "error: path: x is not in the backup [INVALID_BACKUP_CONFIG]\n"
