"""BackupService: every operation, read top to bottom as the steps of the design."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Literal, Self

import anyio
from anyio.abc import ByteReceiveStream

from sandpoint.chains import DEFAULT_LIMITS, ChainLimits, shorten
from sandpoint.engine import transfer
from sandpoint.engine.directory import is_within, parse_directory
from sandpoint.errors import (
    BackupExpiredError,
    BackupIntegrityError,
    BackupNotFoundError,
    BackupRestoreError,
    InvalidBackupConfigError,
    NoSuchPathError,
    PlanChangedError,
    SandboxUnavailableError,
    SandpointError,
    StoreUnavailableError,
)
from sandpoint.history import UNDO_NAME, History, note_restore, restored_after
from sandpoint.models import (
    DEFAULT_FOLDER,
    DEFAULT_PATCH_BYTES,
    DEFAULT_TTL,
    FORMAT_VERSION,
    AdoptRequest,
    Applied,
    ApplyRequest,
    Backup,
    BackupMetadata,
    BackupPage,
    BringBackOptions,
    CachedGrant,
    Capabilities,
    Captured,
    CaptureRequest,
    Changes,
    CompareRequest,
    Compression,
    ContentChanges,
    CreateOptions,
    DeleteResult,
    DiffOptions,
    FileKind,
    FileRole,
    FolderOptions,
    FolderRequest,
    ForkOptions,
    ForkResult,
    Freeze,
    Lifecycle,
    Listing,
    ListOptions,
    LostOverlay,
    Mode,
    Parent,
    Progress,
    PruneOptions,
    PruneResult,
    ReadOptions,
    ReadRequest,
    Report,
    RestoreOptions,
    RestoreResult,
    Source,
    StoredBackup,
    StoredFile,
    StoredLayer,
    TreeOptions,
    TrimOptions,
    TrimResult,
    UndoOptions,
    UndoResult,
    UnmountResult,
    VerifyResult,
    WriteGrant,
    check_options,
    parse_backup_id,
)
from sandpoint.recent import RecentManifests
from sandpoint.retention import decide
from sandpoint.sandboxes import AllowedSandboxes, Sandbox, open_sandbox
from sandpoint.settings import Settings, read_settings
from sandpoint.stores import Store, open_store
from sandpoint.stores.base import Position, Upload

_PARENT_SEARCH = 100
"""Backups that are looked at for one to build on, where the sandbox knows of none that is still there."""

_LOOKUPS = 2
"""Folders that are looked up at once: one of a large tree takes some memory."""


async def _silent(_progress: Progress) -> None:
    """Report to nobody."""


class BackupService:
    """Backups of the directories of one sandbox, in one store.

    Every operation checks its arguments first and raises `InvalidBackupConfigError` if they are not fit; all may
    raise `StoreUnavailableError` and `SandboxUnavailableError`. A cancelled operation leaves nothing behind.
    What was started for the sandbox lasts until `close`, or the end of an `async with` block of the service.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        store: Store,
        *,
        compression: Compression = "zstd",
        chain_limits: ChainLimits = DEFAULT_LIMITS,
    ) -> None:
        """Put a sandbox and a store together.

        Args:
            sandbox: Where the directories are.
            store: Where backups are kept.
            compression: Of new layers.
            chain_limits: When a new backup is no longer built on an earlier one.
        """
        self._chain_limits = chain_limits
        self._sandbox = sandbox
        self._store = store
        self._compression: Compression = compression
        self._manifests = RecentManifests()
        self._lookups = anyio.Semaphore(_LOOKUPS)

    async def create(
        self,
        dir: str,
        *,
        name: str | None = None,
        description: str | None = None,
        ttl: float = DEFAULT_TTL,
        use_gitignore: bool = False,
        excludes: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        full: bool = False,
        freeze: bool = False,
        if_changed: bool = False,
        report: Report | None = None,
    ) -> Backup:
        """Back up a directory.

        Args:
            dir: An absolute path without links.
            name: At most 256 characters, to find it by.
            description: At most 4096 characters.
            ttl: Seconds that the backup can be restored for.
            use_gitignore: Leave out what git ignores there.
            excludes: Patterns in gitignore syntax of what else is left out.
            metadata: At most 64 keys and values of the caller's own.
            full: Do not build on an earlier backup.
            freeze: Pause the container for as long as it takes to copy what changed since a look at the directory
                a moment ago: the backup is of one instant. `frozen_seconds` of the result says how long that was.
            if_changed: Make none where nothing has changed since the last one, or since one that was brought back, and
                return that one, whatever its name; it is `unchanged` then. It counts only if it leaves out the same,
                is whole, and can be restored for at least half the ttl.
            report: Told of progress.

        Raises:
            BackupCreateError: It could not be made, and nothing of it is left.
        """
        options = check_options(
            CreateOptions,
            {
                "dir": dir,
                "name": name,
                "description": description,
                "ttl": ttl,
                "use_gitignore": use_gitignore,
                "excludes": _tuple(excludes),
                "metadata": dict(metadata) if isinstance(metadata, Mapping) else {} if metadata is None else metadata,
                "full": full,
                "freeze": freeze,
                "if_changed": if_changed,
            },
        )
        path = self._sandbox.resolve(options.dir)
        if options.freeze:
            await self._sandbox.check_freeze()
        capture = self._capture_frozen if options.freeze else self._capture
        async with self._sandbox.turn():
            if options.if_changed:
                present = await self._find_present(path, options, report or _silent)
                if present is not None:
                    return present
            backup = (await capture(path, options, report or _silent)).backup
            await self._note_capture(path, backup.id)
            return backup

    async def _find_present(self, path: str, options: CreateOptions, report: Report) -> Backup | None:
        """Return a backup that the directory is still the same as, during a turn."""
        await report(Progress(phase="looking for changes"))
        last, on_overlay = await self._last_noted(path)
        # Of an overlay only what was written to it is looked at: that says nothing about other backups than its own.
        for metadata in last if on_overlay else await self._with_brought_back(last):
            if not await self._would_do(metadata, path, options):
                continue
            if not await self._store.has(metadata.files, ttl=options.ttl / 2):
                continue
            parent = self._as_parent(_Base(metadata, metadata))
            request = CaptureRequest(
                dir=path, excludes=options.excludes, use_gitignore=options.use_gitignore, parent=parent, look=True
            )
            if (await self._sandbox.capture(request, report, _grant_nothing)).kind == "delta":
                if metadata is not last[0]:  # what comes next is best built on this one
                    await self._note_capture(path, metadata.id)
                return Backup.from_metadata(metadata).model_copy(update={"unchanged": True})
        return None

    async def _with_brought_back(self, last: "Sequence[BackupMetadata]") -> "Sequence[BackupMetadata]":
        """Return backups, each after what was brought back just after it was taken."""
        captures: dict[str, BackupMetadata] = {}
        for metadata in last:
            restored = restored_after(metadata)
            brought_back = None if restored is None else await self._read_if_there(restored)
            captures |= {each.id: each for each in (brought_back, metadata) if each is not None}
        return tuple(captures.values())

    async def _would_do(self, metadata: BackupMetadata, path: str, options: CreateOptions) -> bool:
        """Whether a backup that is there would do in place of a new one, if nothing has changed."""
        left = metadata.restorable_until - datetime.now(UTC)
        return (
            (metadata.dir, metadata.sandbox_id) == (path, await self._sandbox.id())
            and left >= timedelta(seconds=options.ttl / 2)
            and await self._may_build_on(metadata, options, on_overlay=False)
        )

    async def _note_capture(self, path: str, backup_id: str) -> None:
        # It is made: to be stopped now would leave it without anybody having its id.
        with anyio.CancelScope(shield=True):
            await self._sandbox.note_capture(path, backup_id)

    async def _capture(
        self,
        path: str,
        options: CreateOptions,
        report: Report,
        *,
        cover: tuple[Source, ...] = (),
        freeze: Freeze = "never",
    ) -> "_Capture":
        base = None if options.full else await self._find_base(path, options)
        try:
            return await self._capture_on(base, path, options, report, cover, freeze=freeze)
        except _BaseGoneError:
            return await self._capture_on(None, path, options, report, cover, freeze=freeze)

    async def _capture_frozen(self, path: str, options: CreateOptions, report: Report) -> "_Capture":
        """Capture with a pause; where much changed since the last backup, after another one without a pause.

        That one is only there for the frozen one to be built on, and is hidden again when that is done.
        """
        first = await self._capture(path, options, report, freeze="if_little")
        if first.backup.frozen_seconds is not None:
            return first
        is_needed = False
        try:
            await self._sandbox.note_capture(path, first.backup.id)
            metadata = await self._store.read(first.backup.id)
            frozen = await self._capture_on(_Base(metadata, metadata), path, options, report, (), freeze="always")
            is_needed = frozen.backup.parent_id == first.backup.id
        except _BaseGoneError:
            frozen = await self._capture_on(None, path, options, report, (), freeze="always")
        finally:
            await self._drop(first.backup.id, is_needed=is_needed)
        return frozen

    async def _drop(self, backup_id: str, *, is_needed: bool) -> None:
        # As in `_abandon`: what is left over says itself what it was for.
        with anyio.CancelScope(shield=True), suppress(SandpointError):
            if is_needed:
                await self._store.hide(backup_id)
            else:
                await self.delete(backup_id)

    async def _find_base(self, path: str, options: CreateOptions) -> "_Base | None":
        """Return what a delta may be built on, with as much of its chain as that shall have."""
        found, on_overlay = await self._last_noted(path)
        for metadata in found:
            if await self._may_build_on(metadata, options, on_overlay=on_overlay):
                shortened = shorten(metadata, self._chain_limits, datetime.now(UTC))
                return None if shortened is None else _Base(shortened, metadata)
        return None

    async def _last_noted(self, path: str) -> "tuple[Sequence[BackupMetadata], bool]":
        """Return the last backups of a directory that are still there, the best to build on first.

        And whether an overlay of ours is on it.
        """
        last = await self._sandbox.last_capture(path)
        found = [await self._read_if_there(backup_id) for backup_id in last.backup_ids]
        if not last.on_overlay and found in ([], [None]):
            found = [await self._newest_of(path)]
        return tuple(metadata for metadata in found if metadata is not None), last.on_overlay

    async def _may_build_on(self, metadata: BackupMetadata, options: CreateOptions, *, on_overlay: bool) -> bool:
        if (metadata.excludes, metadata.use_gitignore) != (options.excludes, options.use_gitignore):
            return False
        if metadata.is_foreign:
            return False
        # What an overlay shows is what it is made of, wherever that was taken.
        return on_overlay or metadata.sandbox_id == await self._sandbox.id()

    async def _read_if_there(self, backup_id: str) -> BackupMetadata | None:
        try:
            return await self._store.read(backup_id)
        except (BackupNotFoundError, BackupIntegrityError, InvalidBackupConfigError):
            return None

    async def _newest_of(self, path: str) -> BackupMetadata | None:
        """Return the newest backup of a directory, if it is among the newest of all."""
        seen = 0
        async for metadata in self._store.newest():
            if metadata.dir == path and metadata.sandbox_id == await self._sandbox.id():
                return metadata
            seen += 1
            if seen == _PARENT_SEARCH:
                break
        return None

    async def _capture_on(
        self,
        base: "_Base | None",
        path: str,
        options: CreateOptions,
        report: Report,
        cover: tuple[Source, ...],
        *,
        freeze: Freeze = "never",
    ) -> "_Capture":
        backup_id = _new_id()
        parent = None if base is None else base.metadata
        needs = () if parent is None else (*parent.manifests, *parent.layers)
        async with self._uploading(backup_id, needs, options.ttl) as upload:
            captured = await self._sandbox.capture(
                CaptureRequest(
                    dir=path,
                    excludes=options.excludes,
                    use_gitignore=options.use_gitignore,
                    compression=self._compression,
                    staging=upload.staging,
                    parent=None if base is None else self._as_parent(base),
                    cover=cover,
                    freeze=freeze,
                ),
                report,
                partial(self._grant, upload),
            )
            await self._accept(upload, captured)
            if freeze != "never" and captured.frozen_seconds is None:
                options = _only_as_base(options)
            metadata = _describe(backup_id, path, options, await self._sandbox.id(), upload, captured, parent)
            await self._store.commit(metadata)
        return _Capture(
            Backup.from_metadata(metadata, captured),
            manifests=tuple(manifest.sha256 or "" for manifest in metadata.manifests),
            has_changed=captured.manifest is not None,
        )

    async def _grant(self, upload: Upload, role: FileRole, file: StoredFile) -> WriteGrant:
        return await self._store.grant_put(upload.key_of(role), file)

    async def _accept(self, upload: Upload, captured: Captured) -> None:
        for key, sent in ((upload.layer_key, captured.layer), (upload.manifest_key, captured.manifest)):
            if sent is not None:
                await self._store.accept(key, sent)

    def _as_parent(self, base: "_Base") -> Parent:
        parent, whole = base.metadata, base.whole
        return Parent(
            manifests=tuple(map(self._source, parent.manifests)),
            layers=tuple(map(self._source, parent.layers)),
            dropped=tuple(map(self._source, whole.manifests[len(parent.manifests) :])),
            file_count=whole.file_count,
            total_bytes=whole.total_bytes,
        )

    @asynccontextmanager
    async def _uploading(self, backup_id: str, needs: Collection[StoredLayer], ttl: float) -> AsyncIterator[Upload]:
        try:
            upload = await self._store.begin(backup_id, needs, ttl=ttl)
        except BackupIntegrityError as error:
            raise _BaseGoneError from error
        except BaseException:
            await self._abandon(backup_id)
            raise
        try:
            yield upload
        except BaseException:
            await self._abandon(backup_id)
            raise

    async def _abandon(self, backup_id: str) -> None:
        # What failed before is the news, not that this fails too: what is left over ends by itself, or with a prune.
        with anyio.CancelScope(shield=True), suppress(SandpointError):
            await self._store.abandon(backup_id)

    async def restore(
        self,
        backup_id: str,
        *,
        dir: str | None = None,
        mode: Mode = "auto",
        paths: Iterable[str] = (),
        dry_run: bool = False,
        undo: bool = True,
        expected: str | None = None,
        report: Report | None = None,
    ) -> RestoreResult:
        """Bring a backup back.

        Args:
            backup_id: Which.
            dir: Where to, if not where it was taken; created if missing.
            mode: `copy` makes the directory itself equal to the backup; `overlay` mounts the backup over it, until
                a reboot or `unmount`; `auto` is what suits the sandbox (`copy` on this machine).
            paths: Restore only these, relative to the directory (mode `copy`).
            dry_run: Change nothing, and return what would change.
            undo: Back up the present state first, if it differs, and return that backup's id as `undo_id`.
            expected: The `Changes.fingerprint` of a dry run: nothing is done unless it would still say the same.
            report: Told of progress.

        Raises:
            PlanChangedError: It would not say what is expected.
            BackupNotFoundError, BackupExpiredError: There is no such backup, or no more.
            BackupIntegrityError: It is damaged; found before the directory is touched.
            BackupCreateError: The present state could not be backed up; nothing was changed.
            BackupRestoreError: It failed; the directory is as before, or the message says otherwise.
        """
        options = check_options(
            RestoreOptions,
            {
                "backup_id": backup_id,
                "dir": dir,
                "mode": mode,
                "paths": _tuple(paths),
                "dry_run": dry_run,
                "undo": undo,
            },
        )
        _refuse_paths_of_overlay(options)
        report = report or _silent
        metadata = await self._restorable(options.backup_id)
        path = self._sandbox.resolve(options.dir if options.dir is not None else metadata.dir)
        async with self._sandbox.turn(), self._unless_gone(metadata):
            await self._restorable(metadata.id)  # it may have gone while others had their turn
            contents = await self._contents(metadata, report)
            if expected is not None:
                await self._check_plan(_comparison(metadata, contents, path, options.paths), expected, report)
            return await self._restore_to(path, metadata, contents, options, report)

    async def fork(
        self,
        backup_id: str,
        dirs: Iterable[str],
        *,
        mode: Mode = "auto",
        paths: Iterable[str] = (),
        dry_run: bool = False,
        undo: bool = True,
        expected: Mapping[str, str] | None = None,
        report: Report | None = None,
    ) -> ForkResult:
        """Bring a backup back to several directories: independent trees, of layers that are fetched only once.

        Args:
            backup_id: Which.
            dirs: Where to, none of them within another; created if missing.
            mode: As for `restore`. In mode `overlay` all share the read-only layers.
            paths: Restore only these, relative to the directories (mode `copy`).
            dry_run: Change nothing, and return what would change.
            undo: Back up the present state of each first, if it differs.
            expected: As for `restore`, by directory: nothing is done in any unless all of these are as expected.
            report: Told of progress.

        Raises:
            PlanChangedError: A directory is not as expected; none was touched.
            BackupNotFoundError, BackupExpiredError: There is no such backup, or no more.
            BackupIntegrityError: It is damaged; found before a directory is touched.
            BackupCreateError, BackupRestoreError: It failed for one directory, and was not tried for those after it.
                The message names those that are done; they stay so.
        """
        options = check_options(
            ForkOptions,
            {
                "backup_id": backup_id,
                "dirs": _tuple(dirs),
                "mode": mode,
                "paths": _tuple(paths),
                "dry_run": dry_run,
                "undo": undo,
            },
        )
        _refuse_paths_of_overlay(options)
        report = report or _silent
        targets = [self._sandbox.resolve(each) for each in options.dirs]
        _refuse_overlap(targets)
        await self._restorable(options.backup_id)
        done: list[RestoreResult] = []
        async with self._sandbox.turn():
            metadata = await self._restorable(options.backup_id)
            async with self._unless_gone(metadata):
                contents = await self._contents(metadata, report)
                for each, fingerprint in (expected or {}).items():
                    path = self._sandbox.resolve(each)
                    await self._check_plan(_comparison(metadata, contents, path, options.paths), fingerprint, report)
            for path in targets:
                if not metadata.is_foreign:
                    contents = self._granted(metadata)  # those before may have taken longer than grants last
                try:
                    async with self._unless_gone(metadata):
                        done.append(await self._restore_to(path, metadata, contents, options, report))
                except SandpointError as error:
                    raise with_done(error, done) from error
        return ForkResult(success=True, id=metadata.id, restores=tuple(done))

    async def _check_plan(self, comparison: CompareRequest, expected: str, report: Report) -> None:
        changes = await self._sandbox.compare(comparison, report)
        if changes.fingerprint() != expected:
            raise PlanChangedError(
                f"{comparison.dir} is no longer what it was when its restore was planned: something else wrote to it, "
                "and nothing was touched; try again to see the new plan"
            )

    async def _contents(self, metadata: BackupMetadata, report: Report) -> StoredBackup:
        """Return what a backup consists of, with leave to read it; during a turn."""
        return await self._adopt(metadata, report) if metadata.is_foreign else self._granted(metadata)

    def _granted(self, metadata: BackupMetadata) -> StoredBackup:
        return StoredBackup(
            manifests=tuple(map(self._source, metadata.manifests)), layers=tuple(map(self._source, metadata.layers))
        )

    async def _adopt(self, metadata: BackupMetadata, report: Report) -> StoredBackup:
        """Make a layer and a manifest of our own of what another program wrote; they last for the turn."""
        (archive,) = metadata.layers
        request = AdoptRequest(size=archive.size, grant=self._store.grant_get(archive))
        adopted = await self._sandbox.adopt(request, report)
        manifest, layer = (
            Source(size=each.size, sha256=each.sha256, grant=CachedGrant())
            for each in (adopted.manifest, adopted.layer)
        )
        return StoredBackup(manifests=(manifest,), layers=(layer,), whole_seconds=True)

    def _source(self, stored: StoredLayer) -> Source:
        assert stored.sha256 is not None, "only foreign backups have no digests"
        return Source(size=stored.size, sha256=stored.sha256, grant=self._store.grant_get(stored))

    async def _restore_to(
        self, path: str, metadata: BackupMetadata, contents: StoredBackup, options: BringBackOptions, report: Report
    ) -> RestoreResult:
        """Bring a backup back to one directory, during a turn."""
        comparison = _comparison(metadata, contents, path, options.paths)
        mode = await self._mode(path, options)
        taken_in = metadata.sandbox_id if metadata.sandbox_id != await self._sandbox.id() else None
        if options.dry_run:
            changes = await self._sandbox.compare(comparison, report)
            overlay_goes = await self._overlay_goes(comparison)
            return _planned(metadata.id, path, mode, changes, taken_in, unmounted=overlay_goes)
        way_back = await self._keep_way_back(metadata, comparison, report) if options.undo else None
        undo_id = None if way_back is None else way_back.backup.id
        if way_back is not None and not metadata.is_foreign:  # it may have taken longer than grants last
            comparison = _comparison(metadata, self._granted(metadata), path, options.paths)
        applied = await self._apply(metadata.id, comparison, mode, way_back, report)
        if way_back is not None and not _is_needed(way_back, applied, metadata):
            await self._forget(way_back)
            undo_id = None
        if undo_id is not None and applied.mode == "copy":
            await self._note_capture(path, undo_id)
        return RestoreResult(
            success=True,
            id=metadata.id,
            dir=path,
            mode=applied.mode,
            changes=applied.changes,
            unmounted=applied.unmounted,
            undo_id=undo_id,
            kept_paths=applied.kept_paths,
            skipped_mounts=applied.skipped_mounts,
            taken_in=taken_in,
        )

    async def _mode(self, path: str, options: BringBackOptions) -> Literal["overlay", "copy"]:
        if options.mode != "auto":
            return options.mode
        return "copy" if options.paths else await self._sandbox.auto_mode(path)

    async def _read(self, backup_id: str) -> BackupMetadata:
        """Return what is known of a backup that may be used here."""
        metadata = await self._store.read(backup_id)
        if not await self._may_use(metadata):
            raise InvalidBackupConfigError(
                f"backup_id: backup {metadata.id} is of {metadata.dir}, outside the allowed directories; use one that "
                "list shows, or set SANDPOINT_ALLOWED_DIRS"
            )
        return metadata

    async def _may_use(self, metadata: BackupMetadata) -> bool:
        """Whether a backup holds nothing of this sandbox but what may be read here; paths in others mean nothing."""
        if self._sandbox.is_allowed(metadata.dir):
            return True
        try:
            return metadata.sandbox_id != await self._sandbox.id()
        except (SandboxUnavailableError, InvalidBackupConfigError):
            return False  # whether it is of this sandbox cannot be told

    @asynccontextmanager
    async def _unless_gone(self, *used: BackupMetadata | None) -> AsyncIterator[None]:
        """Say of a backup that is damaged because somebody deleted it meanwhile that it is gone.

        Raises:
            BackupNotFoundError: That is so.
        """
        try:
            yield
        except BackupIntegrityError:
            for metadata in used:
                if metadata is not None:
                    await self._store.read(metadata.id)
            raise

    async def _restorable(self, backup_id: str) -> BackupMetadata:
        metadata = await self._read(backup_id)
        if metadata.is_expired():
            raise BackupExpiredError(
                f"backup {metadata.id} expires at {metadata.expires_at:%Y-%m-%d %H:%M:%S} UTC and can be restored "
                f"until {metadata.restorable_until:%H:%M:%S} only; choose a younger one, and give the next a longer ttl"
            )
        return metadata

    async def _keep_way_back(
        self, metadata: BackupMetadata, comparison: CompareRequest, report: Report
    ) -> "_Capture | None":
        """Back up what the restore would change: no more is excluded than the restore itself leaves alone."""
        if not await self._sandbox.exists(comparison.dir):
            return None
        overlay_goes = await self._overlay_goes(comparison)
        options = CreateOptions(
            dir=comparison.dir,
            name=UNDO_NAME,
            description=f"{comparison.dir} before backup {metadata.id} was restored to it",
            excludes=() if overlay_goes else comparison.excludes,
            use_gitignore=comparison.use_gitignore and not overlay_goes,
            metadata=note_restore(metadata, comparison.dir, await self._sandbox.id(), len(comparison.paths)),
            ttl=await self._undo_ttl(),
        )
        return await self._capture(comparison.dir, options, report, cover=comparison.manifests)

    async def _overlay_goes(self, comparison: CompareRequest) -> bool:
        # Overlays are taken down whole, with what was written in them to excluded paths.
        return not comparison.paths and await self._sandbox.is_written(comparison.dir)

    async def _undo_ttl(self) -> float:
        longest = await self._store.longest_ttl()
        return DEFAULT_TTL if longest is None else min(DEFAULT_TTL, longest)

    async def _apply(
        self,
        backup_id: str,
        comparison: CompareRequest,
        mode: Literal["overlay", "copy"],
        way_back: "_Capture | None",
        report: Report,
    ) -> Applied:
        request = ApplyRequest(
            **dict(comparison),
            backup_id=backup_id,
            mode=mode,
            captured_as=() if way_back is None else way_back.manifests,
        )
        try:
            return await self._sandbox.restore(request, report)
        except BackupRestoreError as error:
            if not error.partly or way_back is None:
                await self._forget(way_back)
                raise
            undo = f"or restore the state before, backup {way_back.backup.id}"
            raise BackupRestoreError(f"{error}; {undo}", partly=True) from error
        except SandboxUnavailableError as error:
            if not error.lost or way_back is None:
                await self._forget(way_back)
                raise
            before = f"{error}; the state before is backup {way_back.backup.id}"
            raise SandboxUnavailableError(before, lost=True) from error
        except BaseException:
            await self._forget(way_back)
            raise

    async def _forget(self, way_back: "_Capture | None") -> None:
        if way_back is None:
            return
        backup = way_back.backup
        # What failed before is the news, not that this fails too: what is left over is listed, and pruned.
        with anyio.CancelScope(shield=True), suppress(SandpointError):
            await self._store.hide(backup.id)
            await self._store.reclaim([backup.id])

    async def undo(self, dir: str, *, dry_run: bool = False, report: Report | None = None) -> UndoResult:
        """Go back one step: to the last state that was backed up and that the directory is not in just now.

        Where it has changed since its last backup, or since the one that it was brought back to, that is this one;
        else the one before, and so on with each call. States that were gone back from are not come upon again, if
        backups were taken since. The state before is kept, as with `restore`.

        Args:
            dir: Which directory; where an overlay of ours is on it, there will be one again.
            dry_run: Change nothing, and return what would change.
            report: Told of progress.

        Raises:
            BackupNotFoundError: There is no such backup, or no more.
            BackupIntegrityError, BackupCreateError, BackupRestoreError: As for `restore`.
        """
        options = check_options(UndoOptions, {"dir": dir, "dry_run": dry_run})
        report = report or _silent
        path = self._sandbox.resolve(options.dir)
        async with self._sandbox.turn():
            metadata = await self._state_before(path, report)
            mode: Mode = "auto" if await self._sandbox.overlay_on(path) is None else "overlay"
            wanted = BringBackOptions(backup_id=metadata.id, mode=mode, dry_run=options.dry_run)
            async with self._unless_lost(metadata):
                contents = await self._contents(metadata, report)
                restored = await self._restore_to(path, metadata, contents, wanted, report)
        return UndoResult(**dict(restored), backup=Backup.from_metadata(metadata))

    async def _state_before(self, path: str, report: Report) -> BackupMetadata:
        own = await self._sandbox.id()
        taken = [each async for each in self._store.newest() if (each.dir, each.sandbox_id) == (path, own)]
        is_there = await self._sandbox.exists(path)
        same: set[tuple[str, ...]] = set()
        for backup_id in History(taken).back():
            metadata = await self._read_if_there(backup_id)
            if metadata is None or metadata.is_expired() or not await self._may_use(metadata):
                continue
            files = tuple(stored.key for stored in metadata.files)
            if files in same:
                continue
            if not is_there or await self._differs(path, metadata, report):
                return metadata
            same.add(files)
        why = "it has no backup that can be restored" if not same else "it is in the state of the oldest one"
        raise BackupNotFoundError(
            f"there is no step back for {path}: {why}; list shows the backups that there are, and restore brings back "
            "any of them"
        )

    async def _differs(self, path: str, metadata: BackupMetadata, report: Report) -> bool:
        async with self._unless_lost(metadata):
            comparison = _comparison(metadata, await self._contents(metadata, report), path)
            # A look with `git status` after a step back is no work to be undone: it would hold up every further step.
            comparison = comparison.model_copy(update={"git_stamps": False})
            return bool(await self._sandbox.compare(comparison, report))

    @asynccontextmanager
    async def _unless_lost(self, metadata: BackupMetadata) -> AsyncIterator[None]:
        """Say of a step that is damaged how to get past it: to pass it by silently would undo more than was asked for.

        Raises:
            BackupIntegrityError, BackupNotFoundError: It is damaged, or gone meanwhile.
        """
        try:
            async with self._unless_gone(metadata):
                yield
        except BackupIntegrityError as error:
            raise BackupIntegrityError(f"{error}. To go to the step before it, delete backup {metadata.id}") from error

    async def nearest(self, dir: str) -> str | None:
        """Return the directory or the nearest one above it that has backups to restore, None if there is none."""
        wanted = parse_directory(dir)
        own = await self._sandbox.id()
        nearest: str | None = None
        async for metadata in self._store.newest():
            if metadata.sandbox_id == own and is_within(wanted, metadata.dir) and not metadata.is_expired():
                nearest = max(nearest or "", metadata.dir, key=len)
                if nearest == wanted:
                    break
        return nearest

    async def trim(self, dir: str, *, name: str, keep: int) -> TrimResult:
        """Delete the backups of one directory and name, but the newest so many that can be restored.

        Args:
            dir: Of which directory.
            name: Of which name; others stay.
            keep: How many stay.

        Raises:
            StoreUnavailableError: They may be deleted, but not all space was freed.
        """
        options = check_options(TrimOptions, {"dir": dir, "name": name, "keep": keep})
        if options.name == UNDO_NAME:
            raise InvalidBackupConfigError(
                f"name: backups named {UNDO_NAME!r} are the ways back from restores, which are not deleted so; use "
                "another name"
            )
        path = self._sandbox.resolve(options.dir)
        # In turn: no restore here loses what it reads.
        async with self._sandbox.turn():
            wanted = (path, await self._sandbox.id(), options.name)
            taken = [each async for each in self._store.newest() if (each.dir, each.sandbox_id, each.name) == wanted]
            kept = [each for each in taken if not each.is_expired()][: options.keep]
            gone = [each for each in taken if each not in kept]
            removed = await self._hide_all(each.id for each in gone)
            freed = 0
            if removed:
                owners = {stored.key.split("/")[1] for each in gone for stored in each.files}
                with suppress(BackupIntegrityError):  # another's metadata is damaged: what it needs is not known
                    _, freed = await self._store.reclaim({*removed, *owners})
        return TrimResult(removed=removed, freed_bytes=freed)

    async def get(self, backup_id: str) -> Backup:
        """Return what is known of one backup, also of one that has expired.

        Raises:
            BackupNotFoundError, BackupIntegrityError: There is no such backup, or its metadata is damaged.
        """
        return Backup.from_metadata(await self._read(parse_backup_id(backup_id)))

    async def list(
        self,
        *,
        dir: str | None = None,
        name: str | None = None,
        sandbox_id: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
        include_expired: bool = False,
    ) -> BackupPage:
        """List backups, newest first, but those of directories here that are not allowed.

        Args:
            dir: Only those of this directory.
            name: Only those of this name.
            sandbox_id: Only those of this sandbox, as `Backup.sandbox_id` has it.
            limit: At most so many, up to 1000.
            cursor: The `next_cursor` of the page before.
            include_expired: Also those that can no longer be restored.

        Raises:
            InvalidBackupConfigError: An argument is not what it has to be; a directory is relative, for instance.
        """
        options = check_options(
            ListOptions,
            {
                "dir": dir,
                "name": name,
                "sandbox_id": sandbox_id,
                "limit": limit,
                "cursor": cursor,
                "include_expired": include_expired,
            },
        )
        wanted_dir = parse_directory(options.dir) if options.dir is not None else None
        after = Position.from_cursor(options.cursor) if options.cursor is not None else None
        now = datetime.now(UTC)
        found: list[BackupMetadata] = []
        async for metadata in self._store.newest(after, about=options.limit + 1):
            if (
                (wanted_dir is None or metadata.dir == wanted_dir)
                and options.name in {None, metadata.name}
                and options.sandbox_id in {None, metadata.sandbox_id}
                and (options.include_expired or not metadata.is_expired(now))
                and await self._may_use(metadata)
            ):
                found.append(metadata)
                if len(found) > options.limit:
                    break
        page = found[: options.limit]
        more = len(found) > options.limit
        return BackupPage(
            backups=tuple(Backup.from_metadata(metadata) for metadata in page),
            next_cursor=Position.of(page[-1]).to_cursor() if more else None,
        )

    async def diff(
        self,
        backup_id: str,
        other_id: str | None = None,
        *,
        dir: str | None = None,
        paths: Iterable[str] = (),
        report: Report | None = None,
    ) -> Changes:
        """Return what changed since a backup: in the directory as it is, or up to another backup.

        Args:
            backup_id: The earlier state.
            other_id: A backup with the later state; by default the directory as it is now.
            dir: Compare with this directory instead of the one it was taken of.
            paths: Compare only these, relative to the directory.
            report: Told of progress.

        Raises:
            BackupNotFoundError, BackupIntegrityError: There is no such backup, or it is damaged.
            BackupRestoreError: The directory cannot be read.
        """
        options = _diff_options(backup_id, other_id, dir, paths)
        report = report or _silent
        metadata = await self._read(options.backup_id)
        other = None if options.other_id is None else await self._read(options.other_id)
        async with self._sandbox.turn(), self._unless_gone(metadata, other):
            older, newer = await self._sides(options, metadata, other, report)
            if newer is not None:
                return await self._sandbox.compare_backups(older, newer, report)
            back = await self._sandbox.compare(older, report)
        return Changes(added=back.removed, modified=back.modified, removed=back.added)

    async def _sides(
        self, options: DiffOptions, metadata: BackupMetadata, other: BackupMetadata | None, report: Report
    ) -> tuple[CompareRequest, CompareRequest | None]:
        """Return what is compared: a backup with its directory or the one that is asked for, or with another backup."""
        path = self._sandbox.resolve(options.dir or metadata.dir) if other is None else metadata.dir
        older = _comparison(metadata, await self._contents(metadata, report), path, options.paths)
        if other is None:
            return older, None
        return older, _comparison(other, await self._contents(other, report), other.dir, options.paths)

    async def diff_contents(
        self,
        backup_id: str,
        other_id: str | None = None,
        *,
        dir: str | None = None,
        paths: Iterable[str] = (),
        max_bytes: int = DEFAULT_PATCH_BYTES,
        report: Report | None = None,
    ) -> ContentChanges:
        """Return what changed since a backup as `diff` does, with a patch for each text that did.

        Args:
            backup_id: The earlier state.
            other_id: A backup with the later state; by default the directory as it is now.
            dir: Compare with this directory instead of the one it was taken of.
            paths: Compare only these, relative to the directory.
            max_bytes: Of all patches: what comes after, in order of the paths, is named without one.
            report: Told of progress.

        Raises:
            BackupNotFoundError, BackupExpiredError: There is no such backup, or no more.
            BackupIntegrityError: It is damaged; no contents are returned.
            BackupRestoreError: The directory cannot be read.
        """
        options = _diff_options(backup_id, other_id, dir, paths, max_bytes)
        metadata = await self._restorable(options.backup_id)
        other = None if options.other_id is None else await self._restorable(options.other_id)
        report = report or _silent
        async with self._sandbox.turn(), self._unless_gone(metadata, other):
            older, newer = await self._sides(options, metadata, other, report)
            return await self._sandbox.compare_contents(older, newer, options.max_bytes, report)

    async def open_file(self, backup_id: str, path: str, *, report: Report | None = None) -> ByteReceiveStream:
        """Open a file of a backup, which is not restored for it: `async with await service.open_file(...) as stream`.

        Nobody has to wait for the stream to be read, and what becomes of the backup meanwhile does not matter to it.

        Args:
            backup_id: Which.
            path: Relative to the directory, as `diff` returns it. Links are not followed.
            report: Told of progress.

        Raises:
            BackupNotFoundError, BackupExpiredError: There is no such backup, or no more.
            InvalidBackupConfigError: There is no such file in it, or it is a directory, a link or a node.
            BackupIntegrityError: The backup is damaged; found before the first byte is given out.
            BackupRestoreError: The backup cannot be read on this machine.
        """
        options = check_options(ReadOptions, {"backup_id": backup_id, "path": path})
        metadata = await self._restorable(options.backup_id)
        report = report or _silent
        async with self._sandbox.turn(), self._unless_gone(metadata):
            await self._restorable(metadata.id)  # it may have gone while others had their turn
            request = ReadRequest(**dict(await self._contents(metadata, report)), path=options.path)
            return await self._sandbox.open_file(request, report)

    async def tree(
        self,
        backup_id: str,
        path: str = "",
        *,
        starts_with: str = "",
        kinds: Iterable[FileKind] = (),
        limit: int = DEFAULT_FOLDER,
        cursor: str | None = None,
        report: Report | None = None,
    ) -> Listing:
        """Return what a backup, also one that has expired, has at a path, and if that is a folder, just below it.

        Nobody has to wait for it, and the sandbox need not be there, but for a backup that another program made:
        what that holds is found out by reading it.

        Args:
            backup_id: Which.
            path: Relative to the directory, as `diff` returns it; empty for all of it. Links are not followed.
            starts_with: Only names that do.
            kinds: Only entries of these; by default of any.
            limit: At most so many entries, up to 10,000.
            cursor: The `next_cursor` of the page before.
            report: Told of progress.

        Raises:
            BackupNotFoundError: There is no such backup.
            NoSuchPathError: There is no such path in it.
            BackupIntegrityError: The backup is damaged.
        """
        options = check_options(
            TreeOptions,
            {
                "backup_id": backup_id,
                "path": path,
                "starts_with": starts_with,
                "kinds": _tuple(kinds),
                "limit": limit,
                "cursor": cursor,
            },
        )
        folder = FolderOptions(**options.model_dump(exclude={"backup_id"}))
        metadata = await self._read(options.backup_id)
        async with self._unless_gone(metadata):
            if metadata.is_foreign:
                return await self._list_foreign(metadata, folder, report or _silent)
            return await self._list_folder(metadata, folder)

    async def _list_foreign(self, metadata: BackupMetadata, options: FolderOptions, report: Report) -> Listing:
        async with self._sandbox.turn():
            request = FolderRequest(**dict(await self._adopt(metadata, report)), options=options)
            try:
                return await self._sandbox.list_folder(request, report)
            except InvalidBackupConfigError as error:  # an engine elsewhere has but one name for it
                raise NoSuchPathError(str(error)) from error

    async def _list_folder(self, metadata: BackupMetadata, options: FolderOptions) -> Listing:
        from sandpoint.engine.lookup import Lookup, list_folder

        sources = [self._source(stored) for stored in metadata.manifests]

        def look(check: Callable[[], None]) -> Listing:
            contents = [self._manifests.content(source, self._store.relay, check) for source in sources]
            return list_folder(Lookup(contents), options, check)

        async with self._lookups:
            return await anyio.to_thread.run_sync(lambda: look(anyio.from_thread.check_cancelled))

    async def verify(self, backup_id: str, *, report: Report | None = None) -> VerifyResult:
        """Read all that a backup consists of again, and compare it with its digests.

        Raises:
            BackupNotFoundError: There is no such backup.
        """
        report = report or _silent
        wanted = parse_backup_id(backup_id)
        checked = 0
        try:
            metadata = await self._read(wanted)
            if metadata.is_foreign:
                return await self._verify_size(metadata)
            total = sum(stored.size for stored in metadata.files)
            for stored in metadata.files:
                await report(Progress(phase="verifying", done=checked, total=total))
                await self._check(stored)
                checked += stored.size
            await self._check_manifests(metadata)
            await report(Progress(phase="verifying", done=checked, total=total))
        except BackupIntegrityError as error:
            return VerifyResult(id=wanted, ok=False, checked_bytes=checked, problem=str(error))
        return VerifyResult(id=wanted, ok=True, checked_bytes=checked)

    async def _verify_size(self, metadata: BackupMetadata) -> VerifyResult:
        """Compare what can be compared where another program noted no digest."""
        (archive,) = metadata.layers
        grant = self._store.grant_get(archive)
        await self._in_thread(lambda check: transfer.check_size(grant, archive.size, self._store.relay, check))
        return VerifyResult(id=metadata.id, ok=True, checked_bytes=archive.size, size_only=True)

    async def _check(self, stored: StoredLayer) -> None:
        source = self._source(stored)
        await self._in_thread(lambda check: transfer.check_source(source, self._store.relay, check))

    async def _check_manifests(self, metadata: BackupMetadata) -> None:
        sources = [self._source(stored) for stored in metadata.manifests]
        await self._in_thread(lambda check: transfer.read_manifest(sources, self._store.relay, check))

    async def _in_thread(self, work: Callable[[Callable[[], None]], object]) -> None:
        await anyio.to_thread.run_sync(lambda: work(anyio.from_thread.check_cancelled))

    async def delete(self, backup_id: str) -> DeleteResult:
        """Delete a backup: hidden at once, its files removed unless another backup names them.

        Raises:
            BackupNotFoundError: There is no such backup.
        """
        wanted = parse_backup_id(backup_id)
        owners = None
        with suppress(BackupIntegrityError):  # damaged metadata is no reason to keep it
            metadata = await self._read(wanted)
            owners = {wanted, *(stored.key.split("/")[1] for stored in metadata.files)}
        await self._store.hide(wanted)
        freed = 0
        try:
            with suppress(BackupIntegrityError):  # another's metadata is damaged: what it needs is not known
                _, freed = await self._store.reclaim(owners)
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                f"backup {wanted} is deleted, but no space was freed: {error}; a prune frees it"
            ) from error
        return DeleteResult(id=wanted, freed_bytes=freed)

    async def prune(
        self,
        *,
        keep_last: int | None = None,
        keep_hourly: int | None = None,
        keep_daily: int | None = None,
        keep_weekly: int | None = None,
        keep_names: Iterable[str] = (),
        dir: str | None = None,
        dry_run: bool = False,
    ) -> PruneResult:
        """Delete backups that are over or that no rule keeps, and reclaim what no backup names.

        Rules are for each directory of each sandbox; without any, only expired backups are deleted. What goes
        besides: files of backups that were never finished, overlays that are mounted no more, and what is kept for
        containers that are no more. Where the sandbox cannot be reached, the store is pruned all the same, and the
        result says what was not done.

        Args:
            keep_last: Keep the newest so many.
            keep_hourly: Keep the newest of each of the last so many hours that have any, in UTC.
            keep_daily: The same for days.
            keep_weekly: The same for weeks.
            keep_names: Keep those of a name that one of these shell patterns matches.
            dir: Delete only backups of this directory.
            dry_run: Change nothing, and return what would go.

        Raises:
            BackupIntegrityError: A backup's metadata is damaged: backups are deleted, but no space is freed.
        """
        options = check_options(
            PruneOptions,
            {
                "keep_last": keep_last,
                "keep_hourly": keep_hourly,
                "keep_daily": keep_daily,
                "keep_weekly": keep_weekly,
                "keep_names": _tuple(keep_names),
                "dir": dir,
                "dry_run": dry_run,
            },
        )
        wanted_dir = parse_directory(options.dir) if options.dir is not None else None
        async with AsyncExitStack() as turn:
            overlays, problem = await self._prune_sandbox(turn, dry_run=options.dry_run)
            found = [each async for each in self._store.newest() if wanted_dir is None or each.dir == wanted_dir]
            decisions = decide(found, options, datetime.now(UTC))
            removed = tuple(decision.id for decision in decisions if not decision.keep)
            reclaimed: Sequence[str]
            if options.dry_run:
                reclaimed, freed = await self._store.reclaimable(removed)
            else:
                removed = await self._hide_all(removed)
                reclaimed, freed = await self._reclaim_after(removed)
        leftovers, other_problem = await self._clear_leftovers(dry_run=options.dry_run)
        return PruneResult(
            removed=removed,
            abandoned=(*sorted({*reclaimed} - {*removed}), *overlays),
            leftovers=leftovers,
            sandbox_problem=problem or other_problem,
            freed_bytes=freed,
            decisions=decisions,
            dry_run=options.dry_run,
        )

    async def _prune_sandbox(self, turn: AsyncExitStack, *, dry_run: bool) -> tuple[Sequence[str], str | None]:
        """Drop lost overlays; the turn then lasts on. Return them, and why that could not be done."""
        try:
            # In turn: no restore here loses what it reads, or the undo that it has just made.
            await turn.enter_async_context(self._sandbox.turn())
            return await self._sandbox.prune(dry_run=dry_run), None
        except (SandboxUnavailableError, InvalidBackupConfigError) as error:
            return (), str(error)

    async def _clear_leftovers(self, *, dry_run: bool) -> tuple[tuple[str, ...], str | None]:
        try:
            return tuple(await self._sandbox.clear_leftovers(dry_run=dry_run)), None
        except (SandboxUnavailableError, InvalidBackupConfigError) as error:
            return (), str(error)

    async def _hide_all(self, backup_ids: Iterable[str]) -> tuple[str, ...]:
        """Hide backups; return those that nobody else deleted meanwhile."""
        hidden = []
        for backup_id in backup_ids:
            with suppress(BackupNotFoundError):
                await self._store.hide(backup_id)
                hidden.append(backup_id)
        return tuple(hidden)

    async def _reclaim_after(self, removed: Collection[str]) -> tuple[Sequence[str], int]:
        try:
            return await self._store.reclaim()
        except BackupIntegrityError as error:
            raise BackupIntegrityError(
                f"{len(removed)} backups were deleted, but no space was freed: {error}; delete that one and prune again"
            ) from error
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                f"{len(removed)} backups were deleted, but not all space was freed: {error}; prune again"
            ) from error

    async def unmount(self, dir: str, *, undo: bool = True, report: Report | None = None) -> UnmountResult:
        """Take an overlay down: the directory shows again what was there before it was restored.

        Args:
            dir: Where the overlay is.
            undo: Back up what it shows first, if anything was written to it.
            report: Told of progress.
        """
        path = self._sandbox.resolve(dir)
        async with self._sandbox.turn():
            overlay = await self._sandbox.overlay_on(path)
            if overlay is None:
                raise InvalidBackupConfigError(
                    f"dir: no overlay of Sandpoint is mounted on {path}; those that are, and those that went with a "
                    f"restart, are listed by: sandpoint doctor{self._sandbox.option}"
                )
            undo_id = None
            if undo and await self._sandbox.is_written(path):
                description = f"{path} before the overlay of backup {overlay.backup_id} was taken down"
                options = CreateOptions(dir=path, name=UNDO_NAME, description=description, ttl=await self._undo_ttl())
                undo_id = (await self._capture(path, options, report or _silent)).backup.id
            await self._sandbox.unmount(path)
        return UnmountResult(dir=path, backup_id=overlay.backup_id, undo_id=undo_id)

    async def lifecycle(self) -> Lifecycle:
        """Return the rules by which the server of a bucket itself deletes files, ours and those of others.

        Raises:
            InvalidBackupConfigError: The store is a folder, which has none.
        """
        return await self._store.lifecycle()

    async def apply_lifecycle(self, days: int) -> Lifecycle:
        """Set rules by which the server of a bucket itself deletes what is old; those of others stay.

        Args:
            days: Files of backups go when they are so old. To be set anew before backups of a longer ttl are taken.

        Returns:
            All rules that hold now.

        Raises:
            InvalidBackupConfigError: A backup that is there would lose files before it expires; the message names the
                least `days`. Or the store is a folder.
            BackupIntegrityError: A backup's metadata is damaged: what it needs is not known.
        """
        return await self._store.apply_lifecycle(days)

    async def lost_overlays(self) -> tuple[LostOverlay, ...]:
        """Return the overlays that are mounted no more, after a restart of the sandbox for instance.

        What was written to them is kept until a `prune`; `restore` brings the backup back that each showed. Where the
        sandbox cannot be reached, or only at some cost, there are none.
        """
        try:
            return tuple(await self._sandbox.lost_overlays())
        except (SandboxUnavailableError, InvalidBackupConfigError):
            return ()

    async def check_store(self) -> None:
        """See that backups can be written.

        Raises:
            StoreUnavailableError: They cannot; the message says why.
        """
        await self._store.check()

    async def capabilities(self) -> Capabilities:
        """Return what the sandbox can do."""
        return await self._sandbox.capabilities()

    async def exists(self, dir: str) -> bool:
        """Whether a directory is there."""
        return await self._sandbox.exists(self._sandbox.resolve(dir))

    async def sandbox_id(self) -> str:
        """Return the name of the sandbox in the metadata of its backups, `Backup.sandbox_id`."""
        return await self._sandbox.id()

    async def close(self) -> None:
        """End what was started for the sandbox, cancelled or not; the service may be used again."""
        with anyio.CancelScope(shield=True):
            await self._sandbox.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _tuple(values: Iterable[str]) -> object:
    # A string is an iterable of strings too; left as it is, its type is refused with a message.
    return values if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)


