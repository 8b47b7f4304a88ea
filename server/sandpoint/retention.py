"""What a prune keeps, and why. Pure: no store, no clock of its own.

An expired backup goes, whatever its name, and takes no place among those that a rule counts. Without rules all
others stay. With rules, what none of them keeps goes:

- Rules look at the backups of one directory in one sandbox at a time.
- Each rule looks at all of them, whatever other rules keep: one more rule never removes more.
- Hours, days and weeks are those of UTC. Only those with a backup count, and the newest backup of each is kept: a
  week without work takes nothing away.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from sandpoint.models import Backup, BackupMetadata, Decision, KeepRules

AnyBackup = Backup | BackupMetadata
_Reasons = Iterator[tuple[AnyBackup, str]]

_PERIODS = (
    ("hourly", "hour %Y-%m-%d %H:00 UTC"),
    ("daily", "day %Y-%m-%d"),
    ("weekly", "week %G-W%V"),
)
"""The rule's word, and how a time tells its period."""


def decide(backups: Iterable[AnyBackup], rules: KeepRules, now: datetime) -> tuple[Decision, ...]:
    """Decide on each backup; newest first."""
    newest_first = sorted(backups, key=lambda backup: (backup.created_at, backup.id), reverse=True)
    living = [backup for backup in newest_first if now < backup.expires_at]
    reasons: dict[str, list[str]] = defaultdict(list)
    for group in _by_directory(living):
        for backup, reason in _kept(group, rules) if rules else _all_living(group):
            reasons[backup.id].append(reason)
    return tuple(_decision(backup, reasons.get(backup.id, []), now) for backup in newest_first)


def _decision(backup: AnyBackup, reasons: list[str], now: datetime) -> Decision:
    against = "no rule keeps it" if now < backup.expires_at else f"expired {_moment(backup.expires_at)}"
    return Decision(
        id=backup.id,
        dir=backup.dir,
        name=backup.name,
        created_at=backup.created_at,
        keep=bool(reasons),
        reason=", ".join(reasons) or against,
    )


def _by_directory(backups: Iterable[AnyBackup]) -> Iterable[list[AnyBackup]]:
    groups: dict[tuple[str, str], list[AnyBackup]] = defaultdict(list)
    for backup in backups:
        groups[backup.sandbox_id, backup.dir].append(backup)
    return groups.values()


def _all_living(group: Sequence[AnyBackup]) -> _Reasons:
    for backup in group:
        yield backup, f"expires {_moment(backup.expires_at)}"


def _kept(group: Sequence[AnyBackup], rules: KeepRules) -> _Reasons:
    """Yield a directory's backups that rules keep, once for each rule; the group has the newest first."""
    for index, backup in enumerate(group[: rules.keep_last or 0], start=1):
        yield backup, f"{_ordinal(index)} of the newest {rules.keep_last}"
    for word, form in _PERIODS:
        yield from _newest_of_periods(group, form, getattr(rules, f"keep_{word}") or 0)
    for backup in group:
        for pattern in rules.keep_names:
            if backup.name is not None and fnmatchcase(backup.name, pattern):
                yield backup, f"name {pattern!r}"
                break


def _newest_of_periods(group: Sequence[AnyBackup], form: str, limit: int) -> _Reasons:
    seen: set[str] = set()
    for backup in group:
        period = backup.created_at.astimezone(UTC).strftime(form)
        if period not in seen:
            if len(seen) == limit:
                return
            seen.add(period)
            yield backup, f"newest of {period}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
