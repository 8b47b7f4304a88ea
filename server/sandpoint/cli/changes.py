"""A plan or a difference, as a person reads it."""

import sys
from typing import TYPE_CHECKING

from sandpoint.cli.terminal import Colour, has_colour, paint, printable, say

if TYPE_CHECKING:
    from sandpoint.models import Changes, ContentChanges, FileDiff, Omission

SIGNS: tuple[tuple[str, str, Colour], ...] = (
    ("added", "+", "green"),
    ("modified", "~", "yellow"),
    ("removed", "-", "red"),
)

_PATCH_COLOURS: dict[str, Colour] = {"+": "green", "-": "red", "@": "cyan"}
_REASONS: dict["Omission", str] = {
    "large": "larger than 1 MiB, not shown",
    "limit": "beyond what is shown at once; name it with --path",
    "unreadable": "it could not be read",
}


def show_changes(changes: "Changes") -> None:
    """Print `+`, `~` or `-` and the path, one a line, in order of the paths."""
    marked = [(path, sign, colour) for field, sign, colour in SIGNS for path in getattr(changes, field)]
    for path, sign, colour in sorted(marked):
        say(paint(f"{sign} {printable(path)}", colour, sys.stdout))


def show_contents(changes: "ContentChanges") -> None:
    """Print the patch of each path, or a line where there is none."""
    for diff in changes.files:
        if diff.patch:
            sys.stdout.write(_coloured(diff.patch) if has_colour(sys.stdout) else _safe(diff.patch))
        elif diff.omitted is not None:
            say(printable(_differ(diff, diff.omitted)))
        else:
            _show_attributes(diff)


def _safe(patch: str) -> str:
    return printable(patch, lines=True) if sys.stdout.isatty() else patch


def _coloured(patch: str) -> str:
    lines, in_hunk = [], False
    for line in printable(patch, lines=True).split("\n"):
        in_hunk = (in_hunk or line.startswith("@@")) and not line.startswith("diff ")
        colour = _PATCH_COLOURS.get(line[:1]) if in_hunk else None
        lines.append(paint(line, colour, sys.stdout) if colour else line)
    return "\n".join(lines)


def _differ(diff: "FileDiff", omitted: "Omission") -> str:
    old = f"a/{diff.path}" if diff.old else "/dev/null"
    new = f"b/{diff.path}" if diff.new else "/dev/null"
    if omitted == "binary":
        return f"Binary files {old} and {new} differ"
    return f"Files {old} and {new} differ: {_REASONS[omitted]}"


def _show_attributes(diff: "FileDiff") -> None:
    sign, colour = next((sign, colour) for field, sign, colour in SIGNS if field == diff.change)
    attributes = f" ({', '.join(diff.attributes)})" if diff.attributes else ""
    say(paint(f"{sign} {printable(diff.path)}{attributes}", colour, sys.stdout))


def count_changes(changes: "Changes") -> str:
    """Return how many paths were added, modified and removed."""
    return ", ".join(f"{len(getattr(changes, field)):,} {field}" for field, _, _ in SIGNS)