def _diff_options(
    backup_id: str,
    other_id: str | None,
    dir: str | None,
    paths: Iterable[str],
    max_bytes: int = DEFAULT_PATCH_BYTES,
) -> DiffOptions:
    if other_id is not None and dir is not None:
        raise InvalidBackupConfigError("dir: compare with another backup or with a directory, not with both")
    return check_options(
        DiffOptions,
        {"backup_id": backup_id, "other_id": other_id, "dir": dir, "paths": _tuple(paths), "max_bytes": max_bytes},
    )


async def _grant_nothing(_role: FileRole, _file: StoredFile) -> WriteGrant:
    raise AssertionError("a look makes nothing")


def _new_id() -> str:
    from uuid6 import uuid7

    return str(uuid7())


@dataclass(frozen=True)
class _Capture:
    """A new backup, the digests of its manifests, and whether anything has changed since what it is built on."""

    backup: Backup
    manifests: tuple[str, ...]
    has_changed: bool


class _BaseGoneError(Exception):
    """The backup to build on was deleted meanwhile, or is damaged."""


@dataclass(frozen=True)
class _Base:
    """A backup to build on: as much of its chain as a new one shall have, and the whole of it."""

    metadata: BackupMetadata
    whole: BackupMetadata


def _is_needed(way_back: _Capture, applied: Applied, restored: BackupMetadata) -> bool:
    """Whether an undo would change anything."""
    if applied.changes or applied.restamped:
        return True
    if applied.changes is not None and not applied.unmounted:
        return False
    return way_back.has_changed or way_back.backup.parent_id != restored.id


