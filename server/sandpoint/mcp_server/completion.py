"""Completion of the arguments of resource templates and prompts: ids, paths and directories."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from sandpoint.errors import BackupNotFoundError, InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server.failures import coded
from sandpoint.mcp_server.prompts import CHECKPOINT, RECOVER
from sandpoint.mcp_server.uris import TEMPLATES
from sandpoint.models import Backup, FileKind, TreeEntry
from sandpoint.printable import cut
from sandpoint.service import BackupService
from sandpoint.services import ServiceSource

MAX_VALUES = 100
"""How many values the protocol allows."""

SEARCHED = 200
"""How many of the newest backups are looked through."""

Complete = Callable[[BackupService, str, Mapping[str, str]], Awaitable[Completion]]
"""Completes what was typed, with the arguments that are known already."""

_NOTHING = Completion(values=[], total=0, has_more=False)


def add_completion(server: MCPServer[Any], services: ServiceSource) -> None:
    """Let a server complete the arguments of its templates and prompts."""
    register = server.completion()  # type: ignore[no-untyped-call]

    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion:
        name = ref.name if isinstance(ref, PromptReference) else ref.uri
        completer = _COMPLETERS.get((name, argument.name))
        if completer is None:
            raise MCPError(INVALID_PARAMS, f"there is no argument {cut(argument.name, 80)!r} of {cut(name, 80)!r}")
        known = (context.arguments if context else None) or {}
        try:
            async with services.use_store() as service:
                return await completer(service, argument.value, known)
        except (BackupNotFoundError, InvalidBackupConfigError):
            return _NOTHING  # what was typed so far leads nowhere
        except SandpointError as error:
            raise MCPError(INTERNAL_ERROR, coded(error.code, error)) from error

    register(complete)


async def _ids(service: BackupService, typed: str, known: Mapping[str, str]) -> Completion:
    """Complete an id by its beginning, or by a part of the backup's name or directory."""
    wanted = typed.lower()

    def matches(backup: Backup) -> bool:
        return backup.id.startswith(wanted) or wanted in (backup.name or "").lower() or wanted in backup.dir.lower()

    page = await service.list(limit=SEARCHED, dir=known.get("dir") or None)
    found = [backup.id for backup in page.backups if matches(backup)]
    return _first(found, is_all=page.next_cursor is None)


async def _dirs(service: BackupService, typed: str, known: Mapping[str, str]) -> Completion:
    """Complete a directory by its beginning, of those that there are backups of."""
    page = await service.list(limit=SEARCHED)
    found = dict.fromkeys(backup.dir for backup in page.backups if backup.dir.startswith(typed))
    return _first([*found], is_all=page.next_cursor is None)


def _first(found: Sequence[str], *, is_all: bool) -> Completion:
    return Completion(
        values=[*found[:MAX_VALUES]],
        total=len(found) if is_all else None,
        has_more=not is_all or len(found) > MAX_VALUES,
    )


def _paths(*kinds: FileKind) -> Complete:
    async def complete(service: BackupService, typed: str, known: Mapping[str, str]) -> Completion:
        """Complete the last part of a path, by what its folder holds."""
        folder, slash, start = typed.rpartition("/")
        listing = await service.tree(known.get("id", ""), folder, starts_with=start, kinds=kinds, limit=MAX_VALUES)
        return Completion(
            values=[folder + slash + _typed(entry) for entry in listing.entries],
            total=listing.entry_count,
            has_more=listing.next_cursor is not None,
        )

    return complete


def _typed(entry: TreeEntry) -> str:
    """Return a name as a client puts it into a URI: exactly, or if it is not UTF-8 as it is shown."""
    try:
        name = entry.exact_name.decode()
    except UnicodeDecodeError:
        name = entry.name
    return f"{name}/" if entry.kind == "directory" else name


_COMPLETERS: dict[tuple[str, str], Complete] = {
    (TEMPLATES["metadata"], "id"): _ids,
    (TEMPLATES["tree"], "id"): _ids,
    (TEMPLATES["tree"], "path"): _paths("directory"),
    (TEMPLATES["file"], "id"): _ids,
    (TEMPLATES["file"], "path"): _paths("directory", "file"),
    (CHECKPOINT, "dir"): _dirs,
    (RECOVER, "dir"): _dirs,
    (RECOVER, "backup_id"): _ids,
}
"""By the template's URI or the prompt's name, and the argument's name."""
