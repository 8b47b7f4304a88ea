"""A tree in containers beside the same tree on this machine, by each way that mounts."""

import argparse
import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version

from benchmarks.rounds import MORE_ROUNDS, Contender, Samples, command, merge, take_turns
from benchmarks.subject import Subject
from benchmarks.tree import generate
from helpers.docker import Engine, Target, engine

_DIR = "/workspace/tree"
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
            host = Subject(tree, self._folder("host"), self.runner)
            subjects = {way: self._subject(way, tree, docker, stack) for way in _WAYS}
            os.sync()
            rounds = self.rounds + MORE_ROUNDS
            return merge(
                take_turns(self._creates({"host": host, **subjects}), self.rounds, rest=self.rest),
                take_turns(self._changes(subjects), rounds, rest=self.rest),
                take_turns(self._restores(subjects), rounds, rest=self.rest),
            )

    def _subject(self, way: str, tree: str, docker: Engine, stack: ExitStack) -> Subject:
        target: Target = stack.enter_context(docker.container(docker.busybox_image(), cap_drop=["ALL"]))
        outside = f"{target.root}{_DIR}"
        command(["cp", "-a", tree, outside])
        subject = Subject(outside, self._folder(way), self.runner, dir=_DIR, sandbox=target.sandbox, docker_way=way)
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

    def _folder(self, name: str) -> str:
        path = os.path.join(self.path, name)
        os.mkdir(path)
        return path


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    with engine() as docker:
        return {"Docker engine": docker.client.version()["Version"], "docker (Python)": version("docker")}