def _describe(
    backup_id: str,
    path: str,
    options: CreateOptions,
    sandbox_id: str,
    upload: Upload,
    captured: Captured,
    parent: BackupMetadata | None,
) -> BackupMetadata:
    now = datetime.now(UTC)
    base = parent if captured.kind == "delta" else None
    manifests = () if base is None else base.manifests
    layers = () if base is None else base.layers
    if captured.manifest is not None:
        manifests += (_stored_as(upload.manifest_key, captured.manifest),)
    if captured.layer is not None:
        layers += (_stored_as(upload.layer_key, captured.layer),)
    return BackupMetadata(
        format_version=FORMAT_VERSION,
        id=backup_id,
        dir=path,
        name=options.name,
        description=options.description,
        metadata=options.metadata,
        kind=captured.kind,
        parent_id=None if base is None else base.id,
        sandbox_id=sandbox_id,
        ttl=options.ttl,
        created_at=now,
        expires_at=now + timedelta(seconds=options.ttl),
        size_bytes=0 if captured.layer is None else captured.layer.size,
        total_bytes=captured.total_bytes,
        file_count=captured.file_count,
        excludes=options.excludes,
        use_gitignore=options.use_gitignore,
        manifest=manifests[-1],
        parent_manifests=manifests[:-1],
        layers=layers,
    )


