"""What the tools return: the service's results, cut to what a model acts on.

A result is paid for by the token: what is empty is left out, and lists are bounded and say by how much.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from sandpoint.mcp_server.paging import Page, first_of, page_of
from sandpoint.models import (
    Backup,
    BackupPage,
    Changes,
    ContentChanges,
    DeleteResult,
    FileDiff,
    ForkResult,
    Kind,
    RestoreResult,
    VerifyResult,
)

MAX_PATCH = 16_384
"""How many characters of patches a result has."""

MAX_LISTED_TEXT = 300
"""How many characters of a name, a description, and of all metadata, each backup of a list has."""

Seconds = Annotated[datetime, PlainSerializer(lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}", return_type=str)]
"""A time in UTC, told to the second."""


class Result(BaseModel):
    """The base of all results: what is None or empty is left out."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    @model_serializer(mode="wrap")
    def _without_empties(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None and value not in ([], {})}


def _bounded(**lists: Sequence[str]) -> dict[str, Any]:
    """Return the first of each list, and as `more` how many that leaves out."""
    first = {name: list(first_of(paths)) for name, paths in lists.items()}
    more = sum(len(paths) for paths in lists.values()) - sum(map(len, first.values()))
    return first | {"more": more or None}


def _counts(changes: Changes) -> dict[str, Any]:
    return {f"{kind}_count": len(getattr(changes, kind)) for kind in ("added", "modified", "removed")}


More = Annotated[int | None, Field(description="Paths that the lists here leave out.")]


class BackupSummary(Result):
    """A backup. Sizes are in bytes; times are UTC."""

    id: str
    dir: str
    name: str | None = None
    description: str | None = None
    metadata: dict[str, str] | None = None
    cut: Annotated[bool | None, Field(description="True where long texts are not told whole.")] = None
    kind: Kind
    parent_id: str | None = None
    sandbox_id: Annotated[str | None, Field(description="Told where a list has backups of several.")] = None
    size_bytes: Annotated[int, Field(description="What it takes in the store.")]
    total_bytes: Annotated[int, Field(description="The files in it.")]
    file_count: int
    created_at: Seconds
    expires_at: Seconds
    unstable_paths: Annotated[
        list[str], Field(description="Written to during the backup: may be a mix of old and new.")
    ] = []
    skipped_mounts: Annotated[list[str], Field(description="Other filesystems inside: not in the backup.")] = []
    frozen_ms: Annotated[int | None, Field(description="With freeze: for how long the container was paused.")] = None
    more: More = None

    @classmethod
    def of(cls, backup: Backup, *, with_sandbox: bool = False, listed: bool = False) -> "BackupSummary":
        """Cut a backup to its summary; where it is one of many, also its texts."""
        texts = {name: getattr(backup, name) for name in ("name", "description", "metadata")}
        shown = _cut_texts(backup) if listed else texts
        return cls(
            id=backup.id,
            dir=backup.dir,
            **shown,
            cut=shown != texts or None,
            kind=backup.kind,
            parent_id=backup.parent_id,
            sandbox_id=backup.sandbox_id if with_sandbox else None,
            size_bytes=backup.size_bytes,
            total_bytes=backup.total_bytes,
            file_count=backup.file_count,
            created_at=backup.created_at,
            expires_at=backup.expires_at,
            frozen_ms=None if backup.frozen_seconds is None else round(backup.frozen_seconds * 1000),
            **_bounded(unstable_paths=backup.unstable_paths, skipped_mounts=backup.skipped_mounts),
        )


def _cut_texts(backup: Backup) -> dict[str, Any]:
    metadata, room = {}, MAX_LISTED_TEXT
    for key, value in backup.metadata.items():
        room -= len(key) + len(value)
        if room >= 0:
            metadata[key] = value
    return {
        "name": backup.name and backup.name[:MAX_LISTED_TEXT],
        "description": backup.description and backup.description[:MAX_LISTED_TEXT],
        "metadata": metadata,
    }


