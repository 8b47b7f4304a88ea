"""What the archive way asks of Docker's API about one container."""

import base64
import json
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sandpoint.engine.mounts import parse_mounts
from sandpoint.errors import SandboxUnavailableError
from sandpoint.sandboxes.docker.host import DockerHost, Target

_CHUNK = 1 << 20
_IS_DIR = 1 << 31
_IS_LINK = 1 << 27
_UNSEEN_EVERYWHERE = ("/dev", "/proc", "/sys")
_NEVER_RAN = frozenset({126, 127})
_DOCKER_DEFAULT = "DAC_OVERRIDE"
_PATIENCE_S = 120.0
_UNPACKING_S = 600.0
_SAID_BYTES = 4 << 20
_FRAME = struct.Struct(">4xI")
"""What comes before each piece of a command's output: the stream, and the length."""


class RefusedError(Exception):
    """The engine answered, and would not do it; the message is its own."""


@dataclass(frozen=True)
class Mounted:
    """Where something is mounted in a container, as far as can be known from outside."""

    shown: frozenset[str]
    """Volumes and bind mounts: the API reads and writes through them."""
    unseen: frozenset[str]
    """Others: the API reads and writes what lies below them."""

    def below(self, directory: str) -> frozenset[bytes]:
        """Return those strictly below a directory, by their paths from it."""
        prefix = directory.rstrip("/") + "/"
        found = (point for point in self.shown | self.unseen if point.startswith(prefix))
        return frozenset(os.fsencode(point[len(prefix) :]) for point in found)

    def holder_of(self, directory: str) -> str | None:
        """Return the mount that a directory lies on; None for the container's own filesystem."""
        every = self.shown | self.unseen
        while directory not in every and directory != "/":
            directory = directory.rpartition("/")[0] or "/"
        return directory if directory in every else None