def _only_as_base(options: CreateOptions) -> CreateOptions:
    description = (
        "Taken without a pause, only for a frozen backup to be built on; if that is not there, delete this one"
    )
    return options.model_copy(update={"name": None, "description": description, "metadata": {}})


def _stored_as(key: str, file: StoredFile) -> StoredLayer:
    return StoredLayer(key=key, size=file.size, sha256=file.sha256)


def _comparison(
    metadata: BackupMetadata, contents: StoredBackup, path: str, paths: tuple[str, ...] = ()
) -> CompareRequest:
    return CompareRequest(
        **dict(contents),
        dir=path,
        excludes=metadata.excludes,
        use_gitignore=metadata.use_gitignore,
        paths=paths,
    )


def _refuse_paths_of_overlay(options: BringBackOptions) -> None:
    if options.paths and options.mode == "overlay":
        raise InvalidBackupConfigError("paths: an overlay brings back the whole directory; use mode 'copy' for paths")


def _refuse_overlap(paths: Sequence[str]) -> None:
    above = ""
    for path in sorted(paths, key=lambda path: path.split("/")):
        if above and is_within(path, above):
            raise InvalidBackupConfigError(f"dirs: {path} is named twice, or lies in another of them")
        above = path


def with_done(error: SandpointError, done: Sequence[RestoreResult]) -> SandpointError:
    """Return an error that also tells which directories of a fork are done."""
    if not done:
        return error
    told = ", ".join(map(_told, done))
    explained = type(error)(f"{error}. Done, and not undone: {told}")
    vars(explained).update(vars(error))
    return explained


