"""The way into a hook and out of it, for processes that an agent starts at each of its steps."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sandpoint.cli.hook_run import Agent, HookOptions, run_hook, tell


def run_lean(arguments: Sequence[str]) -> int:
    """Run a hook by the arguments after `sandpoint hook`, without the other commands, and return 0.

    Wrong usage is 2 elsewhere, by which an agent would be stopped.
    """
    agent: Agent = "generic" if arguments[0] == "generic" else "claude-code"
    try:
        if len(arguments) > 1:
            return _run_with_options(agent, arguments)
        return run_hook(agent, HookOptions(), sys.stdin)
    except KeyboardInterrupt:
        return 0  # the user stopped the agent, and with it us
    except Exception as error:  # noqa: BLE001 - whatever it is, the agent goes on
        tell(agent, f"{type(error).__name__}: {error}")
        return 0


def _run_with_options(agent: Agent, arguments: Sequence[str]) -> int:
    # Only here: typer takes a tenth of the time that a hook has.
    import typer
    from typer.main import get_command

    from sandpoint.cli.hook import add_runs

    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(lambda: None)
    add_runs(app)
    try:
        command = get_command(app)
        with command.make_context("sandpoint hook", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit:
        pass
    except typer.TyperException as error:
        tell(agent, f"its command line in the settings is wrong: {error.format_message()}")
    return 0


def leave(status: int) -> NoReturn:
    """End the process at once: to free all that it has read would take as long as some of its work."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