class ContainerArchive:
    """One container, by the API alone."""

    def __init__(self, host: DockerHost, target: Target) -> None:
        """Take a container; nothing is asked yet."""
        self._host = host
        self.id = target.id
        self.name = target.name
        self._found: dict[str, list[str]] = {}
        """What programs are called in it."""

    # -- the container --

    def inspect(self) -> dict[str, Any]:
        """Return all that the engine says of it.

        Raises:
            SandboxUnavailableError: It is gone, or the engine is.
        """
        with self._asked():
            found: dict[str, Any] = self._api.inspect_container(self.id)
            return found

    def is_running(self) -> bool:
        """Whether it runs or is paused."""
        with suppress(SandboxUnavailableError):
            return bool(self.inspect()["State"].get("Running"))
        return False

    def is_paused(self) -> bool:
        """Whether it is paused."""
        return bool(self.inspect()["State"].get("Paused"))

    def root_is_read_only(self) -> bool:
        """Whether nothing can be written but to its volumes."""
        return bool(self.inspect()["HostConfig"].get("ReadonlyRootfs"))

    def overrides_modes(self) -> bool:
        """Whether its superuser may change what other users own."""
        config = self.inspect()["HostConfig"]
        dropped, added = (_names(config.get(key)) for key in ("CapDrop", "CapAdd"))
        if config.get("Privileged") or added & {"ALL", _DOCKER_DEFAULT}:
            return True
        return not dropped & {"ALL", _DOCKER_DEFAULT}

    def mounted(self) -> Mounted:
        """Return what is mounted in it: as it was started, and as its own table says where that can be read."""
        attrs = self.inspect()
        shown = {each["Destination"] for each in attrs.get("Mounts") or () if each.get("Type") != "tmpfs"}
        unseen = {each["Destination"] for each in attrs.get("Mounts") or () if each.get("Type") == "tmpfs"}
        unseen.update(attrs["HostConfig"].get("Tmpfs") or ())
        unseen.update(each["Target"] for each in attrs["HostConfig"].get("Mounts") or () if each.get("Type") == "tmpfs")
        unseen.update(_UNSEEN_EVERYWHERE)
        shown = {_plain(point) for point in shown}
        own = self._own_table() if not attrs["State"].get("Paused") else []
        table = {_plain(point.decode("utf-8", "surrogateescape")) for point in own}
        return Mounted(frozenset(shown), frozenset({*map(_plain, unseen), *table} - shown - {"/"}))

    def _own_table(self) -> list[bytes]:
        said = self._try("cat", "/proc/self/mountinfo")
        with suppress(ValueError, IndexError):
            return [] if said is None else [mount.point for mount in parse_mounts(said.splitlines())]
        return []

    # -- archives --

    def kind_of(self, path: str) -> str | None:
        """Return `dir`, `link` or `other`; None where nothing of that name is there. A link at its end is not followed.

        Raises:
            RefusedError: The engine would not tell.
        """
        with self._asked():
            answer = self._api.head(self._url, params={"path": path}, timeout=self._api.timeout)
        if answer.status_code == 404:
            self.inspect()
            return None
        header = answer.headers.get("X-Docker-Container-Path-Stat")
        if not answer.ok or header is None:
            raise RefusedError(f"the Docker engine does not tell of {path}: {answer.status_code} {answer.reason}")
        mode = int(json.loads(base64.b64decode(header))["mode"])
        return "dir" if mode & _IS_DIR else "link" if mode & _IS_LINK else "other"

    @contextmanager
    def archive_of(self, path: str) -> Iterator[Iterator[bytes]]:
        """Yield the tar stream of a directory, which may end too early.

        Raises:
            RefusedError: The engine would not.
        """
        headers = {"Accept-Encoding": "identity"}
        with self._asked():
            answer = self._api.get(
                self._url, params={"path": path}, stream=True, headers=headers, timeout=self._api.timeout
            )
            try:
                self._api._raise_for_status(answer)
                yield answer.iter_content(_CHUNK)
            finally:
                answer.close()

    def unpack_in(self, path: str, archive: Iterable[bytes]) -> None:
        """Let the engine unpack a tar stream in a directory.

        Raises:
            RefusedError: The engine would not, perhaps after a part of it.
        """
        with self._asked():
            answer = self._api.put(self._url, params={"path": path}, data=archive, timeout=_UNPACKING_S)
            self._api._raise_for_status(answer)

    # -- commands --

    def run(self, argv: Sequence[str], *, user: str = "0:0", given: bytes | None = None) -> tuple[int | None, bytes]:
        """Run a command in it, and return its exit status and what it said.

        Args:
            argv: The command; UTF-8, for the API knows nothing else.
            user: Who runs it.
            given: What it reads from its stdin.

        Raises:
            RefusedError: It could not be started.
        """
        with self._asked():
            created = self._api.exec_create(self.id, list(argv), user=user, stdin=given is not None, workdir="/")["Id"]
            said = _talk(self._api.exec_start(created, socket=True), given)
            status: int | None = self._api.exec_inspect(created)["ExitCode"]
        if status in _NEVER_RAN:
            raise RefusedError(said.decode("utf-8", "replace").strip())
        return status, said

    def remover(self) -> Sequence[str] | None:
        """Return the command that removes files whose names follow; None where the container has none."""
        if self._try("rm", "-f", "--", "/.sandpoint-is-rm-there") is None:
            return None
        return [*self._found["rm"], "-f", "--"]

    def _try(self, program: str, *arguments: str) -> bytes | None:
        """Run a program by one of the names that it may have, and return what it said; None where it is not there."""
        names = [[program], [f"/bin/{program}"], ["/bin/busybox", program], ["busybox", program]]
        if program in self._found:
            names = [self._found[program]]
        for name in names:
            with suppress(RefusedError):
                status, said = self.run([*name, *arguments])
                if status == 0:
                    self._found[program] = name
                    return said
        return None

    # -- asking --

    @property
    def _api(self) -> Any:
        return self._host.client.api

    @property
    def _url(self) -> str:
        api = self._api
        return f"{api.base_url}/v{api.api_version}/containers/{self.id}/archive"

    @contextmanager
    def _asked(self) -> Iterator[None]:
        import requests
        import urllib3
        from docker.errors import APIError, DockerException, NotFound

        try:
            yield
        except NotFound as error:
            if "container" in str(error.explanation).lower() and "path" not in str(error.explanation).lower():
                raise SandboxUnavailableError(
                    f"container {self.name} is not there any more; see those that run with: docker ps", lost=True
                ) from None
            raise RefusedError(str(error.explanation or error)) from None
        except APIError as error:
            raise RefusedError(str(error.explanation or error)) from None
        except (DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise SandboxUnavailableError(
                f"the Docker engine of container {self.name} does not answer any more: {error}; start it, or set "
                "DOCKER_HOST or DOCKER_CONTEXT to where it is",
                lost=True,
            ) from error


def _names(capabilities: Sequence[str] | None) -> set[str]:
    return {name.upper().removeprefix("CAP_") for name in capabilities or ()}


def _plain(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part)


def _talk(connection: Any, given: bytes | None) -> bytes:
    """Send all to a command, and return what it says, up to a limit.

    Raises:
        RefusedError: It does not end.
    """
    own: Any = getattr(connection, "_sock", connection)
    answer = getattr(connection, "_response", None)
    try:
        if hasattr(own, "settimeout"):  # an ssh connection has none
            own.settimeout(_PATIENCE_S)
        if given is not None:
            own.sendall(given)
            own.shutdown(socket.SHUT_WR)
        return b"".join(_frames(own))
    except TimeoutError:
        raise RefusedError(f"a command in the container does not end within {_PATIENCE_S:.0f} s") from None
    finally:
        if answer is not None:
            answer.close()
        connection.close()
        own.close()


def _frames(own: Any) -> Iterator[bytes]:
    ends = time.monotonic() + _PATIENCE_S
    said = 0

    def read(size: int) -> bytes:
        parts = []
        while size:
            if time.monotonic() > ends or said > _SAID_BYTES:
                raise TimeoutError
            part = own.recv(size)
            if not part:
                return b""
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    while header := read(_FRAME.size):
        (size,) = _FRAME.unpack(header)
        said += size
        yield read(size)
