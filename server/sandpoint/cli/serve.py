"""`sandpoint serve`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sandpoint.cli.failures import describe, show_failure
from sandpoint.errors import InvalidBackupConfigError, SandpointError

if TYPE_CHECKING:
    from sandpoint.settings import Settings


def serve(
    transport: Annotated[
        Literal["stdio", "http"], typer.Option("--transport", help="How clients speak to the server.")
    ] = "stdio",
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="H",
            help="With http: the address to listen on, by default 127.0.0.1; beyond this machine only with tokens. "
            "[env: SANDPOINT_HTTP_HOST]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="P",
            min=0,
            max=65535,
            help="With http: the port, by default 8484; 0 for any that is free. [env: SANDPOINT_HTTP_PORT]",
        ),
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            help="With http: listen on a Unix socket of this path instead. [env: SANDPOINT_HTTP_SOCKET]",
        ),
    ] = None,
) -> int:
    """Serve agents by the Model Context Protocol.

    Backups are held to SANDPOINT_ALLOWED_DIRS, by default the working directory. Where SANDPOINT_PRUNE_EVERY says
    so, the store is pruned at the start and every so many hours; SANDPOINT_KEEP says what then stays, such as
    last=5,daily=7,name=release-*; without it only expired backups go.

    Over http, many clients may use one server, at http://HOST:PORT/mcp. SANDPOINT_HTTP_TOKENS_FILE names a file of
    tokens that let them in, SANDPOINT_HTTP_ISSUER an OAuth server.
    """
    try:
        if transport == "http":
            _serve_http(host, port, socket)
        else:
            _refuse_addresses(host, port, socket)
            _serve_stdio()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told on stderr; stdout is the protocol's
        failure = describe(error)
        show_failure(failure, as_json=False)
        return failure.status
    return 0


def _refuse_addresses(*given: object) -> None:
    if any(each is not None for each in given):
        raise InvalidBackupConfigError("--host, --port and --socket are of --transport http; add it, or leave them out")


def _serve_stdio() -> None:
    from sandpoint.cli.startup import loaded
    from sandpoint.mcp_server import serve as serve_stdio

    loaded()
    serve_stdio(_settings())


def _serve_http(host: str | None, port: int | None, socket: str | None) -> None:
    from sandpoint.cli.startup import loaded
    from sandpoint.mcp_server.http import serve as serve_over_http
    from sandpoint.mcp_server.http_settings import read_http_settings

    loaded()
    serve_over_http(_settings(), read_http_settings(host=host, port=port, socket=socket))


def _settings() -> "Settings | SandpointError":
    # A server that does not start is to its client one without a reason: it starts, and tells the error.
    from sandpoint.settings import read_settings

    try:
        return read_settings()
    except SandpointError as error:
        return error
