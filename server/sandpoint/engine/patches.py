"""Patches in git's format: from one text to another, so that `git apply` takes them."""

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import accumulate
from typing import Literal

from sandpoint.engine.manifest import display
from sandpoint.engine.tools import Check

_CONTEXT = 3
_MOST_WORK = 4_000_000
"""Pairs of lines looked at for one patch, about a second's work: what agrees in little is then replaced as a whole."""

_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}

Opcode = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]


@dataclass(frozen=True)
class Blob:
    """What a patch says of a file or a link, whose content is its target."""

    mode: int
    content: bytes


def is_text(content: bytes) -> bool:
    """Whether a patch can say some content: it is UTF-8 without a NUL."""
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def quoted(path: bytes) -> str:
    """Return a path as git writes it: in quotes with C's escapes where it is not plain text."""
    shown = display(path)
    if shown.encode() == path and '"' not in shown and "\\" not in shown:
        return shown
    return '"' + "".join(_ESCAPES.get(b) or (chr(b) if 0x20 <= b < 0x7F else f"\\{b:03o}") for b in path) + '"'


def sides(path: bytes, *, is_old: bool, is_new: bool) -> tuple[str, str]:
    """Return what a path is called before and after: `/dev/null` where it is not."""
    return (
        quoted(b"a/" + path) if is_old else "/dev/null",
        quoted(b"b/" + path) if is_new else "/dev/null",
    )


def make_patch(path: bytes, old: Blob | None, new: Blob | None, check: Check) -> str:
    """Return the patch from one text to another; empty where neither content nor mode differ.

    A file that becomes a link, or a link a file, goes and comes anew.

    Args:
        path: Relative to the directory.
        old: As it was, None for a file that was not there.
        new: As it is, None for a file that is gone.
        check: May raise to stop.
    """
    if old is not None and new is not None and stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        return make_patch(path, old, None, check) + make_patch(path, None, new, check)
    modes = "".join(_mode_lines(old, new))
    hunks = "".join(_hunks(old.content if old else b"", new.content if new else b"", check))
    if not modes and not hunks:
        return ""
    head = f"diff --git {quoted(b'a/' + path)} {quoted(b'b/' + path)}\n{modes}"
    if not hunks:
        return head
    before, after = sides(path, is_old=old is not None, is_new=new is not None)
    return f"{head}--- {_ended(before)}\n+++ {_ended(after)}\n{hunks}"


def _mode_lines(old: Blob | None, new: Blob | None) -> Iterator[str]:
    if old is None and new is not None:
        yield f"new file mode {new.mode:06o}\n"
    elif new is None and old is not None:
        yield f"deleted file mode {old.mode:06o}\n"
    elif old is not None and new is not None and old.mode != new.mode:
        yield f"old mode {old.mode:06o}\nnew mode {new.mode:06o}\n"


def _ended(name: str) -> str:
    # Where a name with a blank ends, nobody could tell from what may follow it.
    return f"{name}\t" if " " in name and not name.startswith('"') else name


def _hunks(old: bytes, new: bytes, check: Check) -> Iterator[str]:
    before, after = _lines(old), _lines(new)
    for group in _Matcher(before, after, check).get_grouped_opcodes(_CONTEXT):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n"
        for what, i1, i2, j1, j2 in group:
            if what == "equal":
                yield from _marked(" ", before[i1:i2])
            else:
                yield from _marked("-", before[i1:i2])
                yield from _marked("+", after[j1:j2])


def _lines(content: bytes) -> list[bytes]:
    # Not splitlines(), which takes a carriage return for an end too.
    *lines, rest = content.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def _marked(sign: str, lines: Sequence[bytes]) -> Iterator[str]:
    for line in lines:
        yield sign + line.decode()
        if not line.endswith(b"\n"):
            yield "\n\\ No newline at end of file\n"


def _range(start: int, end: int) -> str:
    count = end - start
    first = start + 1 if count else start
    return f"{first}" if count == 1 else f"{first},{count}"


class _TooDifferentError(Exception):
    """There is more to look at than it is worth."""


class _Matcher(SequenceMatcher[bytes]):
    """Compares lines with an end to its work, whatever the lines: alone it can take the square of them or worse."""

    a: Sequence[bytes]
    b: Sequence[bytes]
    b2j: dict[bytes, list[int]]

    def __init__(self, before: Sequence[bytes], after: Sequence[bytes], check: Check) -> None:
        # Lines in many places are no help to difflib, so what begins and ends alike is not left to it.
        self._head = _common(before, after)
        self._tail = _common(before[self._head :][::-1], after[self._head :][::-1])
        super().__init__(None, self._middle(before), self._middle(after))
        self._check = check
        self._left = _MOST_WORK
        self._work = [0, *accumulate(1 + len(self.b2j.get(line, ())) for line in self.a)]

    def _middle(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        return lines[self._head : len(lines) - self._tail]

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        self._check()
        self._left -= self._work[len(self.a) if ahi is None else ahi] - self._work[alo]
        if self._left < 0:
            raise _TooDifferentError
        return super().find_longest_match(alo, ahi, blo, bhi)

    def get_opcodes(self) -> list[Opcode]:
        try:
            found = super().get_opcodes()
        except _TooDifferentError:
            found = [("replace", 0, len(self.a), 0, len(self.b))]
        head, tail = self._head, self._tail
        i, j = head + len(self.a), head + len(self.b)
        before: list[Opcode] = [("equal", 0, head, 0, head)] if head else []
        after: list[Opcode] = [("equal", i, i + tail, j, j + tail)] if tail else []
        return [*before, *((what, a + head, b + head, c + head, d + head) for what, a, b, c, d in found), *after]


def _common(first: Sequence[bytes], second: Sequence[bytes]) -> int:
    """Return how many lines two texts have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(first), len(second)))
