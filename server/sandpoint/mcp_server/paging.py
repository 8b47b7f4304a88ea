"""Pages of a difference: so many paths of each kind, and a cursor that says after which the next page goes on."""

import base64
import hashlib
import json
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.models import Changes

MAX_PATHS = 50
"""How many paths of each kind a result names."""

MAX_PATH_CHARACTERS = 8_192
"""Of the paths of one kind together, where it is not a single longer one: a hostile tree has names of any length."""

MAX_CURSOR = 65_536

_KINDS = ("added", "modified", "removed")
_MAX_AFTER = 1024
"""Characters of the path that a page goes on after, so that a cursor is no longer than a page."""


class _After(BaseModel):
    # After how many of a kind, and the last of them.
    model_config = ConfigDict(extra="forbid", strict=True)

    count: int = Field(ge=0)
    last: str


class _Cursor(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    fingerprint: str
    after: dict[str, _After]


@dataclass(frozen=True)
class Page:
    """Paths of one page by kind, how many come on later ones, and the cursor of the next."""

    paths: dict[str, Sequence[str]]
    remaining: int
    next_cursor: str | None
    has_changed: bool
    """The difference is not what it was on the page before."""


def first_of(paths: Sequence[str]) -> Sequence[str]:
    """Return as many of the first paths as a result has room for, at least one."""
    characters = 0
    for index, path in enumerate(paths[:MAX_PATHS]):
        characters += len(path)
        if index and characters > MAX_PATH_CHARACTERS:
            return paths[:index]
    return paths[:MAX_PATHS]


def page_of(changes: Changes, cursor: str | None, *, question: Sequence[object]) -> Page:
    """Return a page of a difference that has just been computed, maybe anew.

    A page goes on after the last path of the one before, by name: what differs all the time is on one page and on one
    only, whatever else has come or gone meanwhile.

    Args:
        changes: The difference as it is now.
        cursor: Of the page before; None for the first.
        question: What was asked for: a cursor is good for the same only.

    Raises:
        InvalidBackupConfigError: The cursor is none of ours, or of another question.
    """
    asked = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:16]
    fingerprint = changes.fingerprint()[:16]
    before = _parse(cursor, asked) if cursor is not None else None
    has_changed = before is not None and before.fingerprint != fingerprint
    paths: dict[str, Sequence[str]] = {}
    after: dict[str, _After] = {}
    remaining = 0
    for kind in _KINDS:
        everything: Sequence[str] = getattr(changes, kind)
        begin = _begin(everything, None if before is None else before.after.get(kind), has_changed=has_changed)
        page = first_of(everything[begin:])
        end = begin + len(page)
        paths[kind] = page
        remaining += len(everything) - end
        if end:
            after[kind] = _After(count=end, last=everything[end - 1][:_MAX_AFTER])
    following = _Cursor(question=asked, fingerprint=fingerprint, after=after)
    return Page(paths, remaining, _format(following) if remaining else None, has_changed)


def _begin(paths: Sequence[str], after: _After | None, *, has_changed: bool) -> int:
    if after is None:
        return 0
    if not has_changed:
        return min(after.count, len(paths))
    # Of a longer path only the beginning is known: so many as were told already are passed over.
    first = bisect_right(paths, after.last)
    end = bisect_right(paths, after.last, key=lambda path: path[:_MAX_AFTER])
    return min(max(after.count, first), end)


def _format(cursor: _Cursor) -> str:
    text = json.dumps(cursor.model_dump(), ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(zlib.compress(text.encode())).decode().rstrip("=")


def _parse(cursor: str, question: str) -> _Cursor:
    problem = "cursor: not one that diff_backup returned; pass next_cursor of the page before, or none for the first"
    if len(cursor) > MAX_CURSOR:
        raise InvalidBackupConfigError(problem)
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        parsed = _Cursor.model_validate_json(zlib.decompressobj().decompress(packed, MAX_CURSOR))
    except (ValueError, zlib.error) as error:
        raise InvalidBackupConfigError(problem) from error
    if parsed.question != question:
        raise InvalidBackupConfigError(
            "cursor: it belongs to another comparison; repeat the arguments of the page before, or leave the cursor out"
        )
    return parsed
