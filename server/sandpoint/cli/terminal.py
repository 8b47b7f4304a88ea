"""Words for a person: what is safe to print, and how sizes, times, counts and colours look."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TextIO

from sandpoint.printable import printable as printable

Colour = Literal["green", "yellow", "red", "cyan"]

WIDE = 120
"""Columns of a terminal from which tables have all their columns."""

_CODES: dict[Colour, int] = {"red": 31, "green": 32, "yellow": 33, "cyan": 36}


def shell_word(text: str) -> str:
    r"""Return text as one word of a shell's line that is safe to print; what is not printable as `$'\x1b'`."""
    if text.isprintable():
        from shlex import quote

        return quote(text)
    plain = bytes(range(0x20, 0x7F)).translate(None, b"'\\\\")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"


def working_directory() -> str:
    """Return the working directory, which may be deleted: that may be just what is to be undone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.path.realpath(os.environ.get("PWD", "/"))


def say(text: str, *, error: bool = False) -> None:
    """Print a line on stdout or stderr."""
    stream = sys.stderr if error else sys.stdout
    stream.write(f"{text}\n")


def warn(text: str) -> None:
    """Print a warning on stderr."""
    say(f"{paint('warning:', 'yellow', sys.stderr)} {text}", error=True)


def paint(text: str, colour: Colour, stream: TextIO | None = None) -> str:
    """Return text in a colour if the stream (stdout) is a terminal that shows colours."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if has_colour(stream or sys.stdout) else text


def has_colour(stream: TextIO) -> bool:
    """Whether to use colours, by the rules that rich follows."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in {"dumb", "unknown"}


def size(count: int) -> str:
    """Return a number of bytes as a person says it, by powers of 1000."""
    from rich.filesize import decimal

    return decimal(count)


def local_time(moment: datetime, *, seconds: bool = True) -> str:
    """Return a time on the machine's own clock, to the second or to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """Return a time span that a person waited for."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 file`, `63,864 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def some(names: Sequence[str], limit: int = 10) -> str:
    """Return names in a row, the first few of many."""
    shown = ", ".join(printable(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def say_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print labels and values, one pair a line, aligned."""
    for label, value in fields:
        say(f"  {label:<8} {value}")


@dataclass(frozen=True)
class Column:
    """A column of a table: `narrow` terminals have it too, its cells may be folded, and stand on the right."""

    heading: str
    narrow: bool = True
    folds: bool = False
    right: bool = False


def say_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits on a terminal, and aligned columns elsewhere."""
    if not sys.stdout.isatty():
        say_columns([[column.heading for column in columns], *rows])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    chosen = [index for index, column in enumerate(columns) if column.narrow or console.width >= WIDE]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (columns[index] for index in chosen):
        heading = Text(column.heading.capitalize())
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(heading, no_wrap=not column.folds, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*(Text(row[index]) for index in chosen))
    console.print(table)


def say_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns, nothing shortened: for a file or a pipe."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
