"""`sandpoint serve`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sandpoint.cli.failures import describe, show_failure
from sandpoint.errors import SandpointError

if TYPE_CHECKING:
    from sandpoint.settings import Settings


def serve(
    transport: Annotated[
        Literal["stdio"], typer.Option("--transport", help="How the client speaks to the server.")
    ] = "stdio",
) -> int:
    """Serve agents by the Model Context Protocol.

    Backups are held to SANDPOINT_ALLOWED_DIRS, by default the working directory. Where SANDPOINT_PRUNE_EVERY says
    so, the store is pruned at the start and every so many hours; SANDPOINT_KEEP says what then stays, such as
    last=5,daily=7,name=release-*; without it only expired backups go.
    """
    try:
        from sandpoint.cli.startup import loaded
        from sandpoint.mcp_server import serve as serve_stdio

        loaded()
        serve_stdio(_settings())
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told on stderr; stdout is the protocol's
        failure = describe(error)
        show_failure(failure, as_json=False)
        return failure.status
    return 0


def _settings() -> "Settings | SandpointError":
    # A server that does not start is to its client one without a reason: it starts, and tells the error.
    from sandpoint.settings import read_settings

    try:
        return read_settings()
    except SandpointError as error:
        return error
