"""The bench: this project beside the tools it is built on and the ones it is compared with, in one run."""

import argparse
import asyncio
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from benchmarks import bucket, containers, peers, report, rows, subject
from benchmarks.bucket import BucketBench
from benchmarks.containers import DockerBench
from benchmarks.mcp_server import McpBench
from benchmarks.plugin import PluginBench
from benchmarks.rounds import MORE_ROUNDS, REST_S, Contender, Samples, merge, take_turns
from benchmarks.subject import Subject
from benchmarks.tree import DEFAULT_FILES, Tree, generate
from benchmarks.workspace import BUILD, workspace

START_UPS = 3
_SMALL_FILE = 4_000
"""Bytes that no file of the large tree has: what is measured on it goes by their number."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if not options.reuse:
        if options.only in {"service", None}:
            peers.require(peers=not options.without_peers)
        report.write_json(run(options), options.json)
    result = report.read_json(options.json)
    if options.markdown:
        report.print_markdown(result)
    else:
        report.print_table(result, Console(width=None if os.isatty(1) else 120))
    for row in report.missed(result):
        print(f"Missed: {row['what'].replace('**', '')}")
    return 1 if options.strict and report.missed(result) else 0


def run(options: argparse.Namespace) -> report.Report:
    sizes = rows.Sizes(
        files=options.files,
        backups=options.backups,
        series=options.series,
        plugin_files=options.plugin_files,
        tests=options.tests,
        bucket_backups=options.bucket_backups,
        layer_mib=options.layer_mib,
    )
    samples: Samples = {}
    versions: dict[str, str] = {}
    bench = None
    with workspace(options.dir) as space, asyncio.Runner() as runner:
        print(f"Working on {space.kind}.")
        if options.only in {"service", None}:
            bench = Bench(space.path, runner, sizes, options)
            samples |= bench.measure()
            versions |= peers.versions(peers=not options.without_peers)
        if options.only in {"bucket", None}:
            samples |= BucketBench(os.path.join(space.path, "bucket"), runner, options).measure()
            versions |= bucket.versions()
        if options.only in {"docker", None}:
            samples |= DockerBench(os.path.join(space.path, "docker"), runner, options).measure()
            versions |= containers.versions()
        if options.only in {"mcp", None}:
            samples |= McpBench(os.path.join(space.path, "mcp"), runner, options).measure()
            versions |= {"mcp": version("mcp")}
        if options.only in {"plugin", None}:
            plugin = PluginBench(os.path.join(space.path, "plugin"), sizes, rounds=options.rounds, rest=options.rest)
            samples |= plugin.measure()
            versions |= {"Python": platform.python_version(), "pytest": pytest.__version__}
        return report.build(
            filesystem=space.kind,
            versions=versions,
            tree=bench.tree if bench else None,
            compression=bench.main.settings.compression if bench else None,
            rounds=options.rounds,
            rows=rows.measure(samples, peers=not options.without_peers, sizes=sizes, only=options.only),
        )


class Bench:
    """The service's part of one run in one workspace."""

    def __init__(self, path: str, runner: asyncio.Runner, sizes: rows.Sizes, options: argparse.Namespace) -> None:
        self.path = path
        self.runner = runner
        self.sizes = sizes
        self.options = options
        self.with_peers = not options.without_peers
        self.tree, self.main = self._subject("main", options.files)

    def measure(self) -> Samples:
        """Series after series. Memory first: it reads the whole tree, and so warms the page cache."""
        whole = merge(self.main.memory(), self._whole_trees())
        _, large = self._subject("large", self.sizes.large_files, shorter_than=_SMALL_FILE)
        return merge(
            whole,
            large.memory_of_all(),
            self._overlays(large),
            self._start_ups(),
            self._list(),
            Subject(self.main.tree, self._folder("series"), self.runner).series(self.sizes.series),
        )

    def _whole_trees(self) -> Samples:
        """All that reads or writes the whole tree, in turns; the targets get some rounds more."""
        tree, work = self.main.tree, self._folder("peers")
        squashfs = tuple(peers.raw_squashfs(tree, work, self.main.settings.compression))
        targets: list[Contender] = [*squashfs, *self.main.creates(), *self.main.copies()]
        others = [*self.main.copies_anew()]
        if self.with_peers:
            for peer in (peers.copy, peers.restic, peers.borg, peers.shadow_git):
                others += peer(tree, work)
        turns = self._take_turns([*targets, *others], self.options.rounds), self._take_turns(targets, MORE_ROUNDS)
        return merge(*turns, self.main.weights)

    def _overlays(self, large: Subject) -> Samples:
        if not self.main.can_overlay():
            print("This machine can mount no overlay: `sandpoint doctor` says why.")
            return {}
        _, small = self._subject("small", max(100, self.options.files // 10))
        small.create()
        rounds = self.options.rounds + MORE_ROUNDS
        with _unmounted(self.main), _unmounted(small), _unmounted(large):
            restores = self._take_turns(
                [
                    *self.main.overlays("restore_overlay", live=True),
                    *small.overlays("restore_overlay_small", live=False),
                    *self.main.overlay_creates("create_overlay"),
                    *large.overlay_creates("create_overlay_large"),
                ],
                rounds,
            )
            return merge(restores, self._take_turns(self.main.chains(), rounds))

    def _start_ups(self) -> Samples:
        _, few = self._subject("few", 100)
        for _ in range(START_UPS):
            few.create()
        return self._take_turns(few.start_ups(), self.options.rounds + MORE_ROUNDS)

    def _list(self) -> Samples:
        _, many = self._subject("many", 100)
        print(f"A store of {self.options.backups:,} backups ...")
        return self._take_turns(subject.lists(many, self.options.backups), self.options.rounds + MORE_ROUNDS)

    def _take_turns(self, contenders: Iterable[Contender], rounds: int) -> Samples:
        return take_turns(contenders, rounds, rest=self.options.rest)

    def _subject(self, name: str, files: int, shorter_than: int | None = None) -> tuple[Tree, Subject]:
        folder = self._folder(name)
        tree = os.path.join(folder, "tree")
        made = generate(tree, files, shorter_than=shorter_than)
        print(f"A tree of {made.files:,} files in {made.directories:,} directories, {made.bytes / 1e6:.0f} MB.")
        return made, Subject(tree, folder, self.runner)

    def _folder(self, name: str) -> str:
        path = os.path.join(self.path, name)
        os.mkdir(path)
        return path


@contextmanager
def _unmounted(of: Subject) -> Iterator[None]:
    try:
        yield
    finally:
        of.unmount()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--files",
        type=int,
        default=DEFAULT_FILES,
        help=f"of the generated tree (%(default)s), and {rows.TIMES_LARGER} times as many of a large one",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the slow contenders (%(default)s)")
    parser.add_argument("--rest", type=float, default=REST_S, help="seconds before each contender (%(default)s)")
    parser.add_argument("--backups", type=int, default=10_000, help="in the store that is listed (%(default)s)")
    parser.add_argument("--series", type=int, default=200, help="backups whose store is weighed (%(default)s)")
    parser.add_argument("--bucket-backups", type=int, default=100_000, help="in the bucket listed (%(default)s)")
    parser.add_argument("--layer-mib", type=int, default=512, help="of the layer sent and fetched (%(default)s)")
    parser.add_argument("--plugin-files", type=int, default=12_000, help="of the plugin's tree (%(default)s)")
    parser.add_argument("--tests", type=int, default=1_000, help="empty ones, in a run of pytest (%(default)s)")
    parser.add_argument("--load-seconds", type=float, default=60, help="of the load over HTTP (%(default)s)")
    parser.add_argument("--only", choices=get_args(rows.Part), help="measure one part alone")
    parser.add_argument("--without-peers", action="store_true", help="leave out restic, borg, git and cp")
    parser.add_argument("--dir", help="work in this directory instead of on a fresh filesystem")
    parser.add_argument("--json", type=Path, default=BUILD / "bench.json", help="where the figures go (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    parser.add_argument("--reuse", action="store_true", help="print the figures of the last run again")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a limit is missed")
    return parser.parse_args(arguments)