class BackupList(Result):
    """A page of backups, newest first."""

    count: Annotated[int, Field(description="Backups on this page; all, where next_cursor is absent.")]
    backups: list[BackupSummary]
    next_cursor: Annotated[
        str | None, Field(description="There are more: pass it as cursor, with the same arguments.")
    ] = None

    @model_serializer(mode="wrap")
    def _always_a_list(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        listed: dict[str, Any] = handler(self)
        return {name: value for name, value in listed.items() if value is not None}

    @classmethod
    def of(cls, page: BackupPage) -> "BackupList":
        """Cut a page to its summaries."""
        several = len({backup.sandbox_id for backup in page.backups}) > 1
        backups = [BackupSummary.of(backup, with_sandbox=several, listed=True) for backup in page.backups]
        return cls(count=len(backups), backups=backups, next_cursor=page.next_cursor)


class PathChanges(Result):
    """How many paths differ, and the first of each kind."""

    added_count: int
    modified_count: int
    removed_count: int
    added: list[str] = []
    modified: list[str] = []
    removed: list[str] = []
    more: More = None

    @classmethod
    def of(cls, changes: Changes) -> Self:
        """Count all, and name the first of each kind."""
        return cls(
            **_counts(changes),
            **_bounded(added=changes.added, modified=changes.modified, removed=changes.removed),
        )


class Difference(PathChanges):
    """How many paths differ in all, which ones of this page, and with content how. Paths are sorted."""

    more: Annotated[int | None, Field(description="Paths on later pages.")] = None
    next_cursor: Annotated[
        str | None, Field(description="There are more: pass it as cursor, with the same arguments.")
    ] = None
    changed_between_pages: Annotated[
        bool | None,
        Field(description="The tree changed since the page before: counts are new; paths go on after the last."),
    ] = None
    patch: Annotated[str | None, Field(description="Of this page's paths, from the earlier state to the later.")] = None
    not_in_patch: Annotated[
        dict[str, list[str]],
        Field(
            description="This page's paths by reason: binary; large (file above 1 MiB); limit (the patch would be too "
            "long: call again with these in paths); cut (in part); unreadable; or which attributes alone differ."
        ),
    ] = {}

    @classmethod
    def of(cls, changes: Changes, *, cursor: str | None = None, question: Sequence[object] = ()) -> Self:
        """Count all, and name a page of them.

        Raises:
            InvalidBackupConfigError: The cursor is none, or of another question.
        """
        page = page_of(changes, cursor, question=question)
        patch, reasons = _patch_of(changes, page) if isinstance(changes, ContentChanges) else ("", {})
        return cls(
            **_counts(changes),
            **{kind: list(paths) for kind, paths in page.paths.items()},
            more=page.remaining or None,
            next_cursor=page.next_cursor,
            changed_between_pages=page.has_changed or None,
            patch=patch or None,
            not_in_patch=reasons,
        )


def _patch_of(changes: ContentChanges, page: Page) -> tuple[str, dict[str, list[str]]]:
    named = {path for paths in page.paths.values() for path in paths}
    return _bounded_patch([file for file in changes.files if file.path in named])


def _bounded_patch(files: Sequence[FileDiff]) -> tuple[str, dict[str, list[str]]]:
    """Return the patches that there is room for, and by reason the paths that have none."""
    patch = ""
    first_too_long: FileDiff | None = None
    reasons: dict[str, list[str]] = defaultdict(list)
    for diff in files:
        if len(patch) + len(diff.patch) > MAX_PATCH:
            first_too_long = first_too_long or diff
            reasons["limit"].append(diff.path)
        elif diff.patch:
            patch += diff.patch
        elif diff.omitted or diff.attributes:
            reasons[diff.omitted or ", ".join(diff.attributes)].append(diff.path)
    if first_too_long and not patch:  # what fits into no result is better seen in part than never
        patch = first_too_long.patch[: first_too_long.patch.rfind("\n", 0, MAX_PATCH) + 1]
        reasons["cut"].append(first_too_long.path)
        reasons["limit"].remove(first_too_long.path)
    return patch, {reason: paths for reason, paths in reasons.items() if paths}


class Restored(Result):
    """What a restore did, or with dry_run would do."""

    success: bool
    id: str
    dir: str
    mode: Literal["overlay", "copy"]
    dry_run: Annotated[bool | None, Field(description="True where nothing was touched.")] = None
    changes: Annotated[
        PathChanges | None, Field(description="What happens to the directory; absent in overlay mode.")
    ] = None
    unmounted: Annotated[bool | None, Field(description="True if an overlay was taken down first.")] = None
    undo_id: Annotated[str | None, Field(description="Backup of the state before: restore it to undo.")] = None
    to_undo: str | None = None
    kept_paths: Annotated[list[str], Field(description="Stay because they hold excluded paths.")] = []
    skipped_mounts: Annotated[list[str], Field(description="Other filesystems inside: not touched.")] = []
    taken_in: Annotated[str | None, Field(description="The sandbox_id of the backup, if of another sandbox.")] = None
    more: More = None

    @classmethod
    def of(cls, result: RestoreResult) -> "Restored":
        """Cut a restore's result to what matters next."""
        return cls(
            success=result.success,
            id=result.id,
            dir=result.dir,
            mode=result.mode,
            dry_run=result.dry_run or None,
            changes=None if result.changes is None else PathChanges.of(result.changes),
            unmounted=result.unmounted or None,
            undo_id=result.undo_id,
            to_undo="call restore_backup with backup_id = undo_id" if result.undo_id else None,
            taken_in=result.taken_in,
            **_bounded(kept_paths=result.kept_paths, skipped_mounts=result.skipped_mounts),
        )


class Fork(Result):
    """What happened to one directory of a fork."""

    sandbox: Annotated[str | None, Field(description="Told where several were named.")] = None
    dir: str
    mode: Literal["overlay", "copy"]
    added_count: Annotated[int | None, Field(description="Absent in overlay mode.")] = None
    modified_count: int | None = None
    removed_count: int | None = None
    undo_id: Annotated[str | None, Field(description="Backup of the state before.")] = None
    kept_count: Annotated[int | None, Field(description="Extra directories that hold excluded paths.")] = None
    skipped_mount_count: Annotated[int | None, Field(description="Other filesystems inside: not touched.")] = None

    @classmethod
    def of(cls, result: RestoreResult) -> "Fork":
        """Cut a restore's result to counts: there may be many."""
        changes = result.changes
        counts = {} if changes is None else _counts(changes)
        return cls(
            sandbox=result.sandbox,
            dir=result.dir,
            mode=result.mode,
            undo_id=result.undo_id,
            kept_count=len(result.kept_paths) or None,
            skipped_mount_count=len(result.skipped_mounts) or None,
            **counts,
        )


class Forked(Result):
    """What a fork did, directory by directory."""

    success: bool
    id: str
    forks: list[Fork]
    to_undo: str | None = None

    @classmethod
    def of(cls, result: ForkResult) -> "Forked":
        """Cut each directory's result."""
        has_undo = any(each.undo_id for each in result.restores)
        return cls(
            success=result.success,
            id=result.id,
            forks=[Fork.of(each) for each in result.restores],
            to_undo="call restore_backup with backup_id = an undo_id" if has_undo else None,
        )


_SIZE_ONLY = "Only its size was compared: another program wrote it and noted no digest, so damage inside may go unseen."


class Verified(Result):
    """Whether all that a backup consists of is as it was written."""

    id: str
    ok: bool
    checked_bytes: int
    problem: str | None = None
    note: str | None = None

    @classmethod
    def of(cls, result: VerifyResult) -> "Verified":
        """Take it as it is: it is small."""
        note = _SIZE_ONLY if result.ok and result.size_only else None
        return cls(**result.model_dump(exclude={"size_only"}), note=note)


class Deleted(Result):
    """A backup that is gone."""

    id: str
    deleted: bool
    freed_bytes: Annotated[int, Field(description="0 where other backups still share its data.")]

    @classmethod
    def of(cls, result: DeleteResult) -> "Deleted":
        """Take it as it is: it is small."""
        return cls(**result.model_dump())
