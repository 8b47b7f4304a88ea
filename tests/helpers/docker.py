"""A real Docker engine for tests: throw-away containers, what is in them, and what of Sandpoint is left on it."""

import base64
import io
import os
import socket
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.volumes import Volume

from helpers import images
from helpers.dockerd import DEFAULT_URL, Daemon, answers, connect, shared_daemon
from helpers.place import loops_in
from sandpoint.sandboxes.docker.host import TARGET_LABEL

LABEL = "sandpoint-test"
"""Of all that tests make on an engine; its value is the run."""

OF_PRODUCT = "sandpoint."
"""Begins the labels of what Sandpoint itself makes on an engine."""

MOUNT_PREFIX = "sandpoint-"

_PATIENCE_S = 30.0
_POLL_S = 0.02


class MountLine(NamedTuple):
    """One line of a mount table: where, what, from what, how."""

    point: str
    fstype: str
    source: str
    options: str


class Target:
    """A running container of a test."""

    def __init__(self, container: Container) -> None:
        """Take it as it runs."""
        self.container = container
        self.id = str(container.id)
        self.name = str(container.name)

    @property
    def sandbox(self) -> str:
        """As `--sandbox` names it."""
        return f"docker:{self.name}"

    @property
    def pid(self) -> int:
        """Its first process, as this machine numbers it; 0 where it is stopped."""
        self.container.reload()
        return int(self.container.attrs["State"]["Pid"])

    @property
    def root(self) -> Path:
        """Its tree as root of this machine sees it, mounts and all, while it runs."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def state(self) -> Path:
        """Where Sandpoint keeps on this machine what is of this container."""
        client = self.container.client
        assert client is not None
        return Path(client.volumes.get("sandpoint-state").attrs["Mountpoint"]) / "sandboxes" / self.id

    def run(self, *argv: str, user: str = "", environment: Mapping[str, str] | None = None) -> bytes:
        """Run a command in it, and return what it says, stderr too; fail unless it ends with 0."""
        status, output = self.attempt(*argv, user=user, environment=environment)
        assert status == 0, f"{argv} in {self.name} ended with {status}: {output[-3000:]!r}"
        return output

    def attempt(
        self, *argv: str, user: str = "", environment: Mapping[str, str] | None = None
    ) -> tuple[int | None, bytes]:
        """Run a command in it, and return its exit status and what it says."""
        result = self.container.exec_run(list(argv), user=user, environment=dict(environment or {}))
        output = result.output
        assert isinstance(output, bytes)
        return result.exit_code, output

    def read(self, path: str) -> bytes:
        """Return the content of a file as the container's processes see it."""
        status, (output, said) = self.container.exec_run(["cat", path], demux=True)
        assert status == 0, f"{path} in {self.name} cannot be read: {said!r}"
        assert not isinstance(output, int)
        return output or b""

    def write(self, path: str, content: bytes | str, *, user: str = "") -> None:
        """Write a small file (up to 64 KiB) as a process of the container does; needs a shell and `base64` there."""
        data = content.encode() if isinstance(content, str) else content
        text = base64.b64encode(data).decode()
        self.run("sh", "-c", 'mkdir -p "${2%/*}/" && echo "$1" | base64 -d > "$2"', "sh", text, path, user=user)

    def upload(
        self, files: Mapping[str, bytes | str], *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = 0
    ) -> None:
        """Write many files by the engine's archive API, by absolute paths; folders on the way are made.

        The API sees the container's tree without the mounts that were made inside since its start: what is written
        lands below an overlay of Sandpoint's.
        """
        with io.BytesIO() as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for path, content in files.items():
                    data = content.encode() if isinstance(content, str) else content
                    member = tarfile.TarInfo(path.lstrip("/"))
                    member.mode, member.uid, member.gid, member.size = mode, uid, gid, len(data)
                    member.mtime = mtime or time.time()
                    tar.addfile(member, io.BytesIO(data))
            assert self.container.put_archive("/", file.getvalue())

    def copy_in(self, folder: Path, path: str) -> None:
        """Copy what is in a folder of this machine into a directory that the container has, by the archive API."""
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                tar.add(folder, arcname=".")
            file.seek(0)
            assert self.container.put_archive(path, file)

    def download(self, path: str) -> bytes:
        """Return the content of a regular file by the archive API, which does not see mounts made inside either."""
        chunks, _ = self.container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            content = tar.extractfile(tar.getmembers()[0])
            assert content is not None, f"{path} in {self.name} is not a regular file"
            return content.read()

    def mounts(self) -> list[MountLine]:
        """Return its mount table."""
        return mount_table(self.pid)


