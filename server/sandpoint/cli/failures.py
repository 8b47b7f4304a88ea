"""What went wrong, as the exit status, a person and a program are told."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from sandpoint.cli.terminal import paint, printable, say
from sandpoint.errors import SandpointError

DEBUG = "SANDPOINT_DEBUG"
"""The environment variable that shows the traceback of an unexpected error."""


class StoppedError(Exception):
    """A signal ended the operation, and what it had begun was cleaned up, unless the detail says otherwise."""

    def __init__(self, number: int, detail: str = "") -> None:
        super().__init__(number, detail)
        self.number = number
        self.detail = detail


@dataclass(frozen=True)
class Failure:
    """A code, a sentence and the exit status."""

    code: str
    message: str
    status: int

    def as_json(self) -> dict[str, str]:
        """Return what a program is told."""
        return {"code": self.code, "message": self.message}


def describe(error: BaseException) -> Failure:
    """Return what to say of an error: by its code, or that Sandpoint itself is at fault."""
    if isinstance(error, SandpointError):
        return Failure(error.code, str(error), error.exit_status)
    if isinstance(error, StoppedError | KeyboardInterrupt):
        stopped = error if isinstance(error, StoppedError) else StoppedError(signal.SIGINT)
        name = signal.Signals(stopped.number).name
        detail = f": {stopped.detail}" if stopped.detail else ""
        return Failure("CANCELLED", f"stopped by {name} before it was done{detail}", 128 + stopped.number)
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(
        "INTERNAL_ERROR",
        f"Sandpoint failed in a way it should not ({what}). Run the command again with {DEBUG}=1 in the "
        "environment to see where, and please report it.",
        1,
    )


def show_failure(failure: Failure, *, as_json: bool) -> None:
    """Tell a program on stdout, or a person on stderr."""
    if as_json:
        print_json({"error": failure.as_json()})
    else:
        text = printable(failure.message, lines=True)
        say(f"{paint('error:', 'red', sys.stderr)} {text} [{failure.code}]", error=True)


def print_json(value: dict[str, Any]) -> None:
    """Print the one JSON object of a command, in ASCII: no terminal or encoding can spoil it."""
    say(json.dumps(value))
