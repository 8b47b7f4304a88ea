"""A tree in containers beside the same tree on this machine, by each way that mounts."""

import argparse
import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from unittest.mock import patch

from benchmarks.rounds import MORE_ROUNDS, Contender, Samples, command, merge, remove, take_turns
from benchmarks.rows import CONTAINERS, FEW
from benchmarks.subject import Subject, is_mounted
from benchmarks.tree import generate
from helpers.docker import Engine, Target, engine
from sandpoint.sandboxes.docker.freezer import ContainerFreezer
from sandpoint.sandboxes.docker.host import VOLUME
from sandpoint.services import Services, fork_to

_DIR = "/workspace/tree"
_FEW_DIR = "/workspace/few"
_WAYS = ("direct", "helper")


class DockerBench:
    """The containers' part of one run in one workspace."""

    def __init__(self, path: str, runner: asyncio.Runner, options: argparse.Namespace) -> None:
        self.path = path
        self.runner = runner
        self.files: int = options.files
        self.rounds: int = options.rounds
        self.rest: float = options.rest

    def measure(self) -> Samples:
        """Find or start an engine, and measure with containers that have no capability."""
        os.mkdir(self.path)
        with engine() as docker, ExitStack() as stack:
            tree = os.path.join(self.path, "tree")
            made = generate(tree, self.files)
            print(f"A tree of {made.files:,} files in {made.directories:,} directories, {made.bytes / 1e6:.0f} MB.")
            targets = {way: self._target(tree, docker, stack) for way in _WAYS}
            subjects = {way: self._subject(way, target, docker, stack) for way, target in targets.items()}
            remove(tree)
            # The very same files, as they lie on this machine's disk.
            upper = targets["direct"].container.attrs["GraphDriver"]["Data"]["UpperDir"]
            host = Subject(f"{upper}{_DIR}", self._folder("host"), self.runner)
            for subject in (host, *subjects.values()):
                subject.create()  # what is started and built at first is not of each backup
            os.sync()
            rounds = self.rounds + MORE_ROUNDS
            return merge(
                take_turns(self._creates({"host": host, **subjects}), self.rounds, rest=self.rest),
                take_turns(self._changes(subjects), rounds, rest=self.rest),
                take_turns(self._restores(subjects), rounds, rest=self.rest),
                self._freezes("docker_freeze", subjects["direct"], rounds),
                self._freezes_of_few(targets["direct"], docker, rounds),
                self._forks(subjects["direct"], docker, rounds),
            )

    @staticmethod
    def _target(tree: str, docker: Engine, stack: ExitStack) -> Target:
        target: Target = stack.enter_context(docker.container(docker.busybox_image(), cap_drop=["ALL"]))
        command(["cp", "-a", tree, f"{target.root}{_DIR}"])
        return target

    def _subject(self, way: str, target: Target, docker: Engine, stack: ExitStack, dir: str = _DIR) -> Subject:
        outside = f"{target.root}{dir}"
        subject = Subject(
            outside,
            self._folder(way + dir.replace("/", "-")),
            self.runner,
            dir=dir,
            sandbox=target.sandbox,
            docker_way=way,
            helper_base=docker.debian_image(),
        )
        stack.callback(lambda: subject.do(subject.service.close()))
        stack.callback(subject.unmount)
        return subject

    @staticmethod
    def _creates(subjects: dict[str, Subject]) -> Iterator[Contender]:
        for name, subject in subjects.items():
            yield Contender(f"docker_create_{name}", run=subject.create)

    @staticmethod
    def _changes(subjects: dict[str, Subject]) -> Iterator[Contender]:
        for way, subject in subjects.items():
            yield from subject.changed(f"docker_changed_{way}")

    @staticmethod
    def _restores(subjects: dict[str, Subject]) -> Iterator[Contender]:
        for way, subject in subjects.items():
            yield from subject.overlays(f"docker_restore_{way}", live=False)

    def _freezes_of_few(self, target: Target, docker: Engine, rounds: int) -> Samples:
        """The same where there are as many files as a database has."""
        generate(f"{target.root}{_FEW_DIR}", FEW)
        with ExitStack() as stack:
            subject = self._subject("direct", target, docker, stack, dir=_FEW_DIR)
            subject.create()
            return self._freezes("docker_freeze_few", subject, rounds)

    @staticmethod
    def _freezes(key: str, subject: Subject, rounds: int) -> Samples:
        """For how long a container is paused where files changed just before that, after all had been looked at."""
        subject.unmount()
        seconds: list[float] = []
        for number in range(rounds):
            with _before_each_pause(subject.change):
                backup = subject.do(subject.service.create(subject.dir, freeze=True))
            assert backup.frozen_seconds is not None
            assert backup.kind == "delta"
            seconds.append(backup.frozen_seconds)
            print(f"round {number + 1}/{rounds}  {key:<24} {seconds[-1]:9.3f} s")
            subject.do(subject.service.delete(backup.id))
        return {key: seconds}

    def _forks(self, subject: Subject, docker: Engine, rounds: int) -> Samples:
        """One backup into many containers at once, by overlay."""
        with ExitStack() as stack:
            image = docker.busybox_image()
            targets = [stack.enter_context(docker.container(image, cap_drop=["ALL"])) for _ in range(CONTAINERS)]
            where = [(target.sandbox, _DIR) for target in targets]
            services = Services(subject.settings)

            def begin() -> None:
                nonlocal services
                subject.do(services.close())
                services = Services(subject.settings)  # no container is entered yet

            def fork() -> None:
                result = subject.do(fork_to(services, subject.id(), where, mode="overlay", undo=False))
                assert len(result.restores) == CONTAINERS

            def unmount() -> None:
                for target in targets:
                    assert is_mounted(f"{target.root}{_DIR}")
                    subject.do(self._unmount(services, target))

            contender = Contender("docker_fork", before=begin, run=fork, after=unmount)
            samples = take_turns([contender], rounds, rest=self.rest)
            peak = subject.peak("fork", subject.id(), _DIR, *(target.sandbox for target in targets))
            disk = sum(self._state_bytes(docker, target) for target in targets)
            unmount()
            subject.do(services.close())
            return samples | {"docker_fork_disk": [float(disk)], "memory_docker_fork": [float(peak["peak_bytes"])]}

    @staticmethod
    async def _unmount(services: Services, target: Target) -> None:
        async with services.use(target.sandbox) as service:
            await service.unmount(_DIR, undo=False)

    @staticmethod
    def _state_bytes(docker: Engine, target: Target) -> int:
        """Return what the engine's disk holds for a container alone."""
        folder = os.path.join(docker.client.volumes.get(VOLUME).attrs["Mountpoint"], "sandboxes", target.id)
        return int(command(["du", "-s", "--block-size=1", "--one-file-system", folder]).split()[0])

    def _folder(self, name: str) -> str:
        path = os.path.join(self.path, name)
        os.mkdir(path)
        return path


@contextmanager
def _before_each_pause(act: Callable[[], None]) -> Iterator[None]:
    pause = ContainerFreezer.pause

    def late(freezer: ContainerFreezer) -> None:
        act()
        pause(freezer)

    with patch.object(ContainerFreezer, "pause", late):
        yield


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    with engine() as docker:
        return {"Docker engine": docker.client.version()["Version"], "docker (Python)": version("docker")}
