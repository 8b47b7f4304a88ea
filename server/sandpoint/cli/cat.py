"""`sandpoint cat`."""

import os
import select
import sys
from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from sandpoint.cli.failures import describe, print_json, show_failure
from sandpoint.cli.options import BackupId, Common, Json, Sandbox, Store
from sandpoint.cli.run import perform
from sandpoint.cli.terminal import size
from sandpoint.errors import InvalidBackupConfigError

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream

    from sandpoint.models import Report
    from sandpoint.service import BackupService

MAX_JSON_BYTES = 16 << 20
"""Of a file that is put into a JSON object, which has to be in memory as a whole."""

_PIECE = 1 << 20
_CHECK_EVERY_MS = 100


def cat(
    backup_id: BackupId,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The file, relative to the directory, as diff prints it.")
    ],
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Print a file out of a backup, byte for byte.

    Nothing is restored. With --json, the content is text where it is UTF-8, else base64.
    """
    common = Common(store, sandbox, as_json)

    async def printed(service: "BackupService", report: "Report") -> None:
        async with await service.open_file(backup_id, path, report=report) as stream:
            if as_json:
                _print_content(backup_id, path, await _read_all(stream))
            else:
                await _copy(stream, sys.stdout.fileno())

    try:
        perform(common, printed)
    except BrokenPipeError:  # the reader has seen enough
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - as in run
        failure = describe(error)
        show_failure(failure, as_json=as_json)
        return failure.status
    return 0


async def _copy(stream: "ByteReceiveStream", out: int) -> None:
    from anyio import EndOfStream, from_thread, to_thread

    while True:
        try:
            piece = await stream.receive(_PIECE)
        except EndOfStream:
            return
        await to_thread.run_sync(_write, out, piece, from_thread.check_cancelled)


def _write(out: int, content: bytes, check: Callable[[], None]) -> None:
    """Write all of it. A reader that takes its time can be interrupted: what is written at once fits into a pipe."""
    poller = select.poll()
    poller.register(out, select.POLLOUT)
    left = memoryview(content)
    while left:
        check()
        if poller.poll(_CHECK_EVERY_MS):
            left = left[os.write(out, left[: select.PIPE_BUF]) :]


async def _read_all(stream: "ByteReceiveStream") -> bytes:
    content = bytearray()
    async for piece in stream:
        content += piece
        if len(content) > MAX_JSON_BYTES:
            raise InvalidBackupConfigError(
                f"path: only files of up to {size(MAX_JSON_BYTES)} are put into JSON; leave --json out for the bytes "
                "as they are"
            )
    return bytes(content)


def _print_content(backup_id: str, path: str, content: bytes) -> None:
    try:
        encoding, text = "utf-8", content.decode()
    except UnicodeDecodeError:
        encoding, text = "base64", b64encode(content).decode()
    print_json({"id": backup_id, "path": path, "size_bytes": len(content), "encoding": encoding, "content": text})
