"""A Docker engine, and the containers that it runs."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sandpoint.errors import InvalidBackupConfigError, SandboxUnavailableError

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

VOLUME = "sandpoint-state"
"""The volume that holds upper layers, the cache and notes of all containers of an engine."""

ROLE_LABEL = "sandpoint.role"
"""On what is Sandpoint's own on an engine: `state` on the volume, `helper` on helper containers."""

TARGET_LABEL = "sandpoint.target"
"""On a helper container: the id of the container that it is for."""

_LABEL = "label="
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_STAMPED_BACKING = frozenset({"extfs", "xfs", "btrfs"})
_TIMEOUT_S = 60
_ENVIRONMENT = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")


@dataclass(frozen=True)
class Target:
    """A container that runs, or is paused."""

    id: str
    """Its whole id."""
    name: str
    pid: int
    """Of its first process, in the engine's own numbers."""
    is_paused: bool
    stamped: bool
    """Whether the layers of its own filesystem lie where every change of a file moves its ctime."""

    @property
    def sandbox_id(self) -> str:
        """Its name in the metadata of backups: that of a container made anew under the same name is another."""
        return sandbox_id_of(self.id)


def sandbox_id_of(container_id: str) -> str:
    """Return the name of a container in the metadata of backups."""
    return f"docker:{container_id[:12]}"


class DockerHost:
    """A Docker engine, found as Docker's own programs find it: by `DOCKER_HOST`, the context, or the usual socket.

    Safe to use from several threads.
    """

    def __init__(self, connect: "Callable[[], docker.DockerClient] | None" = None) -> None:
        """Nothing is asked yet.

        Args:
            connect: Makes a client; by default one for the usual environment.
        """
        self._connect = connect or _client_of_environment
        self._local = threading.local()
        self._clients: list[docker.DockerClient] = []
        self._users: WeakSet[object] = WeakSet()

    def join(self, user: object) -> None:
        """Note who uses it."""
        self._users.add(user)

    def leave(self, user: object) -> None:
        """Note that somebody uses it no more; with the last one its connections end."""
        self._users.discard(user)
        if not self._users:
            self.close()

    @property
    def client(self) -> "docker.DockerClient":
        """The calling thread's own client.

        Raises:
            SandboxUnavailableError: No engine answers.
        """
        client: docker.DockerClient | None = getattr(self._local, "client", None)
        if client is None:
            with explained("the Docker engine"):
                client = self._connect()
            self._local.client = client
            self._clients.append(client)
        return client

    def find(self, reference: str) -> Target:
        """Return the container that a name, an id, the beginning of one, or `label=KEY=VALUE` stands for.

        Raises:
            InvalidBackupConfigError: There is no such container, or more than one.
            SandboxUnavailableError: It does not run, or the engine does not answer.
        """
        container = self.container(reference)
        state: dict[str, Any] = container.attrs["State"]
        if not state.get("Running"):
            raise SandboxUnavailableError(
                f"container {container.name} is not running (it is {state.get('Status', 'in an unknown state')}); "
                f"start it with: docker start {container.name}"
            )
        if any(mount.get("Name") == VOLUME for mount in container.attrs.get("Mounts", ())):
            raise InvalidBackupConfigError(
                f"sandbox: container {container.name} has Sandpoint's own volume {VOLUME} mounted, and could alter "
                "what is kept there for others; name another, or make it without that volume"
            )
        return Target(
            id=str(container.id),
            name=str(container.name),
            pid=int(state["Pid"]),
            is_paused=bool(state.get("Paused")),
            stamped=self._is_stamped(),
        )

    def container(self, reference: str) -> "Container":
        """Return a container in whatever state; see `find`."""
        with explained(f"container {reference}"):
            if reference.startswith(_LABEL):
                return self._labelled(reference.removeprefix(_LABEL))
            if not _NAME.fullmatch(reference):  # it would become part of a URL as it is
                raise InvalidBackupConfigError(
                    f"sandbox: no container can be called {reference!r}; see those that run with: docker ps"
                )
            return self.client.containers.get(reference)

    def _labelled(self, label: str) -> "Container":
        # Without ignore_removed, one that is removed meanwhile fails the whole list.
        found = self.client.containers.list(filters={"label": label}, ignore_removed=True)
        if len(found) != 1:
            names = ", ".join(sorted(str(each.name) for each in found)) or "none"
            raise InvalidBackupConfigError(
                f"sandbox: the label {label!r} must be that of one running container, and is that of {len(found)} "
                f"({names}); name one by its name"
            )
        return found[0]

    def _is_stamped(self) -> bool:
        known: bool | None = getattr(self, "_stamped", None)
        if known is None:
            info = self.client.info()
            backing = dict(info.get("DriverStatus") or ()).get("Backing Filesystem")
            known = self._stamped = info.get("Driver") == "overlay2" and backing in _STAMPED_BACKING
        return known

    def state_volume(self) -> str:
        """Return where the volume for upper layers, cache and notes lies on the engine's host; it is made if missing.

        Raises:
            SandboxUnavailableError: It cannot be made.
        """
        with explained(f"volume {VOLUME}"):
            volume = self.client.volumes.create(VOLUME, labels={ROLE_LABEL: "state"})
            return str(volume.attrs["Mountpoint"])

    def find_volume(self) -> str | None:
        """Return where that volume lies on the engine's host; None where there is none.

        Raises:
            SandboxUnavailableError: The engine does not answer.
        """
        with explained("its volumes"):
            found = [each for each in self.client.volumes.list(filters={"name": VOLUME}) if each.name == VOLUME]
        return str(found[0].attrs["Mountpoint"]) if found else None

    def all_containers(self) -> "list[dict[str, Any]]":
        """Return what a list tells of each container, running or not.

        Raises:
            SandboxUnavailableError: The engine does not answer.
        """
        with explained("its containers"):
            return list(self.client.api.containers(all=True))

    def version(self) -> tuple[str, str]:
        """Return the engine's version, and where it is.

        Raises:
            SandboxUnavailableError: It does not answer.
        """
        with explained("its version"):
            return str(self.client.version()["Version"]), self._place()

    def _place(self) -> str:
        url = str(self.client.api.base_url)
        return os.environ.get("DOCKER_HOST") or "Docker's current context" if url.startswith("http+docker:") else url

    def close(self) -> None:
        """End its connections; it may be used again."""
        clients, self._clients = self._clients, []
        self._local = threading.local()
        for client in clients:
            client.close()


