"""What is told of the changes that a test made."""

import msgspec

from pytest_sandpoint.checkpoints import Active
from pytest_sandpoint.findings import Finding, Leaks, from_json, to_json
from pytest_sandpoint.options import LOCAL, Strategy
from sandpoint.engine.manifest import Entry
from sandpoint.engine.plan import Plan
from sandpoint.models import Changes

FILE = 0o100644


def entry(path: str, *, mtime_ns: int = 0, size: int = 1, mode: int = FILE, ino: int = 1) -> Entry:
    return Entry(path=path.encode(), mode=mode, uid=0, gid=0, size=size, mtime_ns=mtime_ns, ino=ino, ctime_ns=0)


class Level:
    """A checkpoint whose changes are made up."""

    strategy: Strategy = "copy"
    directory = "/data"
    sandbox = LOCAL

    def __init__(self) -> None:
        self.now = Plan()

    def plan(self) -> Plan:
        return self.now

    def changes(self) -> Changes:
        return self.now.changes()

    def roll_back(self) -> None:
        self.now = Plan()

    def end(self) -> None:
        self.now = Plan()


def active() -> tuple[Active, Level]:
    level = Level()
    return Active(level, "module", frozenset()), level


def test_a_finding_is_told_in_a_line() -> None:
    finding = Finding.of("/data", {"added": ["b", "a"], "modified": [], "removed": ["c"]})
    assert str(finding) == "added a, b; removed c"
    assert finding.counts == {"added": 2, "removed": 1}
    assert str(Finding.of("/data", {"added": []})) == ""


def test_long_lists_keep_their_first_ten_and_their_length() -> None:
    finding = Finding.of("/data", {"added": [f"{number:02}" for number in range(13)], "removed": [*"0123456789"]})
    assert str(finding) == (
        "added 00, 01, 02, 03, 04, 05, 06, 07, 08, 09 and 3 more; removed 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    )
    assert finding.counts == {"added": 13, "removed": 10}


def test_findings_survive_the_way_from_a_worker() -> None:
    findings = [
        Finding.of("/data", {"added": [f"{number}" for number in range(40)]}),
        Finding.of("/other", {"modified": ["\\xff", "new\\nline"], "put back": ["x"]}),
    ]
    assert from_json(msgspec.json.decode(msgspec.json.encode(to_json(findings)))) == findings
    assert from_json(()) == []


def test_each_look_tells_only_what_is_new() -> None:
    checkpoint, level = active()
    leaks = Leaks()
    assert leaks.look(checkpoint) is None

    level.now = Plan(added=[entry("new")], replaced=[entry("kept")])
    assert str(leaks.look(checkpoint)) == "added new; modified kept"
    assert leaks.look(checkpoint) is None

    level.now = Plan(added=[entry("new", mtime_ns=5)], replaced=[entry("kept")], removed=[entry("gone")])
    assert str(leaks.look(checkpoint)) == "added new; removed gone"

    level.now = Plan(touched=[entry("kept", mode=0o100600)])
    assert str(leaks.look(checkpoint)) == "modified kept; put back gone, new"


def test_files_that_only_have_other_inodes_are_no_news() -> None:
    checkpoint, level = active()
    leaks = Leaks()
    level.now = Plan(added=[entry("new", ino=1)])
    assert leaks.look(checkpoint) is not None
    level.now = Plan(added=[entry("new", ino=2)])
    assert leaks.look(checkpoint) is None


def test_the_directory_itself_is_called_by_a_dot() -> None:
    checkpoint, level = active()
    level.now = Plan(touched=[entry("", mode=0o040700)])
    assert str(Leaks().look(checkpoint)) == "modified ."


def test_checkpoints_are_looked_at_each_for_itself_and_forgotten() -> None:
    (first, level), (second, other) = active(), active()
    leaks = Leaks()
    level.now = other.now = Plan(added=[entry("new")])
    assert leaks.look(first) is not None
    assert leaks.look(second) is not None
    leaks.forget(first)
    leaks.forget(first)
    assert leaks.look(first) is not None
    assert leaks.look(second) is None
