"""The options that commands share."""

from dataclasses import dataclass
from typing import Annotated

import typer

from sandpoint.cli.terminal import shell_word

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where backups are kept: file:///path or s3://bucket/prefix. [env: SANDPOINT_STORE]",
    ),
]
Sandbox = Annotated[
    str | None,
    typer.Option(
        "--sandbox",
        metavar="S",
        help="Where the directory lives: local, or docker:NAME for a container. [env: SANDPOINT_SANDBOX]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]

BackupId = Annotated[str, typer.Argument(metavar="ID", help="The backup's id, as create and list print it.")]
BackupIds = Annotated[list[str], typer.Argument(metavar="ID", help="The backups' ids, as create and list print them.")]
NoUndo = Annotated[bool, typer.Option("--no-undo", help="Do not back up the present state first.")]


@dataclass(frozen=True)
class Common:
    """What every command that runs an operation is told: None leaves the store and the sandbox to the environment."""

    store: str | None
    sandbox: str | None
    as_json: bool

    def command(self, *arguments: str, sandbox: str | None = None) -> str:
        """Return a line for the user's shell that runs another command on the same store and sandbox, or another."""
        line = ["sandpoint", *arguments]
        for option, value in (("--store", self.store), ("--sandbox", sandbox or self.sandbox)):
            if value is not None:
                line += [option, value]
        return " ".join(map(shell_word, line))
