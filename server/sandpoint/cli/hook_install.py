"""`sandpoint hook install`: into the settings of Claude Code."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from sandpoint.cli.failures import describe, print_json, show_failure
from sandpoint.cli.hook import Deadline, Exclude, Keep, Name, Ttl, UseGitignore
from sandpoint.cli.hook_call import is_too_wide, repository_of
from sandpoint.cli.hook_run import DEADLINE_S, KEEP, NAME, HookOptions
from sandpoint.cli.hook_settings import Change, SettingsError, install, uninstall
from sandpoint.cli.options import Json, Store
from sandpoint.cli.terminal import printable, say, shell_word, warn
from sandpoint.errors import InvalidBackupConfigError

_FREE_S = 30
"""Between our own deadline and the agent's: for the start, and for what was begun to be undone."""


@dataclass(frozen=True)
class Scope:
    """Where settings of Claude Code are, and whether others get the file too."""

    option: str
    path: str
    project: str | None
    shared: bool = False


def install_hook(
    user: Annotated[bool, typer.Option("--user", help="In ~/.claude/settings.json: for all your projects.")] = False,
    project: Annotated[
        bool, typer.Option("--project", help="In .claude/settings.json: for all who work on this project.")
    ] = False,
    local: Annotated[
        bool,
        typer.Option("--local", help="In .claude/settings.local.json: for you, in this project. This is the default."),
    ] = False,
    remove: Annotated[bool, typer.Option("--uninstall", help="Take it out again.")] = False,
    deadline: Deadline = DEADLINE_S,
    keep: Keep = KEEP,
    name: Name = NAME,
    ttl: Ttl = None,
    use_gitignore: UseGitignore = False,
    exclude: Exclude = None,
    store: Store = None,
    as_json: Json = False,
) -> int:
    """Have Claude Code run the hook.

    It runs before each edit and shell command. Everything else in the settings stays as it is. Once more with other
    options, it is changed. The project is the repository of the working directory, or that directory itself.
    """
    if user + project + local > 1:
        raise typer.BadParameter("give one of --user, --project and --local only")
    options = HookOptions(deadline, keep, name, ttl, use_gitignore, tuple(exclude or ()), store)
    try:
        scope = _scope(user=user, project=project)
        if remove:
            change = uninstall(scope.path, within=scope.project)
        else:
            command = hook_command(options, shared=scope.shared)
            change = install(scope.path, command, int(deadline) + _FREE_S, within=scope.project)
    except (SettingsError, InvalidBackupConfigError) as error:
        failure = describe(InvalidBackupConfigError(str(error)))
        show_failure(failure, as_json=as_json)
        return failure.status
    if scope.shared and not remove and shutil.which("sandpoint") is None:
        warn("no 'sandpoint' is on PATH here: where that is so, the hook does nothing and says nothing")
    if as_json:
        print_json({"path": change.path, "changed": not change.is_none, "commands": list(change.after)})
    else:
        _show(change, scope, remove=remove)
    return 0


def _scope(*, user: bool, project: bool) -> Scope:
    if user:
        home = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")
        return Scope("--user", os.path.join(home, "settings.json"), None)
    here = os.getcwd()
    directory = repository_of(here) or here
    if is_too_wide(directory):
        raise InvalidBackupConfigError(
            f"{directory} is not the directory of a project; go to one, or use --user for all your projects"
        )
    name = "settings.json" if project else "settings.local.json"
    option = "--project" if project else "--local"
    return Scope(option, os.path.join(directory, ".claude", name), directory, shared=project)


def hook_command(options: HookOptions, *, shared: bool) -> str:
    """Return the line of the settings: by this installation's own path, where no others get it."""
    words = [*(["sandpoint"] if shared else own_program()), "hook", "claude-code"]
    default = HookOptions()
    for option, value, usual in (
        ("--deadline", options.deadline, default.deadline),
        ("--keep", options.keep, default.keep),
        ("--name", options.name, default.name),
        ("--ttl", options.ttl, default.ttl),
        ("--store", options.store, default.store),
    ):
        if value is not None and value != usual:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--use-gitignore"] if options.use_gitignore else []
    for pattern in options.excludes:
        words += ["--exclude", pattern]
    line = " ".join(map(shell_word, words))
    # Who has no Sandpoint is not to be told so at each step.
    return f"{line} || true" if shared else line


def own_program() -> list[str]:
    """Return how this installation is started, wherever the working directory and PATH are."""
    script = os.path.join(os.path.dirname(sys.executable), "sandpoint")
    if os.access(script, os.X_OK):
        return [script]
    return [sys.executable, "-m", "sandpoint.cli"]


def _show(change: Change, scope: Scope, *, remove: bool) -> None:
    path = printable(change.path)
    if change.is_none:
        say(f"There is no hook of Sandpoint in {path}." if remove else f"The hook is in {path} already.")
        return
    if remove:
        say(f"Took the hook out of {path}.")
        return
    say(f"{'Changed' if change.before else 'Put'} the hook in {path}:")
    for command in change.after:
        say(f"  {printable(command)}")
    say("Sessions of Claude Code that begin from now on are backed up before each edit and shell command.")
    say("Go a step back with: sandpoint undo")
    if scope.option == "--local" and not _is_ignored(change.path):
        warn(f"git does not ignore {path}, which holds a path of this machine: add it to .gitignore")


def _is_ignored(path: str) -> bool:
    """Whether git would not take a file up; outside of a repository, none is."""
    try:
        checked = subprocess.run(
            ["git", "-C", os.path.dirname(path), "check-ignore", "-q", "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return True
    return checked.returncode != 1
