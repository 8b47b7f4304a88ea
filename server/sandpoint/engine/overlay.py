"""Overlays: a layer as a writable directory, mounted over the directory that is restored.

Each overlay has a folder `overlays/{uuid}` in the state directory: `overlay.json`, its record; `upper` and `work`,
what is written to it; `ready`, made once it is in place; `captured`, the id of the last backup of it. Its mount's
source is `sandpoint-{uuid}`; fuse-overlayfs lets nobody choose that, so that `device`, the number of its mount, tells
it from others.
"""

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import msgspec

from sandpoint.engine import linux, mounts, tools
from sandpoint.engine.directory import is_within
from sandpoint.engine.layers import fuse_mount_layer, fuse_run, fuse_unmount, mounted_layers
from sandpoint.engine.mounts import Mount
from sandpoint.engine.removal import remove_tree
from sandpoint.engine.roots import OVERLAY_PREFIX, Root
from sandpoint.engine.state import State, read_note, unmount_below, write_over
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupRestoreError

Kind = Literal["kernel", "fuse"]

_MOUNT_FLAGS = linux.MS_NOSUID | linux.MS_NODEV
_OPTIONS = {b"redirect_dir": b"on"}
_FUSE_TYPE = "fuse.fuse-overlayfs"


class Record(msgspec.Struct, frozen=True):
    """What an overlay is: enough to mount it again."""

    id: str
    dir: str
    backup_id: str
    kind: Kind
    layers: tuple[str, ...]
    created_ns: int


