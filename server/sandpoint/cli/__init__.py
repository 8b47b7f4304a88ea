"""The command line: one module a command, and no more imported than the command needs."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of `sys.argv` (or of `arguments`) and return the exit status.

    0 is done, 2 wrong usage, 1 a fault of Sandpoint itself, 128 and the signal's number a signal; otherwise
    one number per error code (`sandpoint.errors`).
    """
    from sandpoint.cli.startup import loading

    with loading():
        from sandpoint.cli.app import run_command

        return run_command(arguments)


__all__ = ["main"]
