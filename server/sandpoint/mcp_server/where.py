"""Where the tools work: the directories and sandboxes that a model is told of."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sandpoint.settings import DOCKER_PREFIX, LOCAL

MAX_PLACES = 300
"""Characters of the names of directories, or of sandboxes, that a model is told."""


@dataclass(frozen=True)
class Where:
    """Where the tools work, as far as a model is told."""

    allowed_dirs: Sequence[str] | None = None
    """None: any but the system's."""
    sandbox: str = LOCAL
    """The one that is meant where none is named."""
    sandboxes: Sequence[str] | None = None
    """Patterns of those that may be named; None: none may."""


def describe_allowed(allowed_dirs: Sequence[str]) -> str:
    """Return a sentence that says where the tools may work."""
    return f"Must be one of these or inside: {_some(allowed_dirs)}."


def describe_sandboxes(where: Where) -> str:
    """Return a sentence that says which sandboxes may be named."""
    return f"Must match: {_some(where.sandboxes or ())}. Default: {where.sandbox}."


def _some(names: Sequence[str]) -> str:
    # Clients cut long descriptions at their end, where the places are: better cut here, and say so.
    ends = list(accumulate(len(name) + 2 for name in names))
    shown = max(1, bisect_right(ends, MAX_PLACES))
    told = ", ".join(names[:shown])
    return told if shown >= len(names) else f"{told} and {len(names) - shown} more that the settings name"


def describe_place(where: Where) -> str:
    """Return sentences that say in which sandboxes and directories the tools work, each on a line of its own."""
    lines = []
    if where.sandboxes is not None:
        lines.append(
            "Several sandboxes are served: name one with the argument sandbox, or for fork_backup several with "
            f"sandboxes. {describe_sandboxes(where)}"
        )
    elif where.sandbox != LOCAL:
        container = where.sandbox.removeprefix(DOCKER_PREFIX)
        lines.append(f"All directories are those inside the Docker container {container}, not of this machine.")
    if where.allowed_dirs:
        lines.append(f"Directories: {describe_allowed(where.allowed_dirs)}")
    elif where.allowed_dirs is not None:
        lines.append("Directories: none is allowed before SANDPOINT_ALLOWED_DIRS is set. Tell the user.")
    return "".join(f"\n{line}" for line in lines)