class Overlay:
    """One overlay and its folder."""

    def __init__(self, folder: str, record: Record, root: Root) -> None:
        """Take a record that is or will be in a folder, of a directory below a root."""
        self.record = record
        self._root = root
        self.folder = folder
        self.upper = os.path.join(folder, "upper")
        self._work = os.path.join(folder, "work")
        self._lower = os.path.join(folder, "lower")
        self.scratch = os.path.join(folder, "merged")
        self._ready = os.path.join(folder, "ready")
        self._device = os.path.join(folder, "device")
        self._captured = os.path.join(folder, "captured")

    @classmethod
    def create(cls, state: State, record: Record) -> "Overlay":
        """Make the folder of a new overlay; until it is `ready`, the next operation would clear it away."""
        overlay = cls(os.path.join(state.overlays, record.id), record, state.root)
        try:
            for folder in (overlay.folder, overlay.upper, overlay._work, overlay._lower, overlay.scratch):
                os.mkdir(folder, 0o700)
            with open(os.path.join(overlay.folder, "overlay.json"), "xb") as file:
                file.write(msgspec.json.encode(record))
        except OSError as error:
            with suppress(OSError):
                remove_tree(overlay.folder)
            raise state.unwritable(error) from None
        return overlay

    @property
    def is_ready(self) -> bool:
        """Whether it came into place, so that what was written to it is the user's."""
        return os.path.exists(self._ready)

    def mark_ready(self) -> None:
        """Say that it is in place."""
        with open(self._ready, "xb"):
            pass

    def mount(self, target: str, check: Check) -> None:
        """Mount it on a directory, by the way of its record.

        Raises:
            OSError: The kernel refused.
            ToolMissingError, ToolFailedError: FUSE is missing or refused.
        """
        if self.record.kind == "kernel":
            self._mount_kernel(target)
        else:
            self._mount_fuse(target, check)

    def _places(self) -> list[str]:
        """Return where each layer is mounted, bottom first."""
        places = [os.path.join(self._lower, str(number)) for number in range(len(self.record.layers))]
        for place in places:
            os.makedirs(place, mode=0o700, exist_ok=True)
        return places

    def _mount_kernel(self, target: str) -> None:
        with mounted_layers(self.record.layers, self._places()) as lower:
            linux.mount_overlay(
                f"{OVERLAY_PREFIX}{self.record.id}",
                os.fsencode(target),
                _MOUNT_FLAGS,
                lower=lower[::-1],
                upper=os.fsencode(self.upper),
                work=os.fsencode(self._work),
                options=_OPTIONS,
            )

    def _mount_fuse(self, target: str, check: Check) -> None:
        tools.require("fuse-overlayfs")
        mounted: list[str] = []
        try:
            for layer, place in zip(self.record.layers, self._places(), strict=True):
                fuse_mount_layer(layer, place, check=check)
                mounted.append(place)
            lower = ":".join(_escape(place) for place in reversed(mounted))
            places = f"lowerdir={lower},upperdir={_escape(self.upper)},workdir={_escape(self._work)}"
            fuse_run(["fuse-overlayfs", "-o", f"{places},nosuid,nodev", target], target, check)
            self._note_device(target)
        except BaseException:
            for place in mounted:
                fuse_unmount(place)
            raise

    def _note_device(self, target: str) -> None:
        status = os.stat(target)
        with open(self._device, "w") as file:
            file.write(f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}")

    def forget_device(self) -> None:
        """Say that it is mounted no more: the kernel gives its number to another."""
        if os.path.exists(self._device):
            os.unlink(self._device)

    def is_mount(self, mount: Mount) -> bool:
        """Whether a line of the mount table is this overlay."""
        if self.record.kind == "kernel":
            return mount.source == OVERLAY_PREFIX + self.record.id
        try:
            with open(self._device) as file:
                return mount.fstype == _FUSE_TYPE and mount.device == file.read()
        except FileNotFoundError:
            return False

    def unmount(self, target: str) -> None:
        """Take it from a directory; what was written to it stays in its folder."""
        if self.record.kind == "kernel":
            with self.opened(target) as fd:
                self._root.detach(fd)
        else:
            fuse_unmount(target)
            self.forget_device()
            for mount in mounts.mounts_below(os.fsencode(self._lower), mounts.list_mounts()):
                fuse_unmount(os.fsdecode(mount.point))

    def set_aside(self) -> None:
        """Move its mount, by the kernel, to a folder of ours: it stays alive, with the files that are open in it."""
        os.makedirs(self.scratch, exist_ok=True)
        with self.opened(self.record.dir) as fd:
            self._root.take_mount(fd, os.fsencode(self.scratch))
            if not self.is_aside:
                linux.detach(os.fsencode(self.scratch))
                raise OSError(errno.ESTALE, "something else was mounted on the directory meanwhile")
            self._root.detach(fd)

    def move_into_place(self) -> None:
        """Move its mount, by the kernel, from our folder onto its directory."""
        with self.opened(self.record.dir) as fd:
            self._root.put_mount(os.fsencode(self.scratch), fd, self.record.dir)
        linux.detach(os.fsencode(self.scratch))

    @contextmanager
    def opened(self, directory: str) -> Iterator[int]:
        """Yield a descriptor of a directory below the root, without leave to read it."""
        fd = self._root.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @property
    def is_in_place(self) -> bool:
        """Whether it is mounted on its directory."""
        return self._is_among(self.record.dir, self._root.mounts())

    @property
    def is_aside(self) -> bool:
        """Whether it is mounted in its own folder."""
        return self._is_among(self.scratch, mounts.list_mounts())

    def _is_among(self, place: str, table: Sequence[Mount]) -> bool:
        return any(self.is_mount(mount) for mount in mounts.mounts_at(os.fsencode(place), table))

    def last_capture(self) -> str | None:
        """Return the id of the last backup that was taken of what it shows, since it was mounted."""
        return read_note(self._captured)

    def note_capture(self, backup_id: str) -> None:
        """Note a backup of what it shows: without the note the next one holds all that was written to it."""
        with suppress(OSError):
            write_over(self._captured, [backup_id.encode()])

    def is_written(self) -> bool:
        """Whether anything below its top was changed since it was mounted."""
        with os.scandir(self.upper) as items:
            return any(True for _ in items)

    def discard(self) -> None:
        """Remove its folder with all that was written to it.

        Should that fail half way, the next operation goes on: without its mark it is nobody's.
        """
        with suppress(FileNotFoundError):
            os.unlink(self._ready)
        unmount_below(self.folder)
        remove_tree(self.folder)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