def usual_host() -> DockerHost:
    """Return the engine of the usual environment, the same for all who ask: what is known of it is asked once."""
    return _host_of(tuple(os.environ.get(variable) for variable in _ENVIRONMENT))


@cache
def _host_of(_environment: tuple[str | None, ...]) -> DockerHost:
    return DockerHost()


def _client_of_environment() -> "docker.DockerClient":
    import docker

    return docker.from_env(timeout=_TIMEOUT_S, use_ssh_client=True)  # the user's own ssh, with its keys and hosts


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Tell what Docker's own errors in the block mean.

    Args:
        what: What was asked for, or of: "container web".

    Raises:
        InvalidBackupConfigError: There is no such thing.
        SandboxUnavailableError: The engine does not answer, or refused.
    """
    import requests
    from docker.errors import APIError, DockerException, NotFound

    try:
        yield
    except NotFound as error:
        raise InvalidBackupConfigError(
            f"sandbox: {what} is not there ({error.explanation}); see those that run with: docker ps"
        ) from error
    except APIError as error:
        raise SandboxUnavailableError(f"{what}: the Docker engine refused: {error.explanation or error}") from error
    except (DockerException, requests.exceptions.RequestException) as error:
        raise SandboxUnavailableError(
            f"no Docker engine answers for {what}: {error}; start it, or set DOCKER_HOST or DOCKER_CONTEXT to where "
            "it is"
        ) from error
