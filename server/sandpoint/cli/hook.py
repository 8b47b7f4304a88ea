"""`sandpoint hook`: automatic backups for coding agents."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from sandpoint.cli.hook_run import DEADLINE_S, KEEP, NAME, Agent, HookOptions, run_hook
from sandpoint.cli.options import Store

LONGEST_S = 3600


def _check_deadline(value: float) -> float:
    if not 0 < value <= LONGEST_S:  # false for NaN too
        raise typer.BadParameter(f"{value:g} is not above 0 and at most {LONGEST_S} seconds")
    return value


def _check_name(value: str) -> str:
    from sandpoint.history import UNDO_NAME

    if value == UNDO_NAME:
        raise typer.BadParameter(f"backups named {UNDO_NAME!r} are the ways back from restores; choose another name")
    return value


Deadline = Annotated[
    float,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        callback=_check_deadline,
        help="After so long the agent goes on without a backup.",
    ),
]
Keep = Annotated[
    int, typer.Option("--keep", metavar="N", min=1, help="How many backups of a directory stay, or a few more.")
]
Name = Annotated[
    str,
    typer.Option("--name", callback=_check_name, help="The name of the backups; only those of this name are deleted."),
]
Ttl = Annotated[
    float | None,
    typer.Option("--ttl", metavar="SECONDS", help="How long they can be restored. [default: 259200, three days]"),
]
UseGitignore = Annotated[bool, typer.Option("--use-gitignore", help="Leave out what git ignores.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Leave out what a .gitignore line would. Repeatable."),
]


def _run_of(agent: Agent, purpose: str) -> Callable[..., int]:
    def run(
        deadline: Deadline = DEADLINE_S,
        keep: Keep = KEEP,
        name: Name = NAME,
        ttl: Ttl = None,
        use_gitignore: UseGitignore = False,
        exclude: Exclude = None,
        store: Store = None,
    ) -> int:
        options = HookOptions(deadline, keep, name, ttl, use_gitignore, tuple(exclude or ()), store)
        return run_hook(agent, options, sys.stdin)

    run.__doc__ = purpose
    return run


_PURPOSES: dict[Agent, str] = {
    "claude-code": """Back up before Claude Code changes something.

    For its PreToolUse hook. Reads what the agent is about to do on stdin, as JSON. Does nothing if nothing has
    changed since the last backup, and always exits with 0: the agent is never stopped. Why there is no backup is told
    once a session.
    """,
    "generic": """Back up before any other agent changes something.

    As claude-code, but stdin may tell nothing, and nothing is printed on stdout. The project is what the agent's
    variable or its JSON says, else the repository of the working directory, else that directory.
    """,
}


def add_runs(app: typer.Typer) -> None:
    """Add the hooks themselves to a group of commands, by the agent."""
    for agent, purpose in _PURPOSES.items():
        app.command(agent)(_run_of(agent, purpose))