@contextmanager
def shown_by(layers: Sequence[str], work: str) -> Iterator[int]:
    """Yield a descriptor of what stacked layers show, read-only and seen by nobody else.

    Args:
        layers: Their files, bottom first.
        work: A folder of the operation's own.

    Raises:
        OSError: They cannot be mounted.
    """
    places = [os.path.join(work, f"shown-{number}") for number in range(len(layers))]
    for place in places:
        os.mkdir(place, 0o700)
    top = places[0]
    with mounted_layers(layers, places) as lower:
        if len(layers) == 1:
            fd = os.open(lower[0], os.O_RDONLY | os.O_DIRECTORY)
        else:
            linux.mount_overlay(
                "sandpoint-shown",
                os.fsencode(top),
                _MOUNT_FLAGS | linux.MS_RDONLY,
                lower=lower[::-1],
                upper=None,
                work=None,
                options=_OPTIONS,
            )
            fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
            linux.detach(os.fsencode(top))
    try:
        yield fd
    finally:
        os.close(fd)
        for place in places:
            os.rmdir(place)


def own_overlays(state: State, directory: str, table: Sequence[Mount] | None = None) -> list[Overlay]:
    """Return the overlays of ours that are mounted at or below a directory, in the order they were mounted."""
    here = [overlay for overlay in _all(state) if is_within(overlay.record.dir, directory)]
    owners = [_owner(here, mount) for mount in (state.root.mounts() if table is None else table)]
    return [overlay for overlay in owners if overlay is not None]


def _owner(overlays: Sequence[Overlay], mount: Mount) -> Overlay | None:
    """Return the overlay that a mount in its place is; the youngest, for numbers of FUSE mounts are given again."""
    claims = [each for each in overlays if mount.point == os.fsencode(each.record.dir) and each.is_mount(mount)]
    return max(claims, key=lambda overlay: overlay.record.created_ns, default=None)


def _all(state: State) -> list[Overlay]:
    names = os.listdir(state.overlays) if os.path.isdir(state.overlays) else []
    return [overlay for name in sorted(names) if (overlay := _read(state, name)) is not None]


def _read(state: State, name: str) -> Overlay | None:
    folder = os.path.join(state.overlays, name)
    record = _read_record(folder)
    return Overlay(folder, record, state.root) if record is not None and record.id == name else None