class Engine:
    """The engine, and what tests make on it; `with` closes its connections."""

    def __init__(self, url: str | None = None) -> None:
        """Talk to the engine at a URL, or to that of the environment."""
        self.client = connect(url)
        self.url: str = url or os.environ.get("DOCKER_HOST") or DEFAULT_URL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def busybox_image(self) -> str:
        """Return the name of the image with busybox alone: `images.busybox_image`."""
        return images.busybox_image(self.client)

    def debian_image(self) -> str:
        """Return the name of the Debian image for everything else: `images.debian_image`."""
        return images.debian_image(self.client)

    @contextmanager
    def container(
        self, image: str, command: list[str] | None = None, *, name: str | None = None, **options: Any
    ) -> Iterator[Target]:
        """Start a throw-away container; it goes with its anonymous volumes, whatever happened to it.

        Args:
            image: What it is made of.
            command: What it runs instead of the image's own command.
            name: Its name instead of a new one.
            options: As `containers.run` of the docker package takes them: `cap_drop`, `read_only`, `volumes`, `tmpfs`,
                `user`, `labels`. It has no network unless `network_mode` says so, and is killed when it is stopped
                unless `stop_signal` is another: sleep, as its first process, would ignore SIGTERM.
        """
        settings = {"network_mode": "none", "stop_signal": "SIGKILL", **options}
        labels = {**settings.pop("labels", {}), LABEL: _run_name()}
        name = name or f"{LABEL}-{uuid.uuid4().hex[:12]}"
        try:
            yield Target(self.client.containers.run(image, command, name=name, detach=True, labels=labels, **settings))
        finally:
            self.remove_container(name)

    @contextmanager
    def volume(self, **options: Any) -> Iterator[Volume]:
        """Make a volume, which goes with the block; what uses it must have gone before."""
        name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
        volume = self.client.volumes.create(name, labels={LABEL: _run_name()}, **options)
        try:
            yield volume
        finally:
            with suppress(NotFound):
                volume.remove(force=True)

    def remove_container(self, name: str) -> None:
        """Remove a container by name or id, in whatever state, and wait until it is gone."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.client.api.remove_container(name, v=True, force=True)
            except NotFound:
                return
            except APIError as error:  # another removes it at this moment
                if error.status_code != 409 or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    def remove_dead(self) -> None:
        """Remove what the killed runs of this machine have left: containers and volumes with our label."""
        filters = {"label": LABEL}
        for found in self.client.api.containers(all=True, filters=filters):
            if _is_dead(found["Labels"][LABEL]):
                self.remove_container(found["Id"])
        for volume in self.client.api.volumes(filters=filters)["Volumes"] or ():
            if _is_dead(volume["Labels"][LABEL]):
                with suppress(NotFound):
                    self.client.api.remove_volume(volume["Name"], force=True)


@contextmanager
def engine() -> Iterator[Engine]:
    """Use the engine that answers at `DOCKER_HOST` or the default socket, or start one that all tests share.

    `DOCKER_HOST` names it while the block runs, also for what the tests start.
    """
    before = os.environ.get("DOCKER_HOST")
    with ExitStack() as stack:
        if not answers():
            os.environ["DOCKER_HOST"] = stack.enter_context(shared_daemon()).url
        try:
            found = stack.enter_context(Engine())
            os.environ["DOCKER_HOST"] = found.url
            found.remove_dead()
            yield found
        finally:
            if before is None:
                os.environ.pop("DOCKER_HOST", None)
            else:
                os.environ["DOCKER_HOST"] = before


def of(daemon: Daemon) -> Engine:
    """Return the engine that a daemon of the tests' own serves."""
    return Engine(daemon.url)


