"""The server: the tools, the instructions, and errors as a model and a program can read them."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp_types import CallToolResult, InputRequiredResult, TextContent
from pydantic import ValidationError

from sandpoint.errors import InvalidBackupConfigError, SandpointError
from sandpoint.mcp_server.tools import OneService, Where, build_tools, describe_place
from sandpoint.models import describe_invalid
from sandpoint.service import BackupService
from sandpoint.services import ServiceSource

logger = logging.getLogger(__name__)

ERROR_CODE_META = "sandpoint/code"
"""The key in an error result's `_meta` under which programs find the code."""

UNEXPECTED_CODE = "INTERNAL_ERROR"
"""The code of what nobody foresaw; its cause is in the server's log only."""

INSTRUCTIONS = """\
Sandpoint gives you a way back: point-in-time backups of a directory, restored exactly.
Back up BEFORE a risky step - mass edits or deletes, rm or mv by pattern, migrations, generated rewrites,
dependency upgrades, scripts you have not run before: create_backup(dir, name). Note the id.
If it went wrong: diff_backup(backup_id) shows what changed, with content=true line by line;
restore_backup(backup_id, dry_run=true) shows what a restore would do; restore_backup(backup_id) brings the
directory back, with paths only those files, and returns undo_id, a backup of the state just before: restore
that to undo the restore.
To try several ways from one state: fork_backup(backup_id, dirs) makes independent copies of it.
Lost the id? list_backups(dir). Errors begin with a code and say what to do."""


class SandpointServer(MCPServer[Any]):
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
            if not isinstance(error.__cause__, ValidationError):
                raise
            accepted = ", ".join(self._arguments(name))
            return error_result(
                InvalidBackupConfigError.code,
                f"{name}: {describe_invalid(error.__cause__)}. Nothing was done. {name} takes: {accepted}.",
            )

    def _arguments(self, name: str) -> list[str]:
        tool = self._tool_manager.get_tool(name)
        return list(tool.parameters["properties"]) if tool else []


def error_result(code: str, message: str) -> CallToolResult:
    """Return a failed call: the code in the text, which is all that a model reads, and in `_meta`."""
    # A file's name in a message may hold bytes that are not UTF-8; the protocol is UTF-8.
    text = f"{code}: {message}".encode("utf-8", "backslashreplace").decode()
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True, _meta={ERROR_CODE_META: code})


def build_server(service: BackupService, *, allowed_dirs: Sequence[str] | None = None) -> MCPServer[Any]:
    """Return a server for a service, to be run on any transport.

    `allowed_dirs` are named to the model, in the instructions and the tools; the service refuses others.
    """
    return build_lazy_server(OneService(lambda: service), where=Where(allowed_dirs))


def build_lazy_server(services: ServiceSource, *, where: Where) -> MCPServer[Any]:
    """Return a server that asks for its service at every call; its `SandpointError` is the result."""
    return SandpointServer(
        "sandpoint",
        title="Sandpoint",
        description="Point-in-time backups of directories, for coding agents.",
        instructions=INSTRUCTIONS + describe_place(where),
        version=version("sandpoint"),
        tools=build_tools(services, where=where),
        log_level="WARNING",
    )
