"""A Docker engine of the tests' own, where none answers: started as root, shared by all that need it, and taken away.

Each engine has a folder with its data, its socket and a lock that its users hold, so that the kernel knows whether
anybody still uses it: the last one stops it, and an engine whose users were killed goes when the next one starts.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import docker
from docker.errors import APIError, DockerException

from helpers.place import unmount_all

BASE = Path(os.environ.get("SANDPOINT_TESTS_ENGINES") or "/var/lib/sandpoint-tests")
"""Where engines keep their data: on a filesystem that an overlay's upper layer may lie on."""

_UNFIT = ("overlay", "tmpfs", "ramfs")
_PATIENCE_S = 60.0
_POLL_S = 0.02
_STOP_S = 20.0


class Daemon:
    """A dockerd with a folder of its own."""

    def __init__(self, folder: Path, options: Sequence[str] = (), *, apart: bool = False, remap: str = "") -> None:
        """Prepare it; nothing runs yet.

        Args:
            folder: Its data, its socket and its log.
            options: More of dockerd's options.
            apart: In a network namespace of its own: it leaves the bridge and the firewall of another engine alone,
                and its containers reach nothing outside.
            remap: The user and group (`nobody:nogroup`) by whose names its containers' ids are mapped, from
                `FIRST_REMAPPED_ID` on; needs `apart`.
        """
        self.folder = folder
        self._options = [*options, *([f"--userns-remap={remap}"] if remap else [])]
        self.apart = apart
        self._remap = remap

    @property
    def url(self) -> str:
        """Where it answers, as `DOCKER_HOST` has it."""
        return f"unix://{self.folder}/docker.sock"

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int((self.folder / "pid").read_text())
            if os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def start(self) -> None:
        """Start it and wait until it answers."""
        for program in ("dockerd", "unshare"):
            if shutil.which(program) is None:
                raise RuntimeError(f"{program} is missing; run: make pytest")
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                self._argv(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _started[str(self.folder)] = process
        deadline = time.monotonic() + _PATIENCE_S
        while not answers(self.url):
            text = log.read_text(errors="replace")[-3000:]
            if process.poll() is not None:
                raise RuntimeError(f"dockerd has ended by itself in {self.folder}: {text}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not answer at {self.url} after {_PATIENCE_S} s: {text}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop it, or what a killed one has left: containers, processes, mounts, and all its data."""
        if (pid := self.pid) is not None:
            _remove_all_containers(self.url)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            _wait_for_end(pid)
        if (process := _started.pop(str(self.folder), None)) is not None:
            process.wait()
        containers = [path.name for path in self.folder.glob("data/**/containers/*") if len(path.name) == 64]
        _kill_those_of(self.folder, containers)
        unmount_all(self.folder)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _argv(self) -> list[str]:
        folder = self.folder
        argv = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/pid"]
        argv += ["-H", self.url, *self._options]
        if self._remap:
            user, _, group = self._remap.partition(":")
            ids = folder / "ids"
            ids.write_text("".join(f"{name}:{FIRST_REMAPPED_ID}:65536\n" for name in (user, group)))
            script = f'mount --bind "{ids}" /etc/subuid && mount --bind "{ids}" /etc/subgid && exec "$@"'
            argv = ["unshare", "--mount", "--", "sh", "-c", script, "sh", *argv]
        return ["unshare", "--net", "--", *argv] if self.apart else argv


_started: dict[str, "subprocess.Popen[bytes]"] = {}
"""Those that this process has started, by folder: another process may be the one that stops them."""

FIRST_REMAPPED_ID = 300_000
"""The host's id of root in the containers of an engine with `remap`."""


DEFAULT_URL = "unix:///var/run/docker.sock"


def connect(url: str | None = None, *, timeout: int = 60) -> docker.DockerClient:
    """Talk to the engine there, or at `DOCKER_HOST` or the default socket, whatever context Docker's own tool uses."""
    if url is None and os.environ.get("DOCKER_HOST"):
        return docker.from_env(timeout=timeout)
    return docker.DockerClient(base_url=url or DEFAULT_URL, timeout=timeout)


def answers(url: str | None = None) -> bool:
    """Tell whether an engine answers there, or at `DOCKER_HOST` or the default socket."""
    if not _listens(url or os.environ.get("DOCKER_HOST") or DEFAULT_URL):
        return False
    try:
        client = connect(url, timeout=10)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


def _listens(url: str) -> bool:
    """Ask a socket by hand first: where nobody listens, the docker package leaves one unclosed, which is a warning."""
    kind, _, path = url.partition("://")
    if kind != "unix":
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


@contextmanager
def shared_daemon() -> Iterator[Daemon]:
    """Use the engine that all test processes of this machine share; the first starts it, the last stops it."""
    with _used(Daemon(BASE / "shared")) as daemon:
        yield daemon


@contextmanager
def daemon_apart(*options: str, remap: str = "") -> Iterator[Daemon]:
    """Start an engine for one test, which harms no other: see `Daemon`."""
    with _used(Daemon(BASE / f"apart-{uuid.uuid4().hex[:8]}", options, apart=True, remap=remap)) as daemon:
        yield daemon


@contextmanager
def _used(daemon: Daemon) -> Iterator[Daemon]:
    _check_machine()
    with ExitStack() as stack:
        with _turn():
            _clear_dead()
            users = stack.enter_context(open(BASE / f"{daemon.folder.name}.users", "wb"))
            if _lock_alone(users):
                _start(daemon, users.name)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield daemon
        finally:
            with _turn():
                if _lock_alone(users):
                    daemon.stop()
                    os.unlink(users.name)


def _start(daemon: Daemon, users: str) -> None:
    try:
        _check_no_other(daemon)
        daemon.start()
    except BaseException:
        daemon.stop()
        os.unlink(users)
        raise


@contextmanager
def _turn() -> Iterator[None]:
    """Let one process at a time start and stop engines."""
    with open(BASE / "turn", "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _lock_alone(users: IO[bytes]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear_dead() -> None:
    """Take away the engines of killed tests: those with a folder that nobody holds."""
    for folder in BASE.iterdir():
        if folder.is_dir():
            with open(BASE / f"{folder.name}.users", "ab") as users:
                if _lock_alone(users):
                    Daemon(folder).stop()
                    os.unlink(users.name)


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise RuntimeError(
            "the tests cannot start a Docker engine: only root can. Run them as root; or, for those that need no "
            "engine of their own, start one (sudo service docker start) and be in the group docker"
        )
    BASE.mkdir(mode=0o711, parents=True, exist_ok=True)  # mapped users must come through
    fstype = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", "--target", str(BASE)], check=True, capture_output=True, text=True
    ).stdout.strip()
    if fstype in _UNFIT:
        raise RuntimeError(
            f"a Docker engine cannot keep its data in {BASE}: that is on {fstype}. "
            "Name a folder on ext4 or xfs in SANDPOINT_TESTS_ENGINES"
        )


def _check_no_other(daemon: Daemon) -> None:
    """Refuse to start beside an engine that answers elsewhere: the two would share a bridge, and take it away."""
    if daemon.apart:
        return
    own = os.readlink("/proc/self/ns/net")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text() == "dockerd\n" and os.readlink(folder / "ns" / "net") == own:
                raise RuntimeError(
                    f"a dockerd runs (process {folder.name}) that answers neither at DOCKER_HOST nor at the default "
                    "socket; a second one would take away its bridge. Name its socket in DOCKER_HOST, or stop it"
                )


def _remove_all_containers(url: str) -> None:
    """Remove all containers of an engine that is about to stop, which would wait long for each."""
    try:
        client = connect(url, timeout=20)
    except DockerException:
        return  # it does not answer any more: what is left is killed
    try:
        for found in client.api.containers(all=True):
            with suppress(APIError):
                client.api.remove_container(found["Id"], v=True, force=True)
    except (DockerException, OSError):
        return
    finally:
        client.close()


def _wait_for_end(pid: int) -> None:
    """Wait for a process, a child or another's, and kill it when it takes too long."""
    deadline = time.monotonic() + _STOP_S
    while _runs(pid):
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _kill_those_of(folder: Path, containers: Sequence[str]) -> None:
    """Kill what a killed engine has left: its containerd, the shims, and all processes of its containers."""
    for container in containers:
        for state in Path("/sys/fs/cgroup").glob(f"freezer/docker/{container}/freezer.state"):
            state.write_text("THAWED")
    for _ in range(100):
        pids = [pid for pid in _processes() if _belongs(pid, os.fsencode(f"{folder}/"), containers)]
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            _wait_for_end(pid)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


_PROGRAMS = ("dockerd", "containerd", "containerd-shim")


def _belongs(pid: int, folder: bytes, containers: Sequence[str]) -> bool:
    try:
        if not _runs(pid):
            return False
        if Path(f"/proc/{pid}/comm").read_text().startswith(_PROGRAMS):
            return folder in Path(f"/proc/{pid}/cmdline").read_bytes()
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
    return any(container in groups for container in containers)
