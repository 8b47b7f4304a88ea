"""What every sandbox can do."""

from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from anyio.abc import ByteReceiveStream

from sandpoint.models import (
    Adopted,
    AdoptRequest,
    Applied,
    ApplyRequest,
    AskGrant,
    Capabilities,
    Captured,
    CaptureRequest,
    Changes,
    CompareRequest,
    ContentChanges,
    FolderRequest,
    LastCapture,
    Listing,
    LostOverlay,
    OverlayState,
    ReadRequest,
    Report,
)


class Sandbox(Protocol):
    """A place with trees in it. All but `turn`, `clear_leftovers` and `capabilities` are called during a turn."""

    @property
    def option(self) -> str:
        """What a command line needs to mean it, with a space before it; empty for the usual one."""
        ...

    async def id(self) -> str:
        """Return the name of the sandbox in the metadata of its backups."""
        ...

    def resolve(self, dir: str) -> str:
        """Return a directory's path in its one form.

        Raises:
            InvalidBackupConfigError: It may not be backed up or restored.
        """
        ...

    def is_allowed(self, dir: str) -> bool:
        """Whether a directory, in its one form, is among those that may be used."""
        ...

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for all that was asked of this sandbox before, here and in other processes."""
        ...

    async def capture(self, request: CaptureRequest, report: Report, ask: AskGrant) -> Captured:
        """Walk, build a layer, ask for a grant and send it through that; on failure nothing is left."""
        ...

    async def adopt(self, request: AdoptRequest, report: Report) -> Adopted:
        """Make a layer and a manifest of an archive that another program wrote; they are in the cache for the turn."""
        ...

    async def check_freeze(self) -> None:
        """See that all that runs there can be paused for a capture.

        Raises:
            InvalidBackupConfigError: It cannot.
        """
        ...

    async def last_capture(self, dir: str) -> LastCapture:
        """Return the backups that a delta of a directory would best be built on: they may be gone by now."""
        ...

    async def note_capture(self, dir: str, backup_id: str) -> None:
        """Take note that a backup of a directory is there."""
        ...

    async def compare(self, request: CompareRequest, report: Report) -> Changes:
        """Return what a restore would do."""
        ...

    async def compare_backups(self, older: CompareRequest, newer: CompareRequest, report: Report) -> Changes:
        """Return what changed from one backup to another."""
        ...

    async def compare_contents(
        self, backup: CompareRequest, other: CompareRequest | None, max_bytes: int, report: Report
    ) -> ContentChanges:
        """Return what changed since a backup, with contents: in its directory, or up to another backup.

        The patches are no longer than `max_bytes` in all.
        """
        ...

    async def open_file(self, request: ReadRequest, report: Report) -> ByteReceiveStream:
        """Open a file of a backup; what the stream gives out was checked. It may be read after the turn."""
        ...

    async def list_folder(self, request: FolderRequest, report: Report) -> Listing:
        """Return what a folder of a backup holds."""
        ...

    async def restore(self, request: ApplyRequest, report: Report) -> Applied:
        """Make a directory equal to a backup, or leave it as it was."""
        ...

    async def auto_mode(self, dir: str) -> Literal["overlay", "copy"]:
        """Return what `auto` means for a directory: `overlay` where one would be seen by all who use the directory."""
        ...

    async def overlay_on(self, dir: str) -> OverlayState | None:
        """Return the overlay of ours that is mounted on a directory."""
        ...

    async def lost_overlays(self) -> list[LostOverlay]:
        """Return the overlays that are mounted no more, as far as that is known at little cost; not only in a turn."""
        ...

    async def is_written(self, dir: str) -> bool:
        """Whether anything was written to overlays of ours at or below a directory: it goes with them."""
        ...

    async def exists(self, dir: str) -> bool:
        """Whether a directory is there."""
        ...

    async def unmount(self, dir: str) -> None:
        """Take the overlay on a directory down, and drop what was written to it."""
        ...

    async def prune(self, *, dry_run: bool = False) -> list[str]:
        """Drop overlays that are mounted no more, with what was written to them; return their directories."""
        ...

    async def clear_leftovers(self, *, dry_run: bool = False) -> list[str]:
        """Remove what is kept beside this sandbox for others that are no more; return in words what that was.

        Not during a turn, and it need not run.

        Raises:
            SandboxUnavailableError: Nobody can tell what there is.
        """
        ...

    async def capabilities(self) -> Capabilities:
        """Return what can be done here."""
        ...

    async def close(self) -> None:
        """End what was started for it; it may be used again."""
        ...