def _read_record(folder: str) -> Record | None:
    try:
        with open(os.path.join(folder, "overlay.json"), "rb") as file:
            return msgspec.json.decode(file.read(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def neighbours_layers(state: State) -> list[str]:
    """Return the layers of overlays of other sandboxes whose cache is the same: whether these still run, they know."""
    found: list[str] = []
    for folder in state.all_overlays:
        if folder != state.overlays:
            for name in os.listdir(folder) if os.path.isdir(folder) else []:
                record = _read_record(os.path.join(folder, name))
                found += record.layers if record is not None else ()
    return found


def orphans(state: State) -> list[Overlay]:
    """Return overlays that are mounted no more (after a reboot), with what was written to them."""
    if not _all(state):
        return []  # the mount table need not be read
    in_place = {overlay.record.id for overlay in own_overlays(state, "/")}
    return [
        overlay
        for overlay in _all(state)
        if overlay.is_ready and overlay.record.id not in in_place and not overlay.is_aside
    ]


@contextmanager
def set_aside(state: State, directory: str, check: Check) -> Iterator[None]:
    """Take our overlays at and below a directory down, the innermost first; put them back if the block fails.

    After the block they are gone for good, with what was written to them: the caller has captured that before.

    Raises:
        BackupRestoreError: Something else is mounted on or inside one of them, and would go with it.
    """
    _refuse_mounts_on(state, directory)
    down: list[tuple[Overlay, Callable[[], None]]] = []
    try:
        for overlay in reversed(own_overlays(state, directory)):
            down.append((overlay, _take_down(overlay, check)))
        yield
    except BaseException as failure:
        _put_all_back(down, failure)
        raise
    for overlay, _put_back in down:
        with suppress(OSError):
            overlay.discard()


def _put_all_back(down: Sequence[tuple[Overlay, Callable[[], None]]], failure: BaseException) -> None:
    problems = []
    for overlay, put_back in reversed(down):
        try:
            put_back()
        except (OSError, tools.ToolFailedError, tools.ToolMissingError) as error:
            problems.append(f"{overlay.record.dir}: {error}; what was written to it is in {overlay.upper}")
    if problems:
        raise BackupRestoreError(
            f"the operation failed ({failure}), and overlays could not be put back: {'; '.join(problems)}", partly=True
        ) from failure


def _refuse_mounts_on(state: State, directory: str) -> None:
    table = state.root.mounts()
    own = own_overlays(state, directory, table)
    for overlay in own:
        point = os.fsencode(overlay.record.dir)
        for mount in (*mounts.mounts_at(point, table)[-1:], *mounts.mounts_below(point, table)):
            if _owner(own, mount) is None:
                raise BackupRestoreError(
                    f"{os.fsdecode(mount.point)} is a mount inside the overlay on {overlay.record.dir}, and would go "
                    "with it; unmount it first. Nothing was changed"
                )


def _take_down(overlay: Overlay, check: Check) -> Callable[[], None]:
    target = overlay.record.dir
    if overlay.record.kind == "fuse":
        overlay.unmount(target)
        return lambda: overlay.mount(target, check)
    overlay.set_aside()
    return overlay.move_into_place


def heal(state: State) -> None:
    """Bring overlays into order after an operation that died while it changed them.

    One that had not come into place goes. One that had been set aside comes back, unless the operation had come so
    far that a later one is in its place or above it.
    """
    for name in os.listdir(state.overlays):
        overlay = _read(state, name)
        if overlay is None:
            if not os.path.exists(os.path.join(state.overlays, name, "ready")):
                remove_tree(os.path.join(state.overlays, name))  # it died before its record was written
        elif not overlay.is_ready:
            if overlay.is_in_place:
                overlay.unmount(overlay.record.dir)
            elif overlay.record.kind == "fuse" and _is_nobodys(state, overlay.record.dir):
                fuse_unmount(overlay.record.dir)  # it died before it could note the mount's number
            overlay.discard()
    for lost in orphans(state):
        lost.forget_device()
        unmount_below(lost.folder)
    for name in os.listdir(state.overlays):
        overlay = _read(state, name)
        if overlay is not None and overlay.is_aside:
            _heal_set_aside(state, overlay)


def _heal_set_aside(state: State, overlay: Overlay) -> None:
    directory = overlay.record.dir
    if overlay.is_in_place:
        linux.detach(os.fsencode(overlay.scratch))
    elif any(
        is_within(directory, other.record.dir) and other.record.created_ns > overlay.record.created_ns
        for other in own_overlays(state, "/")
    ):
        overlay.discard()
    else:
        overlay.move_into_place()


def _is_nobodys(state: State, place: str) -> bool:
    on_top = mounts.mounts_at(os.fsencode(place), state.root.mounts())[-1:]
    return any(mount.fstype == _FUSE_TYPE and _owner(_all(state), mount) is None for mount in on_top)


def available_kind(state: State, wanted: Kind | None = None, *, in_turn: bool = False) -> tuple[Kind | None, str]:
    """Return how this machine can mount overlays (None: not at all) and, if the kernel cannot, why.

    It is found out by mounting one, which takes a tenth of a millisecond; where that is `in_turn`, the next operation
    clears it away should this one die.
    """
    reason = "not asked for"
    if wanted != "fuse":
        with state.working() if in_turn else state.trial() as folder:
            reason = _try_kernel(folder, state)
        if not reason:
            return "kernel", ""
    if wanted != "kernel" and not (missing := _fuse_problem()):
        return "fuse", reason
    return None, f"{reason}; FUSE: {missing}" if wanted != "kernel" else reason


def _fuse_problem() -> str:
    for program in ("squashfuse_ll", "fuse-overlayfs", "fusermount3"):
        if tools.find(program) is None:
            return f"{program} is not installed ({tools.install_hint(program)})"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be used by this user"
    return ""


def _try_kernel(folder: str, state: State) -> str:
    names = {name: os.path.join(folder, name) for name in ("lower", "upper", "work", "merged")}
    try:
        for path in names.values():
            os.mkdir(path)
        if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
            raise PermissionError(13, "loop devices may not be used by this user", "/dev/loop-control")
        lower, upper, work, merged = map(os.fsencode, names.values())
        linux.mount_overlay(
            "sandpoint-trial", merged, _MOUNT_FLAGS, lower=[lower], upper=upper, work=work, options=_OPTIONS
        )
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # no reason to mount by FUSE
            raise state.unwritable(error) from None
        return f"kernel overlay with the upper layer in {state.path}: {error.strerror}"
    linux.detach(os.fsencode(names["merged"]))
    return ""


def restore_overlay(
    state: State,
    *,
    directory: str,
    backup_id: str,
    layers: Sequence[str],
    kind: Kind,
    dress: Callable[[int], None],
    check: Check,
) -> None:
    """Mount a layer with a fresh upper on a directory, in place of overlays of ours at and below it.

    Args:
        state: Where the upper layer lives.
        directory: The directory, which exists.
        backup_id: Whose layer it is.
        layers: The layers' files, bottom first, their digests already checked.
        kind: How to mount.
        dress: Given a descriptor of the mounted tree before anyone sees it: sets what squashfs does not keep.
        check: May raise to stop.

    Raises:
        BackupRestoreError: It cannot be mounted; what was mounted before is again.
    """
    record = Record(uuid.uuid4().hex, directory, backup_id, kind, tuple(layers), time.time_ns())
    overlay = Overlay.create(state, record)
    try:
        # A trial in its own folder first: all that can be refused is refused here, before anything is taken down.
        overlay.mount(overlay.scratch, check)
        _dress(overlay, dress)
        with set_aside(state, directory, check):
            _refuse_foreign_mounts(state, directory)
            _move_into_place(overlay, directory, check)
    except BaseException as failure:
        with suppress(OSError):
            overlay.discard()
        if isinstance(failure, OSError | tools.ToolFailedError | tools.ToolMissingError):
            raise BackupRestoreError(
                f"an overlay cannot be mounted on {directory}: {failure}; use mode 'copy', or see 'sandpoint doctor'"
            ) from failure
        raise


def _dress(overlay: Overlay, dress: Callable[[int], None]) -> None:
    fd = os.open(overlay.scratch, os.O_RDONLY | os.O_DIRECTORY)
    try:
        dress(fd)
    finally:
        os.close(fd)


def _refuse_foreign_mounts(state: State, directory: str) -> None:
    below = mounts.mounts_below(os.fsencode(directory), state.root.mounts())
    if below:
        raise BackupRestoreError(
            f"{os.fsdecode(below[0].point)} is a mount inside {directory}, which an overlay would hide; use mode 'copy'"
        )


def _move_into_place(overlay: Overlay, directory: str, check: Check) -> None:
    if overlay.record.kind == "fuse":
        overlay.unmount(overlay.scratch)
        overlay.mount(directory, check)
    else:
        overlay.move_into_place()
    try:
        overlay.mark_ready()
    except BaseException:
        overlay.unmount(directory)
        raise
