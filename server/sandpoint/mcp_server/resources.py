"""Backups as resources: their metadata, their trees and their files."""

from collections.abc import Iterable
from typing import Any

from mcp.server import MCPServer
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, UnexpectedResourceError
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, Annotations, InputRequiredResult, Resource, ResourceTemplate
from mcp_types.version import is_version_at_least
from pydantic import AnyUrl

from sandpoint.errors import BackupNotFoundError, InvalidBackupConfigError, NoSuchPathError, SandpointError
from sandpoint.mcp_server.completion import add_completion
from sandpoint.mcp_server.contents import JSON_TYPE, as_content, as_json, metadata_of, tree_of
from sandpoint.mcp_server.failures import coded
from sandpoint.mcp_server.results import MAX_LISTED_TEXT
from sandpoint.mcp_server.uris import TEMPLATES, BackupUri, View, is_ours, metadata_uri, parse_uri, path_uri
from sandpoint.models import Backup, FileKind
from sandpoint.printable import cut
from sandpoint.service import BackupService
from sandpoint.services import ServiceSource

MAX_LISTED = 50
"""How many backups a list of resources has: the newest. Of older ones list_backups tells."""

MAX_ENTRIES = 200
"""How many entries of a folder one resource has."""

MAX_TREE_CHARACTERS = 200_000
"""Of the JSON of these: in a hostile tree the names, links and URIs of so many are megabytes."""

MAX_FILE_BYTES = 1 << 20
"""Of a file that is a resource: it comes as one message, and a model reads it as a whole."""

_NOT_FOUND_BEFORE_2026 = -32002
"""The code of a resource that is not there in revisions before 2026-07-28."""

_DESCRIPTIONS: dict[View, tuple[str, str, str | None]] = {
    "metadata": (
        "backup",
        "What is known of a backup: its directory, name, time, size and expiry. Ids are those of list_backups.",
        JSON_TYPE,
    ),
    "tree": (
        "backup-tree",
        "What a folder of a backup holds: names, types, sizes, modes, times, targets of links. Path is relative to "
        f"the backed-up directory, empty for all of it. At most {MAX_ENTRIES} entries: next is the URI that goes on.",
        JSON_TYPE,
    ),
    "file": (
        "backup-file",
        "A file as it was in a backup, without a restore. Path is relative to the backed-up directory, as "
        f"diff_backup and the tree name it. At most {MAX_FILE_BYTES >> 20} MiB.",
        None,
    ),
}
"""Of each template: its name, what a model reads, and its MIME type."""


