"""The page: the time line of a directory's backups, as an MCP App (`io.modelcontextprotocol/ui`)."""

from typing import Annotated

from mcp.server.apps import APP_MIME_TYPE, Apps
from mcp.server.extension import Extension
from mcp.server.mcpserver.resources import FunctionResource
from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from sandpoint.mcp_server.results import BackupList
from sandpoint.mcp_server.strict import strict_tool
from sandpoint.mcp_server.tools import MAX_PAGE, hints
from sandpoint.mcp_server.where import Where, describe_allowed
from sandpoint.services import ServiceSource

PAGE_URI = "ui://sandpoint/timeline.html"
"""The resource that a host shows in a frame."""

FIRST_PAGE = 30
"""How many backups the page begins with; it asks for more as one scrolls."""


def page_extensions() -> list[Extension]:
    """Return what gives a server the page. The page is read from disk when a host asks for it, not before."""
    apps = Apps()
    apps.add_resource(
        FunctionResource(
            uri=PAGE_URI,
            name="timeline",
            title="Time line of backups",
            description="For hosts that show MCP Apps: backups, what changed between them, restore with preview.",
            mime_type=APP_MIME_TYPE,
            meta={"ui": {"prefersBorder": True}},
            fn=_read_page,
        )
    )
    return [apps]


def _read_page() -> str:
    from sandpoint.mcp_server.assembly import read_page

    return read_page()


def page_tools(services: ServiceSource, *, where: Where) -> list[Tool]:
    """Return the tool that shows the page.

    `Apps.tool` would register a function whose unknown arguments are ignored; so the tool is one of ours, with the
    same `_meta`.
    """

    async def show_backups(
        dir: Annotated[str | None, Field(description="Only of this directory (absolute path). Default: all.")] = None,
        limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="At most so many at first.")] = FIRST_PAGE,
    ) -> BackupList:
        """Show the user the time line of a directory's backups, on a page where they can compare and restore.

        Use it when the user wants to look at the backups themselves; list_backups is enough to find an id. Where
        the client shows no pages, its result is the list, for you to tell. Fast; changes nothing. Next: wait for
        what the user does there; the page tells you of a restore.
        """
        async with services.use_store() as service:
            return BackupList.of(await service.list(dir=dir, limit=limit))

    tool = strict_tool(
        show_backups,
        title="Show the backups",
        annotations=hints(reads=True),
        notes={"dir": describe_allowed(where.allowed_dirs)} if where.allowed_dirs else {},
    )
    return [tool.model_copy(update={"meta": {"ui": {"resourceUri": PAGE_URI}}})]
