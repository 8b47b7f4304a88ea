"""The server: the tools, the instructions, and errors as a model and a program can read them."""

import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.request_state import RequestStateSecurity
from mcp_types import CallToolResult, InputRequiredResult
from pydantic import ValidationError

from sandpoint.errors import InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server.confirm import ANSWER_TTL, Confirm, NotConfirmedError
from sandpoint.mcp_server.failures import error_result
from sandpoint.mcp_server.one_service import OneService
from sandpoint.mcp_server.page import page_extensions, page_tools
from sandpoint.mcp_server.prompts import PromptServer, add_prompts
from sandpoint.mcp_server.resources import ResourceServer, add_resources
from sandpoint.mcp_server.sealing import KEY_BYTES
from sandpoint.mcp_server.tools import build_tools
from sandpoint.mcp_server.where import Where, describe_place
from sandpoint.models import describe_invalid
from sandpoint.printable import cut
from sandpoint.service import BackupService
from sandpoint.services import ServiceSource

logger = logging.getLogger(__name__)

UNEXPECTED_CODE = "INTERNAL_ERROR"
"""The code of what nobody foresaw; its cause is in the server's log only."""

INSTRUCTIONS = """\
Sandpoint gives you a way back: point-in-time backups of a directory, restored exactly.
Back up BEFORE a risky step - mass edits or deletes, rm or mv by pattern, migrations, generated rewrites,
dependency upgrades, scripts you have not run before: create_backup(dir, name). It takes moments. Note the id.
If it went wrong: diff_backup(backup_id) shows what changed, with content=true line by line;
restore_backup(backup_id, dry_run=true) shows what a restore would do; restore_backup(backup_id) brings the
directory back, with paths only those files, and returns undo_id, a backup of the state just before: restore
that to undo the restore. The user may be asked to confirm; after NOT_CONFIRMED do not retry, talk to them.
To try several ways from one state: fork_backup(backup_id, dirs) makes independent copies of it.
Lost the id? list_backups(dir). One file as it was: read backup://ID/file/PATH. show_backups lets the user look.
verify_backup checks an old backup; delete_backup is rarely needed, they expire.
Errors begin with a code and say what to do."""


class SandpointServer(ResourceServer, PromptServer):
    """An MCP server whose failed calls begin with a code, which `_meta` repeats for programs."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; every failure of a tool that exists is a result, never an exception."""
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            # The SDK takes every exception but its own for a crash.
            if isinstance(error.__cause__, SandpointError):
                return error_result(error.__cause__.code, str(error.__cause__))
            logger.error("%s failed unexpectedly", name, exc_info=error.__cause__)  # noqa: TRY400 - the cause alone
            return error_result(
                UNEXPECTED_CODE,
                f"{name} failed for a reason that Sandpoint did not foresee; the server's log (stderr) "
                "has it. Calling it again the same way is unlikely to help: tell the user.",
            )
        except ToolError as error:
            if isinstance(error.__cause__, NotConfirmedError):
                return error_result(NotConfirmedError.code, str(error.__cause__))
            if not isinstance(error.__cause__, ValidationError):
                return self._refused(name, error)
            accepted = ", ".join(self._arguments(name))
            return error_result(
                InvalidBackupConfigError.code,
                f"{name}: {describe_invalid(error.__cause__)}. Nothing was done. {name} takes: {accepted}.",
            )

    def _refused(self, name: str, error: ToolError) -> CallToolResult:
        if self._tool_manager.get_tool(name) is not None:
            raise error
        there_are = ", ".join(tool.name for tool in self._tool_manager.list_tools())
        return error_result(
            InvalidBackupConfigError.code,
            f"there is no tool {cut(name, 80)!r}; nothing was done. There are: {there_are}.",
        )

    def _arguments(self, name: str) -> list[str]:
        tool = self._tool_manager.get_tool(name)
        return list(tool.parameters["properties"]) if tool else []


def build_server(
    service: BackupService, *, allowed_dirs: Sequence[str] | None = None, confirm: Confirm = "auto"
) -> MCPServer[Any]:
    """Return a server for a service, to be run on any transport.

    `allowed_dirs` are named to the model, in the instructions and the tools; the service refuses others. `confirm`
    says whether users are asked before their files change.
    """
    return build_lazy_server(OneService(service), where=Where(allowed_dirs), confirm=confirm)


def build_lazy_server(
    services: ServiceSource, *, where: Where, confirm: Confirm = "auto", key: bytes | None = None
) -> MCPServer[Any]:
    """Return a server that asks for its service at every call; its `SandpointError` is the result.

    `key` seals what a client keeps between a question and its answer; by default it is this process's own.
    """
    server = SandpointServer(
        "sandpoint",
        title="Sandpoint",
        description="Point-in-time backups of directories, for coding agents.",
        instructions=INSTRUCTIONS + describe_place(where),
        version=version("sandpoint"),
        tools=[*build_tools(services, where=where, confirm=confirm), *page_tools(services, where=where)],
        extensions=page_extensions(),
        request_state_security=RequestStateSecurity(keys=[key or os.urandom(KEY_BYTES)], ttl=ANSWER_TTL),
        log_level="WARNING",
    )
    add_resources(server, services)
    add_prompts(server)
    return server
