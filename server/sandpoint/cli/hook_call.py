"""What an agent is about to do, as its hook is told: in which directory, and what of it may be written down."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sandpoint.cli.terminal import working_directory

PROJECT_VARIABLES = ("CLAUDE_PROJECT_DIR", "GEMINI_PROJECT_DIR", "CURSOR_PROJECT_DIR")
"""By which agents tell their hooks the directory that they were started in."""

READERS = frozenset(
    {
        "BashOutput",
        "Glob",
        "Grep",
        "LS",
        "NotebookRead",
        "Read",
        "TodoRead",
        "TodoWrite",
        "WebFetch",
        "WebSearch",
    }
)
"""Tools that change no file."""

_HAVE_SUBCOMMANDS = frozenset({"cargo", "docker", "git", "go", "npm", "pip", "pnpm", "poetry", "uv", "yarn"})
_PROGRAM = re.compile(r"[A-Za-z][A-Za-z0-9._+-]{0,39}")
_SUBCOMMAND = re.compile(r"[a-z][a-z-]{0,19}")
_ASSIGNMENT = re.compile(r"""[A-Za-z_][A-Za-z0-9_]*=(?:[^\s"'`\\(){}]|'[^'\s]*'|"[^"\s`\\(){}]*")*""")
"""Of a variable before a program; of one whose value may go on after a blank nobody can tell where the program is."""
_PROGRAM_PATH = re.compile(r"[~/A-Za-z0-9._+-]+")
_TOOL = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
_LONGEST_PATH = 200
_LONGEST_SESSION = 128


@dataclass(frozen=True)
class Call:
    """A tool that is about to be called, and the directory that it works in."""

    directory: str
    session: str
    tool: str
    purpose: str

    @property
    def only_reads(self) -> bool:
        """Whether it changes no file."""
        return self.tool in READERS


def read_call(payload: Mapping[str, object], environment: Mapping[str, str]) -> Call:
    """Read what an agent tells its hook; what is missing or of another kind counts as not said."""
    directory = find_directory(payload, environment)
    tool = _text(payload.get("tool_name"))
    tool = tool if _TOOL.fullmatch(tool) else ""
    session = _text(payload.get("session_id")) or _text(payload.get("conversation_id"))
    return Call(directory, session[:_LONGEST_SESSION], tool, _describe(tool, payload, directory))


def find_directory(payload: Mapping[str, object], environment: Mapping[str, str]) -> str:
    """Return the directory to back up, without links.

    That is the project that the agent was started in. Where it works outside of that, in another worktree for
    instance, it is the repository there; where there is none, the project all the same.
    """
    told = _text(payload.get("cwd"))
    here = os.path.realpath(told if told.startswith("/") else working_directory())
    project = _project(payload, environment)
    if project is not None and _is_within(here, project):
        return project
    return repository_of(here) or project or here


def repository_of(path: str) -> str | None:
    """Return the top of the git repository or worktree that a path is in; the home directory is not taken for one."""
    home = _home()
    while not _is_within(home, path):
        if os.path.exists(os.path.join(path, ".git")):
            return path
        path = os.path.dirname(path)
    return None


def is_too_wide(directory: str) -> bool:
    """Whether a directory is the home directory, or one that it is in."""
    return _is_within(_home(), directory)


def _home() -> str:
    path = os.path.expanduser("~")
    return os.path.realpath(path) if path.startswith("/") else "/"  # of a user that the machine does not know


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _project(payload: Mapping[str, object], environment: Mapping[str, str]) -> str | None:
    roots = payload.get("workspace_roots")
    told = [_text(environment.get(variable)) for variable in PROJECT_VARIABLES]
    told += [_text(root) for root in roots] if isinstance(roots, list) else []
    return next((os.path.realpath(path) for path in told if path.startswith("/")), None)


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        return ""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return ""
    return value


def _describe(tool: str, payload: Mapping[str, object], directory: str) -> str:
    """Say what is about to be done. Of a command only the program: its arguments and variables may hold secrets."""
    given = payload.get("tool_input")
    values = given if isinstance(given, dict) else payload
    path = next((_text(values[name]) for name in ("file_path", "notebook_path") if values.get(name)), "")
    if path:
        return f"before {tool or 'an edit'} of {_shown(path, directory)}"
    program = _program(values.get("command"))
    return f"before {tool or 'a command'}: {program}" if program else f"before {tool or 'a tool'}"


def _shown(path: str, directory: str) -> str:
    inside = os.path.relpath(os.path.join(directory, path), directory)
    if inside.startswith("../"):
        return "a file outside"
    shown = "".join(character if character.isprintable() else "?" for character in inside)
    return shown if len(shown) <= _LONGEST_PATH else f"...{shown[-_LONGEST_PATH:]}"


def _program(command: object) -> str:
    if isinstance(command, list):
        command = next(iter(command), "")
    words = _text(command)[:4096].split()
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if not words or not _PROGRAM_PATH.fullmatch(words[0]):
        return ""
    program = words[0].rpartition("/")[2]
    if not _PROGRAM.fullmatch(program):
        return ""
    if program in _HAVE_SUBCOMMANDS and len(words) > 1 and _SUBCOMMAND.fullmatch(words[1]):
        return f"{program} {words[1]}"
    return program