def leftovers(
    engine: Engine, *targets: Target, folders: tuple[Path, ...] = (), labels: Mapping[str, str] | None = None
) -> list[str]:
    """Return what of Sandpoint is there, sorted: to compare with what was there before.

    Args:
        engine: Whose containers and volumes with a label that begins with `sandpoint.` are told.
        targets: Running containers whose mount tables are looked at, beside this machine's. Where there are any, what
            is labelled as another container's is not told.
        folders: Loop devices on files below these are told. Where there are any, only those of this machine's mounts
            are told that mention one of them, so that tests side by side do not see one another's.
        labels: Only containers and volumes that have these too are told.
    """
    found = [
        f"container {made['Names'][0].lstrip('/')} ({made['State']})"
        for made in engine.client.api.containers(all=True)
        if _is_of_product(made["Labels"], labels, targets)
    ]
    found += [
        f"volume {made['Name']}"
        for made in engine.client.api.volumes()["Volumes"] or ()
        if _is_of_product(made["Labels"], labels, targets)
    ]
    for line in mount_table("self"):
        if not folders or any(str(folder) in f"{line.point} {line.options}" for folder in folders):
            found += _of_mount(line, "this machine")
    for target in targets:
        for line in target.mounts():
            found += _of_mount(line, target.name)
    found += [f"loop device on {file}" for folder in folders for file in loops_in(folder)]
    return sorted(found)


def assert_no_more_left(
    before: list[str],
    engine: Engine,
    *targets: Target,
    folders: tuple[Path, ...] = (),
    labels: Mapping[str, str] | None = None,
) -> None:
    """Fail unless `leftovers` are as before, after a moment for the engine and the kernel."""
    deadline = time.monotonic() + _PATIENCE_S
    while (now := leftovers(engine, *targets, folders=folders, labels=labels)) != before:
        assert time.monotonic() < deadline, f"left over: {sorted(set(now) - set(before))}; before: {before}"
        time.sleep(_POLL_S)


def mount_table(process: int | str) -> list[MountLine]:
    """Return the mounts that a process sees, in the kernel's order."""
    lines = []
    with open(f"/proc/{process}/mountinfo", "rb") as table:
        for line in table:
            before, after = os.fsdecode(line).split(" - ", 1)
            fstype, source, options = after.rstrip("\n").split(" ")
            point = os.fsdecode(before.split(" ")[4].encode().decode("unicode_escape").encode("latin-1"))
            lines.append(MountLine(point, fstype, source, options))
    return lines


def _of_mount(line: MountLine, where: str) -> list[str]:
    return [f"mount {line.source} on {line.point} of {where}"] if line.source.startswith(MOUNT_PREFIX) else []


def _is_of_product(
    found: Mapping[str, str] | None, wanted: Mapping[str, str] | None, targets: tuple[Target, ...]
) -> bool:
    labels = found or {}
    if targets and labels.get(TARGET_LABEL) not in {None, *(target.id for target in targets)}:
        return False
    return any(name.startswith(OF_PRODUCT) for name in labels) and (wanted or {}).items() <= labels.items()


def _run_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"


def _is_dead(run: str) -> bool:
    """Tell whether the process that made something is gone; another machine's may be alive."""
    host, _, process = run.rpartition("/")[0].rpartition("/")
    return host == socket.gethostname() and f"{_started(int(process))}" != run.rpartition("/")[2]


def _started(process: int) -> str:
    """Return when a process started, in the kernel's ticks, or nothing: a number may be given again."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(") ")[2].split(" ")[19]
