"""The pause of a container: by its control group where this is the superuser of its machine, else by Docker's own API.

The API takes some 20 ms each way, and several times that on a busy machine; all that time the container stands still.
Only of such a pause Docker says that there is one.

A note on the engine, a volume of no content, is there from before a pause until after it. Should this process die
meanwhile, the next operation on the container finds the note, and lets the container go on.
"""

import time
from typing import Any

from sandpoint.errors import BackupCreateError, SandboxUnavailableError, SandpointError
from sandpoint.sandboxes.docker.cgroup import Cgroup
from sandpoint.sandboxes.docker.host import ROLE_LABEL, TARGET_LABEL, DockerHost, Target, explained

PAUSE_ROLE = "pause"
"""The value of `ROLE_LABEL` on the volumes that are notes of a pause."""

_WAIT_S = 10
"""For Docker to pause a container: one that takes longer has a process that cannot be stopped now."""
_TRIES = 3


class ContainerFreezer:
    """Implements `Freezer`. Use it as a context manager: at the end of the block the container goes on."""

    def __init__(self, host: DockerHost, target: Target) -> None:
        """Take a container of an engine; nothing is asked yet."""
        self._host = host
        self._target = target
        self._cgroup = Cgroup.of(target)
        self._started_at = ""
        self._began: float | None = None
        self._ended = 0.0

    def __enter__(self) -> "ContainerFreezer":
        return self

    def __exit__(self, *_error: object) -> None:
        if self._began is not None:
            self._go_on()
        elif self._cgroup is not None:
            self._cgroup.end()

    def pause(self) -> None:
        """Pause the container; one that is paused already is left as it is.

        Raises:
            BackupCreateError: It cannot be paused.
            SandboxUnavailableError: It does not run any more, or the engine does not answer.
        """
        state = self._state()
        self._started_at = state["StartedAt"]
        if state.get("Paused"):
            return
        if self._cgroup is not None:
            self._cgroup.prepare()
        write_note(self._host, self._target.id)
        self._began = time.monotonic()
        try:
            self._stop()
        except (SandpointError, OSError) as error:
            raise BackupCreateError(
                f"container {self._target.name} cannot be paused: {error}; back up without freeze, or where the engine "
                "has no freezer (rootless, say), stop what writes to the directory first"
            ) from error

    def _stop(self) -> None:
        if self._cgroup is not None:
            self._cgroup.freeze()
            return
        api = self._host.client.api
        usual, api.timeout = api.timeout, _WAIT_S
        try:
            with explained(f"container {self._target.name}"):
                api.pause(self._target.id)
        finally:
            api.timeout = usual

    def unpause(self) -> float:
        """Let the container go on, if it was paused here.

        Raises:
            BackupCreateError: It had not been paused all the time.
            SandboxUnavailableError: It is gone, or cannot be let go on.
        """
        if self._began is None:
            state = self._state()
            if not state.get("Paused") or state["StartedAt"] != self._started_at:
                raise self._interrupted()
            return 0.0
        began = self._began
        if not self._go_on():
            raise self._interrupted()
        return self._ended - began

    def _go_on(self) -> bool:
        """Let it go on, and forget that it was paused; return whether it was so until now."""
        was_paused = self._cgroup.thaw() if self._cgroup is not None else unpause(self._host, self._target.id)
        self._ended = time.monotonic()
        self._began = None
        if self._cgroup is not None:
            self._cgroup.end()
        remove_note(self._host, self._target.id)
        return was_paused

    def _state(self) -> dict[str, Any]:
        with explained(f"container {self._target.name}"):
            state: dict[str, Any] = self._host.client.api.inspect_container(self._target.id)["State"]
        if not state.get("Running"):
            raise SandboxUnavailableError(
                f"container {self._target.name} does not run any more; start it with: docker start {self._target.name}"
            )
        return state

    def _interrupted(self) -> BackupCreateError:
        return BackupCreateError(
            f"container {self._target.name} was unpaused or started anew by somebody else while it was backed up; "
            "try again"
        )


def heal(host: DockerHost, target: Target) -> None:
    """Let a container go on that was paused for a backup whose process died. In the turn of an operation.

    Raises:
        SandboxUnavailableError: It is still paused, and so is the note still there.
    """
    if not is_noted(host, target.id):
        return
    cgroup = Cgroup.of(target)
    if not unpause(host, target.id) and cgroup is not None:
        cgroup.thaw()
    remove_note(host, target.id)


def unpause(host: DockerHost, container_id: str) -> bool:
    """Let a container go on by Docker's API; return whether it was paused until now.

    Raises:
        SandboxUnavailableError: It is still paused.
    """
    from docker.errors import APIError, DockerException, NotFound
    from requests.exceptions import RequestException

    failed = ""
    for _ in range(_TRIES):
        try:
            host.client.api.unpause(container_id)
        except NotFound:
            return False
        except APIError as error:
            if not _is_paused(host, container_id):
                return False
            failed = str(error.explanation or error)
        except (DockerException, RequestException) as error:
            failed = str(error)
        else:
            return True
    raise SandboxUnavailableError(
        f"container {container_id[:12]} is still paused, for a backup, and could not be let go on: {failed}; the "
        f"next operation on it tries again, or: docker unpause {container_id[:12]}"
    )


def _is_paused(host: DockerHost, container_id: str) -> bool:
    from docker.errors import NotFound

    try:
        with explained(f"container {container_id[:12]}"):
            return bool(host.client.api.inspect_container(container_id)["State"].get("Paused"))
    except SandpointError as error:
        if isinstance(error.__cause__, NotFound):
            return False
        raise


def _note(container_id: str) -> str:
    return f"sandpoint-pause-{container_id[:12]}"


def write_note(host: DockerHost, container_id: str) -> None:
    """Note on the engine that a container is about to be paused."""
    with explained(f"volume {_note(container_id)}"):
        labels = {ROLE_LABEL: PAUSE_ROLE, TARGET_LABEL: container_id}
        host.client.api.create_volume(_note(container_id), labels=labels)


def remove_note(host: DockerHost, container_id: str) -> None:
    """Take the note of a pause away, if there is one."""
    from docker.errors import NotFound

    try:
        with explained(f"volume {_note(container_id)}"):
            host.client.api.remove_volume(_note(container_id))
    except SandpointError as error:
        if not isinstance(error.__cause__, NotFound):
            raise


def is_noted(host: DockerHost, container_id: str) -> bool:
    """Whether a container is paused for a backup, or was when whoever took it died."""
    from docker.errors import NotFound

    try:
        with explained(f"volume {_note(container_id)}"):
            host.client.api.inspect_volume(_note(container_id))
    except SandpointError as error:
        if isinstance(error.__cause__, NotFound):
            return False
        raise
    return True


def forget_gone(host: DockerHost) -> None:
    """Take away notes of pauses of containers that are no more."""
    from docker.errors import NotFound

    with explained("the notes of pauses"):
        filters = {"label": [f"{ROLE_LABEL}={PAUSE_ROLE}"]}
        notes = host.client.api.volumes(filters=filters).get("Volumes") or []
        for note in notes:
            container_id = note["Labels"][TARGET_LABEL]
            try:
                host.client.api.inspect_container(container_id)
            except NotFound:
                remove_note(host, container_id)
