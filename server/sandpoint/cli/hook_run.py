"""The hook itself: a backup before an agent changes something, if anything has changed. It always goes on."""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from sandpoint.cli.hook_call import Call, is_too_wide, read_call
from sandpoint.cli.hook_notes import Notes
from sandpoint.cli.terminal import printable

if TYPE_CHECKING:
    from sandpoint.models import Backup, Progress
    from sandpoint.service import BackupService
    from sandpoint.settings import Settings

Agent = Literal["claude-code", "generic"]

DEADLINE_S = 30.0
"""Of one call: half of what Claude Code gives a hook."""

KEEP = 20
NAME = "auto"

_GRACE_S = 10.0
"""For what is under way at the deadline to be undone. Then the process ends, and the next operation clears up."""

_SLOW_S = 5.0
_REST_S = 300.0
"""After a failure that took long, nothing is tried for so long: an agent shall not wait at each of its steps."""

_QUEUE_REST_S = 30.0
"""The same where others were before it, a long restore perhaps."""

_SLACK = 5
"""Backups beyond those that are kept, before the oldest are deleted: that takes a look at all of the store."""

_MAX_INPUT = 64 << 20

_SILENCE_S = 1.0
"""After so long nothing more is awaited from an agent that leaves stdin open."""


@dataclass(frozen=True)
class HookOptions:
    """What backups a hook takes, and how many stay."""

    deadline: float = DEADLINE_S
    keep: int = KEEP
    name: str = NAME
    ttl: float | None = None
    use_gitignore: bool = False
    excludes: tuple[str, ...] = ()
    store: str | None = None


class _TooLateError(Exception):
    """The deadline passed; all that was begun is undone."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


def run_hook(agent: Agent, options: HookOptions, stdin: TextIO | None) -> int:
    """Take a backup for an agent's hook, and return 0.

    Args:
        agent: Whose hook it is: what it reads, and how its user is told of a failure.
        options: What to take.
        stdin: What the agent tells, as one JSON object; a terminal or None tells nothing.
    """
    _end_at(options.deadline + _GRACE_S, agent)
    payload, problem = _read(stdin)
    call = read_call(payload, os.environ)
    if problem:
        _log(problem)
    if not call.only_reads:
        _checkpoint(agent, options, call)
    return 0


def _checkpoint(agent: Agent, options: HookOptions, call: Call) -> None:
    from sandpoint.cli.failures import StoppedError, describe
    from sandpoint.settings import LOCAL, read_settings

    notes = Notes(None, call.directory, call.session)
    began = time.monotonic()
    try:
        # What an agent works on is of this machine, wherever other operations are told to look.
        settings = read_settings(store=options.store, sandbox=LOCAL)
        notes = Notes(settings.state_dir, call.directory, call.session)
        if notes.is_resting():
            return
        _refuse_home(call.directory)
        _back_up(settings, options, call, notes)
    except (StoppedError, KeyboardInterrupt):
        return  # the user stopped the agent, and with it us
    except _TooLateError as error:
        notes.rest(_REST_S if error.begun else _QUEUE_REST_S)
        _tell_once(agent, notes, f"deadline {error.begun}", _too_late(options, call, begun=error.begun))
    except Exception as error:  # noqa: BLE001 - whatever it is, the agent goes on
        failure = describe(error)
        if time.monotonic() - began > _SLOW_S:
            notes.rest(_REST_S)
        _tell_once(agent, notes, failure.code, f"{failure.message} [{failure.code}]")
    else:
        notes.forget_failures()


def _refuse_home(directory: str) -> None:
    from sandpoint.errors import InvalidBackupConfigError

    if is_too_wide(directory):
        raise InvalidBackupConfigError(
            f"{directory} holds your home directory, too much to back up at each step; start the agent in the "
            "directory of a project"
        )


def _back_up(settings: "Settings", options: HookOptions, call: Call, notes: Notes) -> None:
    import anyio

    from sandpoint.cli.signals import until_signal
    from sandpoint.service import open_service

    begun: list[str] = []

    async def report(progress: "Progress") -> None:
        begun.append(progress.phase)

    async def create(service: "BackupService") -> "Backup":
        from sandpoint.models import DEFAULT_TTL

        return await service.create(
            call.directory,
            name=options.name,
            description=call.purpose,
            metadata=_noted(call),
            use_gitignore=options.use_gitignore,
            excludes=options.excludes,
            if_changed=True,
            ttl=DEFAULT_TTL if options.ttl is None else options.ttl,
            report=report,
        )

    async def work() -> None:
        is_made = False
        with anyio.move_on_after(options.deadline) as scope:
            async with open_service(settings) as service:
                backup = await create(service)
                is_made = True
                if not backup.unchanged and notes.count() >= _SLACK:
                    await service.trim(backup.dir, name=options.name, keep=options.keep)
                    notes.start_again()
        if scope.cancelled_caught and not is_made:
            raise _TooLateError(begun=bool(begun))

    anyio.run(until_signal, work)


def _noted(call: Call) -> dict[str, str]:
    values = {"tool": call.tool, "session": call.session}
    return {"by": "hook"} | {key: value for key, value in values.items() if value and value.isprintable()}


def _too_late(options: HookOptions, call: Call, *, begun: bool) -> str:
    limit = f"{options.deadline:g} s"
    if not begun:
        return f"other operations of Sandpoint were before it for more than {limit}; it is tried again later"
    from sandpoint.cli.terminal import shell_word

    return (
        f"a backup of {printable(call.directory)} takes longer than {limit}. Take the first one yourself, for then "
        f"only what changes is stored: sandpoint create {shell_word(call.directory)}; or leave out what git ignores: "
        "sandpoint hook install --use-gitignore"
    )


def _read(stdin: TextIO | None) -> tuple[Mapping[str, object], str]:
    """Return what the agent tells, and what is wrong with it."""
    if stdin is None or stdin.closed or stdin.isatty():
        return {}, ""
    try:
        text = _read_until_silence(stdin.fileno())
        payload = json.loads(text) if text.strip() else {}
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"what the agent sent is not JSON: {error}"
    return (payload, "") if isinstance(payload, dict) else ({}, "what the agent sent is no JSON object")


def _read_until_silence(fd: int) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    content = bytearray()
    while len(content) < _MAX_INPUT and poll.poll(_SILENCE_S * 1000):
        chunk = os.read(fd, 1 << 20)
        if not chunk:
            break
        content += chunk
    return bytes(content)


def _tell_once(agent: Agent, notes: Notes, kind: str, reason: str) -> None:
    if notes.is_first(kind):
        tell(agent, f"{reason}. The agent goes on without; this is said once a session")


def tell(agent: Agent, reason: str) -> None:
    """Tell the user of an agent why there is no backup."""
    message = f"Sandpoint took no checkpoint: {printable(reason)}"
    if agent == "claude-code":
        _write(sys.stdout, json.dumps({"systemMessage": message}))
    _log(message)


def _log(message: str) -> None:
    _write(sys.stderr, printable(message))


def _write(stream: TextIO | None, line: str) -> None:
    # An agent may have closed its end, or given none. Then nobody is to be told, and it goes on all the same.
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.write(f"{line}\n")
            stream.flush()


def _end_at(seconds: float, agent: Agent) -> None:
    """End the process after some time, whatever it waits for."""

    def end() -> None:
        try:
            tell(agent, f"it did not end within {seconds:g} s")
        finally:
            os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
