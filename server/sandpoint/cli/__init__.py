"""The command line: one module a command, and no more imported than the command needs."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of `sys.argv` (or of `arguments`) and return the exit status.

    0 is done, 2 wrong usage, 1 a fault of Sandpoint itself, 128 and the signal's number a signal; otherwise
    one number per error code (`sandpoint.errors`).
    """
    from sandpoint.cli.startup import loading

    with loading():
        given = sys.argv[1:] if arguments is None else [*arguments]  # `list` is a module here
        if _is_hook(given):
            from sandpoint.cli.hook_lean import leave, run_lean

            status = run_lean(given[1:])
            return leave(status) if arguments is None else status
        from sandpoint.cli.app import run_command

        return run_command(given)


def _is_hook(arguments: Sequence[str]) -> bool:
    """Whether an agent calls, at each of its steps: then nothing else is loaded, and no error is one to it."""
    return [*arguments[:2]] in (["hook", "claude-code"], ["hook", "generic"])


__all__ = ["main"]
