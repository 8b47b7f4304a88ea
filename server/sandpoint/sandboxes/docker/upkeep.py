"""What Sandpoint keeps on a Docker engine for its containers, and what of that is no longer needed.

volume sandpoint-state   `sandboxes/{container id}/`, the state of each container; `cache/` and `checked/`, shared
helper containers        labelled with the container that each is for
"""

import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from sandpoint.engine.removal import remove_tree
from sandpoint.engine.state import unmount_below
from sandpoint.errors import SandboxUnavailableError, SandpointError
from sandpoint.models import Capability
from sandpoint.sandboxes.docker.host import ROLE_LABEL, TARGET_LABEL, VOLUME, DockerHost, explained

_TRIAL = "trial"
_INSIDE = "/state"
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")

FOLDER = "docker"
"""In the server's own state directory, for the archive way: of the same layout as the volume."""

SANDBOXES = "sandboxes"


class StateVolume(Protocol):
    """The volume, seen from where its files can be reached."""

    def sandboxes(self) -> list[str]:
        """Return the ids of the containers that have state in it."""
        ...

    def size(self) -> int:
        """Return the bytes that all in it takes."""
        ...

    def drop(self, container_id: str) -> None:
        """Remove the state of one container.

        Raises:
            OSError: It cannot be removed.
        """
        ...


class HostVolume:
    """The volume of an engine whose files are this machine's. Implements `StateVolume`; for the superuser."""

    def __init__(self, folder: str) -> None:
        """Take its folder."""
        self._sandboxes = os.path.join(folder, SANDBOXES)
        self._folder = folder

    def sandboxes(self) -> list[str]:
        """Return the names of the folders in it."""
        return sorted(os.listdir(self._sandboxes)) if os.path.isdir(self._sandboxes) else []

    def size(self) -> int:
        """Return what its files take on the disk; what goes while it is looked at does not count."""
        total = 0
        folders = [self._folder]
        while folders:
            try:
                with os.scandir(folders.pop()) as items:
                    for item in items:
                        total += item.stat(follow_symlinks=False).st_blocks * 512
                        if item.is_dir(follow_symlinks=False):
                            folders.append(item.path)
            except OSError:
                continue
        return total

    def drop(self, container_id: str) -> None:
        """Remove a folder, with what is mounted in it."""
        folder = os.path.join(self._sandboxes, container_id)
        unmount_below(folder)
        remove_tree(folder)


class ContainedVolume:
    """The volume of an engine whose files cannot be reached from here, seen by containers that are gone in a moment.

    Implements `StateVolume`. They are made of a helper's image, and have the volume and nothing else.
    """

    def __init__(self, host: DockerHost, image: str) -> None:
        """Take an image that is there."""
        self._host = host
        self._image = image

    def sandboxes(self) -> list[str]:
        """Return the names of the folders in it."""
        names = self._run("find", f"{_INSIDE}/{SANDBOXES}", "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\\n")
        return sorted(name for name in names.splitlines() if _CONTAINER_ID.fullmatch(name))

    def size(self) -> int:
        """Return what its files take on the disk."""
        blocks = self._run("du", "--summarize", "--block-size=1", _INSIDE).split()
        return int(blocks[0])

    def drop(self, container_id: str) -> None:
        """Remove a folder."""
        self._run("rm", "--recursive", "--force", "--", f"{_INSIDE}/{SANDBOXES}/{container_id}")

    def _run(self, *argv: str) -> str:
        with explained(f"volume {VOLUME}"):
            output = self._host.client.containers.run(
                self._image,
                ["sh", "-c", f'mkdir -p {_INSIDE}/{SANDBOXES} && exec "$@"', "sh", *argv],
                entrypoint=[],
                volumes={VOLUME: {"bind": _INSIDE, "mode": "rw"}},
                labels={ROLE_LABEL: _TRIAL},
                network_mode="none",
                remove=True,
            )
        return bytes(output).decode("utf-8", "replace")


OpenVolume = Callable[[DockerHost, str], StateVolume | None]


def open_on_host(host: DockerHost, mountpoint: str) -> StateVolume | None:
    """Return the volume if its files can be reached from here directly; None if they cannot.

    That a folder of this name is here says nothing: another engine, here, may have one too, whose containers the
    engine that was asked knows nothing of. So it makes a volume that only it can have, and that is looked for.
    """
    if os.geteuid() != 0 or not os.path.isdir(mountpoint):
        return None
    with _trial_volume(host) as trial:
        return HostVolume(mountpoint) if os.path.isdir(trial) else None


@contextmanager
def _trial_volume(host: DockerHost) -> Iterator[str]:
    with explained("a trial volume"):
        volume = host.client.volumes.create(f"sandpoint-{_TRIAL}-{uuid4().hex}", labels={ROLE_LABEL: _TRIAL})
        try:
            yield str(volume.attrs["Mountpoint"])
        finally:
            volume.remove()


def open_in_container(host: DockerHost, mountpoint: str) -> StateVolume | None:
    """Return the volume as containers see it; None where the engine has no image of a helper to make them of."""
    with explained("its images"):
        images = host.client.images.list(filters={"label": f"{ROLE_LABEL}=helper"})
    tags = [tag for image in images for tag in image.tags]
    return ContainedVolume(host, tags[0]) if tags else None


