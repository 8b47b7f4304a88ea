"""What a prune keeps and why: each rule, and what holds for any rules and any backups."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.mcp import make_backup
from helpers.stores import id_at
from sandpoint.models import Backup, Decision, KeepRules
from sandpoint.retention import decide

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)  # a Saturday
LONG = timedelta(days=1000)


def taken(number: int, ago: timedelta, **changes: Any) -> Backup:
    """A backup of some time ago, which lives on."""
    created = NOW - ago
    return make_backup(**{"id": id_at(number), "created_at": created, "expires_at": created + LONG, **changes})


def each(unit: str, *numbers: float) -> list[Backup]:
    """A backup for each number of hours or days ago; ids follow the order given."""
    return [taken(index, timedelta(**{unit: number})) for index, number in enumerate(numbers)]


def reasons(backups: Sequence[Backup], *, now: datetime = NOW, **rules: Any) -> list[str]:
    """What is decided on each backup, in the order given: the reason, with a minus where it goes."""
    decided = {decision.id: decision for decision in decide(backups, KeepRules(**rules), now)}
    return [("" if decided[one.id].keep else "- ") + decided[one.id].reason for one in backups]


# -- each rule --


def test_without_rules_only_the_expired_go() -> None:
    backups = [
        taken(0, timedelta(hours=3), expires_at=NOW + timedelta(seconds=1)),
        taken(1, timedelta(hours=2), expires_at=NOW),
    ]
    assert reasons(backups) == ["expires 2026-11-21 12:00 UTC", "- expired 2026-11-21 12:00 UTC"]


def test_the_newest_so_many() -> None:
    assert reasons(each("hours", 4, 1, 3, 2), keep_last=2) == [
        "- no rule keeps it",
        "1st of the newest 2",
        "- no rule keeps it",
        "2nd of the newest 2",
    ]


def test_the_newest_of_each_hour() -> None:
    assert reasons(each("hours", 0.2, 0.5, 1.1, 1.9), keep_hourly=2) == [
        "newest of hour 2026-11-21 11:00 UTC",
        "- no rule keeps it",
        "newest of hour 2026-11-21 10:00 UTC",
        "- no rule keeps it",
    ]


def test_days_without_a_backup_take_no_place() -> None:
    assert reasons(each("days", 0, 0.1, 5, 5.1, 40), keep_daily=2) == [
        "newest of day 2026-11-21",
        "- no rule keeps it",
        "newest of day 2026-11-16",
        "- no rule keeps it",
        "- no rule keeps it",
    ]


def test_weeks_begin_on_monday_and_belong_to_the_year_of_their_thursday() -> None:
    sunday, monday = datetime(2027, 1, 3, 23, 59, tzinfo=UTC), datetime(2027, 1, 4, 0, 0, tzinfo=UTC)
    backups = [
        make_backup(id=id_at(number), created_at=created, expires_at=created + LONG)
        for number, created in enumerate([monday, sunday, datetime(2026, 12, 28, tzinfo=UTC)])
    ]
    assert reasons(backups, now=monday, keep_weekly=5) == [
        "newest of week 2027-W01",
        "newest of week 2026-W53",
        "- no rule keeps it",
    ]


def test_periods_are_those_of_utc() -> None:
    created = datetime(2026, 11, 21, 1, tzinfo=timezone(timedelta(hours=5)))
    backup = make_backup(created_at=created, expires_at=created + LONG)
    assert reasons([backup], now=created, keep_daily=1) == ["newest of day 2026-11-20"]


@pytest.mark.parametrize(
    ("name", "patterns", "reason"),
    [
        ("release-1", ("release-*",), "name 'release-*'"),
        ("release-1", ("x", "r*", "release-?"), "name 'r*'"),
        ("a/release-1", ("release-*",), "- no rule keeps it"),
        ("a/b", ("a*",), "name 'a*'"),
        ("Release-1", ("release-*",), "- no rule keeps it"),
        ("v2", ("v[0-9]",), "name 'v[0-9]'"),
        (None, ("*",), "- no rule keeps it"),
    ],
)
def test_names(name: str | None, patterns: tuple[str, ...], reason: str) -> None:
    assert reasons([taken(0, timedelta(), name=name)], keep_names=patterns) == [reason]


def test_what_several_rules_keep_is_kept_for_all_their_reasons() -> None:
    backup = taken(0, timedelta(hours=1), name="n")
    assert reasons([backup], keep_last=1, keep_hourly=1, keep_daily=1, keep_weekly=1, keep_names=("n",)) == [
        "1st of the newest 1, newest of hour 2026-11-21 11:00 UTC, newest of day 2026-11-21, "
        "newest of week 2026-W47, name 'n'"
    ]


def test_a_name_is_kept_though_other_rules_do_not_and_not_when_it_is_over() -> None:
    old = taken(1, timedelta(days=9), name="release")
    over = taken(2, timedelta(days=8), name="release", expires_at=NOW - timedelta(hours=1))
    assert reasons([taken(0, timedelta()), old, over], keep_last=1, keep_names=("release",)) == [
        "1st of the newest 1",
        "name 'release'",
        "- expired 2026-11-21 11:00 UTC",
    ]


def test_the_expired_take_no_place() -> None:
    over = taken(0, timedelta(minutes=1), expires_at=NOW)
    assert reasons([over, taken(1, timedelta(minutes=2))], keep_last=1, keep_daily=1)[1].startswith("1st of")


def test_each_directory_of_each_sandbox_is_for_itself() -> None:
    backups = [
        taken(0, timedelta(hours=1), dir="/a"),
        taken(1, timedelta(hours=2), dir="/a/b"),
        taken(2, timedelta(hours=3), dir="/a", sandbox_id="local:1"),
        taken(3, timedelta(hours=4), dir="/a"),
    ]
    assert reasons(backups, keep_last=1) == ["1st of the newest 1"] * 3 + ["- no rule keeps it"]


def test_ordinals() -> None:
    said = reasons(each("hours", *range(112)), keep_last=112)
    wanted = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 13: "13th", 21: "21st", 111: "111th", 112: "112th"}
    assert {number: said[number - 1].split()[0] for number in wanted} == wanted


def test_decisions_are_newest_first_and_name_the_backup() -> None:
    older, newer = taken(0, timedelta(hours=2), name="n"), taken(1, timedelta(hours=1))
    first, second = decide([older, newer], KeepRules(), NOW)
    assert first.id == newer.id
    assert second == Decision(
        id=older.id,
        dir=older.dir,
        name="n",
        created_at=older.created_at,
        keep=True,
        reason=f"expires {older.expires_at:%Y-%m-%d %H:%M} UTC",
    )


# -- any rules, any backups --

COUNTS = st.none() | st.integers(1, 4)
RULES = st.builds(
    KeepRules,
    keep_last=COUNTS,
    keep_hourly=COUNTS,
    keep_daily=COUNTS,
    keep_weekly=COUNTS,
    keep_names=st.lists(st.sampled_from(["a", "b*", "?"]), max_size=2).map(tuple),
)


@st.composite
def some_backups(draw: st.DrawFn) -> list[Backup]:
    parts = st.tuples(
        st.integers(-120, 60 * 24 * 30),  # minutes ago; a clock may have been set back
        st.integers(-5, 5),
        st.sampled_from([None, "a", "b1", "cc"]),
        st.sampled_from(["/w", "/v"]),
        st.sampled_from(["local:1", "local:2"]),
    )
    return [
        taken(
            number,
            timedelta(minutes=minutes),
            expires_at=NOW + timedelta(days=lives),
            name=name,
            dir=dir,
            sandbox_id=sandbox,
        )
        for number, (minutes, lives, name, dir, sandbox) in enumerate(draw(st.lists(parts, max_size=25)))
    ]


def kept(backups: Sequence[Backup], rules: KeepRules) -> set[str]:
    return {decision.id for decision in decide(backups, rules, NOW) if decision.keep}


def group_of(backup: Backup) -> tuple[str, str]:
    return backup.sandbox_id, backup.dir


@given(some_backups(), RULES)
def test_each_backup_is_decided_on_once_with_a_reason_newest_first(backups: list[Backup], rules: KeepRules) -> None:
    decisions = decide(backups, rules, NOW)
    assert sorted(decision.id for decision in decisions) == sorted(backup.id for backup in backups)
    assert all(decision.reason for decision in decisions)
    assert all(one.created_at >= other.created_at for one, other in pairwise(decisions))


@given(some_backups(), RULES)
def test_the_expired_go_and_the_newest_of_each_directory_stays(backups: list[Backup], rules: KeepRules) -> None:
    living = [backup for backup in backups if backup.expires_at > NOW]
    stay = kept(backups, rules)
    assert stay <= {backup.id for backup in living}
    if not rules:
        assert len(stay) == len(living)
    elif rules != KeepRules(keep_names=rules.keep_names):
        for group in {group_of(backup) for backup in living}:
            newest = max((b for b in living if group_of(b) == group), key=lambda b: (b.created_at, b.id))
            assert newest.id in stay


@given(some_backups(), RULES, RULES)
def test_more_rules_never_remove_more(backups: list[Backup], some: KeepRules, more: KeepRules) -> None:
    both = KeepRules(
        keep_names=some.keep_names + more.keep_names,
        **{
            name: max(filter(None, (getattr(some, name), getattr(more, name))), default=None)
            for name in ("keep_last", "keep_hourly", "keep_daily", "keep_weekly")
        },
    )
    if some and more:
        assert kept(backups, some) | kept(backups, more) <= kept(backups, both)
    assert kept(backups, both) <= kept(backups, KeepRules())


@given(some_backups(), RULES)
def test_a_second_prune_at_once_finds_nothing_more(backups: list[Backup], rules: KeepRules) -> None:
    left = [backup for backup in backups if backup.id in kept(backups, rules)]
    assert kept(left, rules) == {backup.id for backup in left}


@given(some_backups(), RULES)
def test_a_directory_is_decided_on_as_if_it_were_alone(backups: list[Backup], rules: KeepRules) -> None:
    alone = {
        decision
        for group in {group_of(backup) for backup in backups}
        for decision in decide([backup for backup in backups if group_of(backup) == group], rules, NOW)
    }
    assert alone == set(decide(backups, rules, NOW))


@given(some_backups(), st.integers(1, 4))
def test_each_count_is_kept_where_there_are_so_many(backups: list[Backup], number: int) -> None:
    living = [backup for backup in backups if backup.expires_at > NOW]
    stay = kept(backups, KeepRules(keep_last=number))
    for group in {group_of(backup) for backup in living}:
        of_group = {backup.id for backup in living if group_of(backup) == group}
        assert len(of_group & stay) == min(number, len(of_group))
