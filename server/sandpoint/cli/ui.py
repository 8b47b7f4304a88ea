"""`sandpoint ui`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.failures import describe, show_failure
from sandpoint.cli.options import Sandbox, Store
from sandpoint.cli.terminal import printable, say

if TYPE_CHECKING:
    from sandpoint.mcp_server.http_settings import HttpSettings
    from sandpoint.mcp_server.listening import Listening
    from sandpoint.settings import Settings

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
"""One of these environment variables is there where a browser can be opened."""


def ui(
    directory: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="Whose backups to show. [default: the working directory]")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", min=0, max=65535, metavar="P", show_default=False, help="Listen there. [default: a free port]"
        ),
    ] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only print the link.")] = False,
    store: Store = None,
    sandbox: Sandbox = None,
) -> int:
    """Look at backups in a browser.

    Shows the time line, what changed from one to the next and until now, and restores with a preview. It listens on
    this machine alone, and only who has the link that it prints can use it; a link works once. Ctrl-C ends it: what
    runs then is finished, or undone.
    """
    try:
        import anyio

        from sandpoint.cli.startup import loaded
        from sandpoint.mcp_server.http_settings import HttpSettings
        from sandpoint.mcp_server.listening import listening
        from sandpoint.mcp_server.window import GRACE, HOST
        from sandpoint.settings import read_settings

        settings = read_settings(store=store, sandbox=sandbox)
        http = HttpSettings(host=HOST, port=port, grace=GRACE)
        with listening(http) as listening_on:
            loaded()
            anyio.run(_serve, settings, _place(directory, settings), http, listening_on, no_open)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place where its errors are told
        failure = describe(error)
        show_failure(failure, as_json=False)
        return failure.status
    return 0


def _place(directory: str | None, settings: "Settings") -> str | None:
    """Return the directory by the name that its backups have; in a container there is none to begin with."""
    from sandpoint.settings import LOCAL

    if settings.sandbox != LOCAL:
        return directory
    return os.path.realpath(os.getcwd() if directory is None else directory)


async def _serve(
    settings: "Settings", directory: str | None, http: "HttpSettings", listening_on: "Listening", no_open: bool
) -> None:
    import webbrowser
    from threading import Thread

    from sandpoint.mcp_server.limits import Gate, GatedServices
    from sandpoint.mcp_server.running import run_app
    from sandpoint.mcp_server.server import build_lazy_server
    from sandpoint.mcp_server.where import Where
    from sandpoint.mcp_server.window import HOST, Keys, build_window
    from sandpoint.services import Services

    keys = Keys()
    port = listening_on.sockets[0].getsockname()[1]
    gate = Gate(http.operations, http.queue)

    def link() -> str:
        return f"http://{HOST}:{port}/#token={keys.mint()}"

    def tell() -> None:
        first = link()
        say(f"The backups of {printable(directory) if directory else 'all directories'}: {first}")
        say("Ctrl-C ends it.")
        if not no_open and any(map(os.environ.get, DISPLAYS)):
            # Some browsers stay for as long as they are open.
            Thread(target=webbrowser.open, args=(first,), daemon=True).start()

    async with Services(settings) as services:
        # The page shows the plan and asks itself.
        server = build_lazy_server(
            GatedServices(services, gate), where=Where(settings.allowed_dirs, settings.sandbox), confirm="never"
        )
        app = build_window(
            server, gate, dir=directory, port=port, keys=keys, link_used=lambda: say(f"For another window: {link()}")
        )
        await run_app(app, listening_on, http, is_ready=tell)
