"""The hook's entry in a settings file of Claude Code: everything else in it stays as it is."""

import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

EVENT = "PreToolUse"
MATCHER = "Edit|Write|MultiEdit|NotebookEdit|Bash"

_PROGRAM = re.compile(r"(.*/)?sandpoint(\.cli)?([@=].*)?")
_RUNNER = re.compile(r"(.*/)?(env|exec|nice|pipx|python[0-9.]*|timeout|uv|uvx)")
_VARIABLES = re.compile(r"""\s*(?:[A-Za-z_][A-Za-z0-9_]*=(?:'[^']*'|"[^"]*"|[^\s'"])*\s+)*""")

DEFAULT_TIMEOUT_S = 60
"""That Claude Code waits for a hook where the settings say nothing."""


class SettingsError(Exception):
    """The file cannot be changed; the message says why. It is as it was."""


@dataclass(frozen=True)
class Change:
    """What became of a file: its path without links, and what was there of ours before and is now."""

    path: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def is_none(self) -> bool:
        """Whether there was nothing to do."""
        return self.before == self.after


def install(path: str, command: str, timeout: int, *, within: str | None = None) -> Change:
    """Have a command run before the tools that change files.

    An entry of ours that is there keeps its place, its matcher, its timeout and the variables before it, which the
    user may have chosen. A line that does other things too is not ours, and stays.

    Args:
        path: The settings file; made if it is missing.
        command: A line for a shell.
        timeout: Seconds that the agent waits for it.
        within: A directory that links in the path may not lead out of.

    Raises:
        SettingsError: It is no settings file, cannot be written, or lies elsewhere.
    """

    def change(settings: dict[str, Any]) -> None:
        groups = _groups(settings, path)
        ours = list(_ours(groups))
        if not ours:
            handler = {"type": "command", "command": command, "timeout": timeout}
            groups.append({"matcher": MATCHER, "hooks": [handler]})
            settings.setdefault("hooks", {})[EVENT] = groups
            return
        first, *others = ours
        first["command"] = _variables(first["command"]) + command
        chosen = first.get("timeout", DEFAULT_TIMEOUT_S)
        if not isinstance(chosen, int | float) or chosen < timeout:
            first["timeout"] = timeout
        _drop(settings, groups, others)

    return _rewrite(path, change, within)


def uninstall(path: str, *, within: str | None = None) -> Change:
    """Take all entries of ours out again, with what they leave empty.

    Raises:
        SettingsError: As `install`.
    """

    def change(settings: dict[str, Any]) -> None:
        groups = _groups(settings, path)
        _drop(settings, groups, list(_ours(groups)))

    return _rewrite(path, change, within)


def _groups(settings: dict[str, Any], path: str) -> list[Any]:
    hooks = settings.get("hooks", {})
    groups = hooks.get(EVENT, []) if isinstance(hooks, dict) else None
    if not isinstance(groups, list):
        raise SettingsError(f"{path}: 'hooks' is not of the form that Claude Code reads; correct it first")
    return groups


