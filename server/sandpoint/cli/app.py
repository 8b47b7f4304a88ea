"""The commands put together, and the way in and out of the process."""

import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Annotated

import typer
from typer.main import get_command

from sandpoint.cli.cat import cat
from sandpoint.cli.create import create
from sandpoint.cli.delete import delete
from sandpoint.cli.diff import diff
from sandpoint.cli.doctor import doctor
from sandpoint.cli.failures import Failure, describe, show_failure
from sandpoint.cli.hook import add_runs
from sandpoint.cli.hook_install import install_hook
from sandpoint.cli.lifecycle import lifecycle
from sandpoint.cli.list import list_backups
from sandpoint.cli.ls import ls
from sandpoint.cli.prune import prune
from sandpoint.cli.restore import restore
from sandpoint.cli.serve import serve
from sandpoint.cli.terminal import say
from sandpoint.cli.ui import ui
from sandpoint.cli.undo import undo
from sandpoint.cli.unmount import unmount
from sandpoint.cli.verify import verify

COMMANDS: dict[str, Callable[..., int]] = {
    "create": create,
    "restore": restore,
    "undo": undo,
    "list": list_backups,
    "diff": diff,
    "ls": ls,
    "cat": cat,
    "verify": verify,
    "delete": delete,
    "prune": prune,
    "lifecycle": lifecycle,
    "unmount": unmount,
    "doctor": doctor,
    "ui": ui,
    "serve": serve,
}
"""In the order of the help. Each returns its exit status."""

BROKEN_PIPE = 141
"""The exit status when the reader of stdout went away: 128 and SIGPIPE, as a shell would say it."""


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command, flush what it printed, and return its exit status (see `sandpoint.cli.main`)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    _make_streams_safe()
    try:
        status = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail again, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        # Not command.main(), which has its own idea of exit statuses, of broken pipes for one.
        command = get_command(_app())
        with command.make_context("sandpoint", arguments) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as asked:
        return asked.exit_code
    except typer.TyperException as error:
        failure = Failure("WRONG_USAGE", error.format_message().replace("Value error, ", ""), 2)
        show_failure(failure, as_json=as_json)
        if not as_json:
            wrong = getattr(error, "ctx", None)
            say(f"Try '{wrong.command_path if wrong else 'sandpoint'} --help'.", error=True)
        return failure.status
    except (typer.Abort, KeyboardInterrupt):
        failure = describe(KeyboardInterrupt())
        show_failure(failure, as_json=as_json)
        return failure.status


def _app() -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        # Help by rich costs a third of the start-up time.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_sandpoint)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    app.add_typer(_hook_app(), name="hook")
    return app


def _hook_app() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(invoke_without_command=True)(_hook)
    app.command("install")(install_hook)
    add_runs(app)
    return app


def _sandpoint(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> int:
    """Point-in-time backups of directories, and the way back.

    Settings come from the environment: SANDPOINT_STORE, SANDPOINT_SANDBOX, SANDPOINT_ALLOWED_DIRS,
    SANDPOINT_STATE_DIR.
    """
    if version:
        from importlib.metadata import version as version_of

        say(f"sandpoint {version_of('sandpoint')}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        say(context.get_help(), error=True)
        return 2
    return 0


def _hook(context: typer.Context) -> int:
    """Automatic backups for coding agents."""
    if context.invoked_subcommand is None:
        say(context.get_help(), error=True)
        return 2
    return 0


def _make_streams_safe() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
