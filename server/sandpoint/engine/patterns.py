"""Patterns in gitignore syntax, byte for byte as git matches them (`wildmatch.c` with WM_PATHNAME, `dir.c`).

Matching libraries take a pattern for all that lies below what it matches. git asks about each path on the way down,
so that `*` with `!*/` takes directories back; a library's answer loses them.
"""

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CLASSES = {
    b"alpha": string.ascii_letters,
    b"digit": string.digits,
    b"alnum": string.ascii_letters + string.digits,
    b"upper": string.ascii_uppercase,
    b"lower": string.ascii_lowercase,
    b"space": " \t\n\r\v\f",
    b"blank": " \t",
    b"punct": string.punctuation,
    b"xdigit": string.hexdigits,
    b"cntrl": "".join(map(chr, (*range(32), 127))),
    b"print": "".join(map(chr, range(32, 127))),
    b"graph": "".join(map(chr, range(33, 127))),
}
_SLASH = ord("/")
_STAR = b"[^/]*"
_DEEP = b"(?:[^/]*/)*"
_SPECIAL = re.compile(rb"[*?\[\\]")


@dataclass(frozen=True)
class Pattern:
    """A pattern: which paths it matches, and whether these are excluded or (`!`) not."""

    regex: re.Pattern[bytes]
    excludes: bool
    directories_only: bool

    def matches(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether it matches a path itself, which may lie below what it matches."""
        return (is_dir or not self.directories_only) and self.regex.fullmatch(path) is not None


def parse_patterns(lines: Sequence[str]) -> list[Pattern]:
    """Return the patterns among lines, in their order; blank lines and comments are none.

    Raises:
        ValueError: One can match nothing, whatever it was meant to.
    """
    parsed = (_parse(line) for line in lines)
    return [pattern for pattern in parsed if pattern is not None]


def _parse(line: str) -> Pattern | None:
    text = _without_trailing_blanks(line.encode())
    if not text or text.startswith(b"#"):
        return None
    excludes = not text.startswith(b"!")
    text = text if excludes else text[1:]
    directories_only = text.endswith(b"/")
    text = text[:-1] if directories_only else text
    anchored = b"/" in text
    text = text.removeprefix(b"/")
    if not text:
        raise ValueError(f"{line!r} names nothing")
    try:
        body = _join(list(_translate(text)))
    except (IndexError, KeyError):
        raise ValueError(f"{line!r} ends within '[' or after a backslash") from None
    prefix = b"" if anchored else b"(?:.*/)?"
    return Pattern(re.compile(prefix + body, re.DOTALL), excludes, directories_only)


def _without_trailing_blanks(text: bytes) -> bytes:
    text = text.removesuffix(b"\r")
    bare = text.rstrip(b" ")
    escapes = len(bare) - len(bare.rstrip(b"\\"))
    return text[: len(bare) + 1] if escapes % 2 else bare


def _translate(text: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(text):
        match text[at : at + 1]:
            case b"*":
                piece, at = _stars(text, at)
                yield piece
            case b"?":
                yield b"[^/]"
                at += 1
            case b"[":
                piece, at = _bracket(text, at + 1)
                yield piece
            case b"\\":
                yield re.escape(bytes([text[at + 1]]))
                at += 2
            case literal:
                yield re.escape(literal)
                at += 1


def _join(pieces: list[bytes]) -> bytes:
    """Put pieces together so that no pattern takes long, however many stars it has.

    What follows a star and comes before the next may lie as far to the left as it can, for the next star takes the
    rest: only the last one need try again. The same is true of `**/` and the names after it.
    """
    first, *others = _split(pieces, _DEEP)
    return _names(first) + _lazily(_DEEP, [_names(part) for part in others])


def _names(pieces: list[bytes]) -> bytes:
    names = []
    for name in _split(pieces, b"/"):
        first, *others = _split(name, _STAR)
        names.append(b"".join(first) + _lazily(_STAR, [b"".join(part) for part in others]))
    return b"/".join(names)


def _lazily(star: bytes, parts: list[bytes]) -> bytes:
    early = [b"(?>" + star + b"?" + part + b")" for part in parts[:-1]]
    return b"".join(early) + b"".join(star + part for part in parts[-1:])


def _split(pieces: list[bytes], at: bytes) -> list[list[bytes]]:
    parts: list[list[bytes]] = [[]]
    for piece in pieces:
        if piece == at:
            parts.append([])
        else:
            parts[-1].append(piece)
    return parts


def _stars(text: bytes, at: int) -> tuple[bytes, int]:
    end = at
    while text[end : end + 1] == b"*":
        end += 1
    # git compares what comes before the first wildcard by itself, and takes the rest for a pattern of its own.
    begins = not _SPECIAL.search(text[:at]) or text[at - 1] == _SLASH
    is_whole_name = begins and text[end : end + 1] in {b"", b"/"}
    if end - at == 1 or not is_whole_name:
        return _STAR, end
    return (b".*", end) if end == len(text) else (_DEEP, end + 1)


def _bracket(text: bytes, at: int) -> tuple[bytes, int]:
    negated = text[at] in b"!^"
    at += negated
    first, chosen, before = at, set[int](), -1
    while text[at] != ord("]") or at == first:
        if text[at : at + 2] == b"[:" and (end := text.find(b":]", at + 2)) > 0:
            chosen.update(_CLASSES[text[at + 2 : end]].encode())
            before, at = -1, end + 2
        elif text[at] == ord("-") and before >= 0 and text[at + 1] != ord("]"):
            at += 2 if text[at + 1] == ord("\\") else 1
            chosen.update(range(before, text[at] + 1))
            before, at = -1, at + 1
        else:
            at += text[at] == ord("\\")
            before = text[at]
            chosen.add(before)
            at += 1
    wanted = (set(range(256)) - chosen if negated else chosen) - {_SLASH}
    listed = b"".join(re.escape(bytes([byte])) for byte in sorted(wanted))
    return (b"[" + listed + b"]" if listed else b"(?!)"), at + 1