def _ours(groups: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for group in groups:
        handlers = group.get("hooks") if isinstance(group, dict) else None
        for handler in handlers if isinstance(handlers, list) else ():
            if isinstance(handler, dict) and _is_ours(handler.get("command")):
                yield handler


def _is_ours(command: object) -> bool:
    """Whether a line runs our hook and nothing else."""
    if not isinstance(command, str) or "\n" in (line := command.strip()):
        return False
    lexer = shlex.shlex(line[len(_variables(line)) :], posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quotation without end
        return False
    if words[-2:] == ["||", "true"]:
        del words[-2:]
    if any(not word.strip(lexer.punctuation_chars) for word in words if word):
        return False
    return any(
        words[at : at + 2] == ["hook", "claude-code"]
        and _PROGRAM.fullmatch(words[at - 1]) is not None
        and (at == 1 or _RUNNER.fullmatch(words[0]) is not None)
        for at in range(1, len(words) - 1)
    )


def _variables(command: str) -> str:
    """Return what is set before a command, for it alone."""
    found = _VARIABLES.match(command)
    return found.group() if found is not None else ""


def _drop(settings: dict[str, Any], groups: list[Any], gone: list[dict[str, Any]]) -> None:
    if not gone:
        return
    for group in list(groups):
        handlers = group.get("hooks") if isinstance(group, dict) else None
        if not isinstance(handlers, list) or not any(handler is each for handler in handlers for each in gone):
            continue
        group["hooks"] = [handler for handler in handlers if not any(handler is each for each in gone)]
        if not group["hooks"]:
            groups.remove(group)
    if not groups:
        settings["hooks"].pop(EVENT, None)
    if not settings["hooks"]:
        del settings["hooks"]


def _commands(settings: dict[str, Any], path: str) -> tuple[str, ...]:
    return tuple(handler["command"] for handler in _ours(_groups(settings, path)))


def _rewrite(path: str, change: Any, within: str | None) -> Change:
    real = _real(path, within)
    try:
        text, status = _read(real)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    settings = {} if text is None else _parse(text, path)
    before = _commands(settings, path)
    change(settings)
    after = _commands(settings, path)
    if before != after:
        _write(real, _format(settings, text), status, path)
    return Change(real, before, after)


def _real(path: str, within: str | None) -> str:
    real = os.path.realpath(path)
    if within is not None and not real.startswith(os.path.realpath(within).rstrip("/") + "/"):
        raise SettingsError(f"{path} is a link that leads out of {within}, to {real}; change that file yourself")
    return real


def _read(path: str) -> tuple[str | None, os.stat_result | None]:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape"), os.fstat(file.fileno())
    except FileNotFoundError:
        return None, None


def _parse(text: str, path: str) -> dict[str, Any]:
    try:
        text.encode()
        settings = json.loads(text, object_pairs_hook=_pairs, parse_constant=_refuse, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid JSON ({error}); it was left as it is. Correct it first") from None
    if not isinstance(settings, dict):
        raise SettingsError(f"{path} does not hold a JSON object; it was left as it is. Correct it first")
    return settings


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is there twice in one object")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _number(text: str) -> float:
    value = float(text)
    if Decimal(repr(value)) != Decimal(text):
        raise ValueError(f"{text} would be written as {value}")
    return value


def _format(settings: dict[str, Any], text: str | None) -> str:
    """Write settings with the indent that they had."""
    found = re.search(r"\{\r?\n([ \t]+)\"", text or "")
    indent = found.group(1) if found else "  "
    end = "" if text is not None and not text.endswith("\n") else "\n"
    try:
        written = json.dumps(settings, indent=indent, ensure_ascii=False)
        written.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can stand for
        written = json.dumps(settings, indent=indent)
    return (written + end).replace("\n", "\r\n" if "\r\n" in (text or "") else "\n")


def _write(path: str, text: str, status: os.stat_result | None, shown: str) -> None:
    """Put a file in the place of the one that was read, whole or not at all."""
    if status is not None and not status.st_mode & 0o222:
        raise SettingsError(f"{shown} is read-only; it was left as it is. Make it writable first")
    folder = os.path.dirname(path)
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=".sandpoint-", dir=folder)
        with open(fd, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            _give(fd, status)
            os.fsync(fd)
        if not _is_still(path, status):
            raise SettingsError(f"{shown} was changed by another program just now; try again")
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise SettingsError(f"{shown} cannot be written: {error.strerror}; it was left as it is") from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _give(fd: int, status: os.stat_result | None) -> None:
    """Give a new file the mode and owner of the one whose place it takes."""
    if status is None:
        os.fchmod(fd, 0o644 & ~_umask())
        return
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    with suppress(PermissionError):  # only root can; it is ours then
        os.fchown(fd, status.st_uid, status.st_gid)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_still(path: str, status: os.stat_result | None) -> bool:
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return status is None
    return status is not None and (now.st_ino, now.st_mtime_ns, now.st_size) == (
        status.st_ino,
        status.st_mtime_ns,
        status.st_size,
    )