OPENERS: tuple[OpenVolume, ...] = (open_on_host, open_in_container)
"""Ways to the files of the volume, in the order in which they are tried."""


def _open_volume(host: DockerHost, mountpoint: str) -> StateVolume | None:
    return next((volume for opener in OPENERS if (volume := opener(host, mountpoint)) is not None), None)


def describe(host: DockerHost) -> list[Capability]:
    """Return what is kept on the engine, for `doctor`.

    Raises:
        SandboxUnavailableError: The engine does not answer any more.
    """
    mountpoint = host.find_volume()
    items = [] if mountpoint is None else [_describe_volume(host, mountpoint)]
    running = {each["Id"] for each in host.all_containers() if each["State"] in {"running", "paused"}}
    for helper in _helpers(host):
        target = helper["Labels"].get(TARGET_LABEL, "")
        needed = "in use" if target in running else "no longer needed; a prune removes it"
        items.append(
            Capability(
                name=f"helper container {_name_of(helper)}",
                available=True,
                needed_for="the helper way",
                detail=f"{helper['State']}, for container {target[:12]}: {needed}",
            )
        )
    return items


def _describe_volume(host: DockerHost, mountpoint: str) -> Capability:
    volume = _open_volume(host, mountpoint)
    detail = f"of all containers, at {mountpoint} on the engine's host"
    if volume is not None:
        known = {each["Id"] for each in host.all_containers()}
        found = volume.sandboxes()
        gone = len(set(found) - known)
        detail = f"{volume.size():,} bytes, state of {len(found)} containers, at {mountpoint}"
        if gone:
            detail += f"; {gone} of them are no more: a prune removes their state"
    return Capability(name=f"volume {VOLUME}", available=True, needed_for="upper layers, cache, notes", detail=detail)


def clear(host: DockerHost, state_dir: str, *, dry_run: bool) -> list[str]:
    """Remove what no container needs any more: helpers, state, in the end the volume; return in words what goes.

    The state of a container that is there, running or not, stays.

    Args:
        host: The engine.
        state_dir: The server's own state directory. What it holds for containers of other engines goes too, which
            costs their next backups no more than a full layer.
        dry_run: Remove nothing.

    Raises:
        SandboxUnavailableError: The engine does not answer, or something cannot be removed; the message says what was.
    """
    done: list[str] = []
    try:
        for what, remove in _leftovers(host):
            if not dry_run:
                with explained(what):
                    remove()
            done.append(what)
        done += _clear_volume(host, dry_run=dry_run)
        done += _clear_states(host, HostVolume(os.path.join(state_dir, FOLDER)), dry_run=dry_run)
    except (SandpointError, OSError) as error:
        removed = f"; removed before: {', '.join(done)}" if done else ""
        raise SandboxUnavailableError(f"what is left on the engine cannot be removed: {error}{removed}") from error
    return done


def _leftovers(host: DockerHost) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield helper containers, and containers and volumes of a moment, that nobody needs, each with what removes it."""
    helpers = _helpers(host)
    running = {each["Id"] for each in host.all_containers() if each["State"] in {"running", "paused"}}
    for helper in helpers:
        if helper["State"] not in {"created", "running"} or helper["Labels"].get(TARGET_LABEL) not in running:
            yield f"helper container {_name_of(helper)}", partial(_remove_container, host, str(helper["Id"]))
    for made in host.all_containers():
        if made["Labels"].get(ROLE_LABEL) == _TRIAL and made["State"] not in {"created", "running"}:
            yield f"container {_name_of(made)}", partial(_remove_container, host, str(made["Id"]))
    with explained("its volumes"):
        trials = host.client.volumes.list(filters={"label": f"{ROLE_LABEL}={_TRIAL}"})
    for trial in trials:
        yield f"volume {trial.name}", trial.remove


def _remove_container(host: DockerHost, container_id: str) -> None:
    host.client.api.remove_container(container_id, force=True)


def _clear_volume(host: DockerHost, *, dry_run: bool) -> Iterator[str]:
    mountpoint = host.find_volume()
    volume = None if mountpoint is None else _open_volume(host, mountpoint)
    if volume is None:
        return
    found = volume.sandboxes()
    gone = yield from _clear_states(host, volume, dry_run=dry_run)
    if set(found) <= gone and (dry_run or not volume.sandboxes()):
        if not dry_run:
            with explained(f"volume {VOLUME}"):
                host.client.volumes.get(VOLUME).remove()
        yield f"volume {VOLUME}, with the cache of what was fetched"


def _clear_states(host: DockerHost, volume: StateVolume, *, dry_run: bool) -> Generator[str, None, set[str]]:
    """Remove the state of containers that are no more, yield that in words, and return their ids."""
    # In this order: what is there before the containers are asked for may be of one that was made since.
    found = volume.sandboxes()
    known = {each["Id"] for each in host.all_containers()} if found else set()
    gone = [each for each in found if each not in known]
    for container_id in gone:
        if not dry_run:
            volume.drop(container_id)
        yield f"state of container {container_id[:12]}, which is no more"
    return set(gone)


def _helpers(host: DockerHost) -> Sequence[dict[str, Any]]:
    return [each for each in host.all_containers() if each["Labels"].get(ROLE_LABEL) == "helper"]


def _name_of(container: dict[str, Any]) -> str:
    return str(container["Names"][0]).lstrip("/") if container["Names"] else str(container["Id"])[:12]
