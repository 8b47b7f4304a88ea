"""A plan or a difference, as a person reads it."""

import sys
from typing import TYPE_CHECKING

from sandpoint.cli.terminal import Colour, paint, printable, say

if TYPE_CHECKING:
    from sandpoint.models import Changes

SIGNS: tuple[tuple[str, str, Colour], ...] = (
    ("added", "+", "green"),
    ("modified", "~", "yellow"),
    ("removed", "-", "red"),
)


def show_changes(changes: "Changes") -> None:
    """Print `+`, `~` or `-` and the path, one a line, in order of the paths."""
    marked = [(path, sign, colour) for field, sign, colour in SIGNS for path in getattr(changes, field)]
    for path, sign, colour in sorted(marked):
        say(paint(f"{sign} {printable(path)}", colour, sys.stdout))


def count_changes(changes: "Changes") -> str:
    """Return how many paths were added, modified and removed."""
    return ", ".join(f"{len(getattr(changes, field)):,} {field}" for field, _, _ in SIGNS)