class ResourceServer(MCPServer[Any]):
    """An MCP server that has backups among its resources."""

    backups: "BackupResources"
    """Of `add_resources`, before the server is used."""

    async def list_resources(self) -> list[Resource]:
        """Return what was added, and the newest backups."""
        try:
            return [*await super().list_resources(), *await self.backups.newest()]
        except SandpointError as error:
            raise MCPError(INTERNAL_ERROR, coded(error.code, error)) from error

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """Return those that were added, and those of backups."""
        return [*await super().list_resource_templates(), *self.backups.templates()]

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Any, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read what was added, or of a backup; what fails is told with its code, as of tools."""
        try:
            if not is_ours(str(uri)):
                return await super().read_resource(uri, context)
            return [await self.backups.read(str(uri))]
        except ResourceNotFoundError as error:
            revision = None if context is None else context.protocol_version
            if revision is None or is_version_at_least(revision, "2026-07-28"):
                raise
            raise MCPError(_NOT_FOUND_BEFORE_2026, str(error), {"uri": str(uri)}) from error


class BackupResources:
    """The backups of a store that may be used here."""

    def __init__(self, services: ServiceSource) -> None:
        """Take where services are had from."""
        self._services = services

    @staticmethod
    def templates() -> list[ResourceTemplate]:
        """Return the templates of all URIs."""
        return [
            ResourceTemplate(
                uri_template=template,
                name=_DESCRIPTIONS[view][0],
                description=_DESCRIPTIONS[view][1],
                mime_type=_DESCRIPTIONS[view][2],
            )
            for view, template in TEMPLATES.items()
        ]

    async def newest(self) -> list[Resource]:
        """Return the newest backups that can be restored.

        Raises:
            SandpointError: The store cannot be read.
        """
        async with self._services.use_store() as service:
            page = await service.list(limit=MAX_LISTED)
        return [_as_resource(backup) for backup in page.backups]

    async def read(self, uri: str) -> ReadResourceContents:
        """Return what a URI names.

        Raises:
            ResourceNotFoundError: It names nothing that there is.
            ResourceError: It cannot be read; the text begins with a code.
        """
        wanted = parse_uri(uri)
        if wanted is None:
            forms = ", ".join(TEMPLATES.values())
            raise ResourceNotFoundError(f"there is no resource {cut(uri, 200)!r}; those of backups are {forms}")
        try:
            async with self._services.use_store() as service:
                return await _READERS[wanted.view](service, wanted)
        except (BackupNotFoundError, NoSuchPathError) as error:
            raise ResourceNotFoundError(coded(error.code, error)) from error
        except SandpointError as error:
            raise ResourceError(coded(error.code, error)) from error
        except Exception as error:
            raise UnexpectedResourceError(f"Error reading resource {uri}") from error


def add_resources(server: ResourceServer, services: ServiceSource) -> None:
    """Give a server backups as resources, and the completion of their ids and paths."""
    server.backups = BackupResources(services)
    add_completion(server, services)


def _as_resource(backup: Backup) -> Resource:
    label = cut(backup.name or "backup", MAX_LISTED_TEXT)
    return Resource(
        uri=metadata_uri(backup.id),
        name=f"{label} {backup.created_at:%Y-%m-%d %H:%M:%S}",
        title=f"{label} of {cut(backup.dir, MAX_LISTED_TEXT)}",
        description=cut(backup.description, MAX_LISTED_TEXT) if backup.description else None,
        mime_type=JSON_TYPE,
        annotations=Annotations(last_modified=f"{backup.created_at:%Y-%m-%dT%H:%M:%SZ}"),
    )


async def _read_metadata(service: BackupService, wanted: BackupUri) -> ReadResourceContents:
    return as_json(metadata_of(await service.get(wanted.id)))


async def _read_tree(service: BackupService, wanted: BackupUri) -> ReadResourceContents:
    listing = await service.tree(wanted.id, wanted.path, limit=MAX_ENTRIES, cursor=wanted.after)
    if listing.itself.kind != "directory":
        raise InvalidBackupConfigError(
            f"path: {listing.path} is a {listing.itself.kind}, not a folder"
            + (f"; read {path_uri(wanted.id, 'file', listing.exact_path)}" if listing.itself.kind == "file" else "")
        )
    return as_json(tree_of(wanted.id, listing, max_characters=MAX_TREE_CHARACTERS))


_REMEDIES: dict[FileKind, str] = {
    "directory": "read {tree} for what it holds",
    "symlink": "links are not followed, so read what it leads to: {target}",
}


async def _read_file(service: BackupService, wanted: BackupUri) -> ReadResourceContents:
    listing = await service.tree(wanted.id, wanted.path, limit=0)
    itself = listing.itself
    if itself.kind != "file":
        remedy = _REMEDIES.get(itself.kind, "it has no contents; name a file")
        tree = path_uri(wanted.id, "tree", listing.exact_path)
        raise InvalidBackupConfigError(
            f"path: {listing.path or '.'} is a {itself.kind}; {remedy.format(tree=tree, target=itself.target)}"
        )
    if itself.size_bytes > MAX_FILE_BYTES:
        raise InvalidBackupConfigError(
            f"path: {listing.path} has {itself.size_bytes:,} bytes, and a resource at most {MAX_FILE_BYTES:,}; have "
            f"it printed by 'sandpoint cat {wanted.id} PATH', or restored by restore_backup with paths and another dir"
        )
    async with await service.open_file(wanted.id, wanted.path) as stream:
        content = b"".join([piece async for piece in stream])
    return as_content(listing.exact_path, content)


_READERS = {"metadata": _read_metadata, "tree": _read_tree, "file": _read_file}