def _told(result: RestoreResult) -> str:
    where = result.dir if result.sandbox is None else f"{result.dir} in {result.sandbox}"
    return where if result.undo_id is None else f"{where} (undo {result.undo_id})"


def _planned(
    backup_id: str,
    path: str,
    mode: Literal["overlay", "copy"],
    changes: Changes,
    taken_in: str | None,
    *,
    unmounted: bool,
) -> RestoreResult:
    return RestoreResult(
        success=True,
        id=backup_id,
        dir=path,
        mode=mode,
        dry_run=True,
        changes=changes,
        unmounted=unmounted,
        undo_id=None,
        taken_in=taken_in,
    )


def open_service(
    settings: Settings | None = None,
    *,
    allowed: AllowedSandboxes | None = None,
    store: Store | None = None,
    kind: type[BackupService] = BackupService,
) -> BackupService:
    """Return a service for the store and sandbox of the settings, by default those of the environment.

    Args:
        settings: Which.
        allowed: What a container must be called to be used; by default anything.
        store: The store of the settings, if it is open already.
        kind: What is returned.

    Raises:
        InvalidBackupConfigError: The settings name no store or sandbox that there is.
    """
    settings = settings or read_settings()
    store = store or open_store(settings.store, settings)
    sandbox = open_sandbox(
        settings.sandbox,
        settings,
        relay=store.relay,
        kept_out=(store.local_path,) if store.local_path is not None else (),
        allowed=allowed,
    )
    limits = ChainLimits(layers=settings.chain_layers, hours=settings.chain_hours, share=settings.chain_share)
    return kind(sandbox, store, compression=settings.compression, chain_limits=limits)
