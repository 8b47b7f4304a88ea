"""`sandpoint ls`."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandpoint.cli.options import BackupId, Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import count, local_time, printable, say, say_columns, shell_word

if TYPE_CHECKING:
    from sandpoint.models import FileKind, Listing, TreeEntry

_LETTERS: "dict[FileKind, str]" = {
    "file": "-",
    "directory": "d",
    "symlink": "l",
    "pipe": "p",
    "socket": "s",
    "device": "D",
}


def ls(
    backup_id: BackupId,
    path: Annotated[
        str,
        typer.Argument(metavar="[PATH]", help="A folder or file, relative to the directory. [default: all of it]"),
    ] = "",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="At most so many. [default: 1000]")] = None,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Go on after an earlier list, which printed this.")
    ] = None,
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """List a folder of a backup.

    Nothing is restored. Names are printed as diff prints them; cat takes them with the folder's path before.
    """
    options: dict[str, Any] = {} if limit is None else {"limit": limit}  # the service's own default holds
    return run(
        Common(store, sandbox, as_json),
        lambda service, report: service.tree(backup_id, path, cursor=cursor, report=report, **options),
        show_listing,
    )


def show_listing(listing: "Listing") -> None:
    """Print a line for each entry of a folder, or the one of what is no folder, and how to go on."""
    entries = listing.entries if listing.itself.kind == "directory" else (listing.itself,)
    if entries:
        say_columns([_row(entry) for entry in entries])
    if listing.next_cursor is not None:
        say(
            f"{len(entries):,} of {count(listing.entry_count, 'entry', 'entries')}; go on with the same command and "
            f"--cursor {shell_word(listing.next_cursor)}"
        )


def _row(entry: "TreeEntry") -> list[str]:
    arrow = "" if entry.target is None else f" -> {printable(entry.target)}"
    slash = "/" if entry.kind == "directory" and entry.name != "." else ""
    # Times are any that a filesystem can say: further from now than the clock of the machine may tell.
    changed = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=entry.mtime_ns // 1000)
    return [
        _LETTERS[entry.kind] + entry.mode,
        f"{entry.size_bytes:>12,}" if entry.kind == "file" else " " * 12,
        local_time(changed),
        f"{printable(entry.name)}{slash}{arrow}",
    ]
