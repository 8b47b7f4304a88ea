"""What this machine can do, found out by trying, and the command that installs what is missing."""

import os
import platform

from sandpoint.engine import tools
from sandpoint.engine.overlay import Kind, available_kind, orphans, own_overlays
from sandpoint.engine.state import State
from sandpoint.models import Capabilities, Capability

_TOOLS = {
    "mksquashfs": "every backup",
    "unsquashfs": "every restore",
    "git": "use_gitignore",
    "squashfuse_ll": "overlays without the kernel's, comparing contents without root",
    "fuse-overlayfs": "overlays without the kernel's",
    "fusermount3": "overlays without the kernel's",
}


def find_capabilities(state: State, overlay: Kind | None = None) -> Capabilities:
    """Try what this machine can do.

    Raises:
        SandboxUnavailableError: The state directory cannot be used.
    """
    state.prepare()
    kind, reason = available_kind(state, overlay)
    items = [_tool(name, needed_for) for name, needed_for in _TOOLS.items()]
    items.append(
        Capability(
            name="overlay restore",
            available=kind is not None,
            needed_for="restores in mode overlay",
            detail=_HOW[kind] + (f" ({reason})" if reason else ""),
            remedy="" if kind else _OVERLAY_REMEDY,
        )
    )
    items.append(_owners())
    items += _overlays(state)
    return Capabilities(sandbox=f"local, Linux {platform.release()}", overlay=kind, items=tuple(items))


_HOW: dict[Kind | None, str] = {
    "kernel": "kernel overlay over kernel squashfs",
    "fuse": "fuse-overlayfs over squashfuse",
    None: "not possible",
}
_OVERLAY_REMEDY = (
    "run as root, with SANDPOINT_STATE_DIR on a filesystem such as ext4 (not an overlay), or "
    "apt-get install squashfuse fuse-overlayfs fuse3 and leave to use /dev/fuse; mode copy needs none of these"
)


def _tool(name: str, needed_for: str) -> Capability:
    path = tools.find(name)
    return Capability(
        name=name,
        available=path is not None,
        needed_for=needed_for,
        detail=path or "",
        remedy="" if path else tools.install_hint(name),
    )


def _owners() -> Capability:
    root = os.geteuid() == 0
    return Capability(
        name="owners and device nodes",
        available=root,
        needed_for="restoring files of other users",
        detail="running as root" if root else "only root can set them; all else is restored",
        remedy="" if root else "run as root if the directory holds files of other users",
    )


def _overlays(state: State) -> list[Capability]:
    mounted = [
        Capability(
            name=f"overlay on {overlay.record.dir}",
            available=True,
            needed_for="what is open now",
            detail=f"backup {overlay.record.backup_id}, {overlay.record.kind}",
        )
        for overlay in own_overlays(state, "/")
    ]
    lost = [
        Capability(
            name=f"overlay on {overlay.record.dir}",
            available=False,
            needed_for="what was open before the mount went",
            detail=f"backup {overlay.record.backup_id}; what was written is kept in {overlay.upper}",
            remedy="restore it again, or prune to drop what was written",
            commands=(
                ("restore", overlay.record.backup_id, "--to", overlay.record.dir, "--mode", "overlay"),
                ("prune",),
            ),
        )
        for overlay in orphans(state)
    ]
    return mounted + lost
