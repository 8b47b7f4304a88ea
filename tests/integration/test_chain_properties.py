"""Any sequence of creates, restores, undos, deletes and prunes: every backup brings its own state back."""

import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helpers.bucket import BucketPlace
from helpers.place import Place, loops_in, unmount_all
from helpers.s3 import S3Server
from helpers.trees import Item, Listing, assert_same, in_whole_seconds, list_tree
from sandpoint.engine.state import DEFAULT_CACHE_BYTES

NAMES = ["a", "b", "c", "d e", "é", "new\nline", "#x", "-y"]


def folders(root: Path) -> list[Path]:
    return [root, *(Path(place, name) for place, names, _ in os.walk(root) for name in names)]


def entries(root: Path) -> list[Path]:
    return [Path(place, name) for place, names, files in os.walk(root) for name in (*names, *files)]


def change(root: Path, seed: int) -> None:
    """Change something, chosen by the seed."""
    chance = random.Random(seed)
    CHANGES[chance.randrange(len(CHANGES))](root, chance)


def free_name(root: Path, chance: random.Random) -> Path | None:
    path = chance.choice([folder for folder in folders(root) if not folder.is_symlink()]) / chance.choice(NAMES)
    return None if os.path.lexists(path) else path


def add_file(root: Path, chance: random.Random) -> None:
    if path := free_name(root, chance):
        path.write_bytes(chance.randbytes(chance.choice([0, 1, 100, 5000])))


def add_folder(root: Path, chance: random.Random) -> None:
    if path := free_name(root, chance):
        path.mkdir(mode=chance.choice([0o755, 0o700]))


def add_link(root: Path, chance: random.Random) -> None:
    if path := free_name(root, chance):
        path.symlink_to(chance.choice(["a", "../b", "/nowhere", "."]))


def add_node(root: Path, chance: random.Random) -> None:
    if path := free_name(root, chance):
        os.mknod(path, chance.choice([stat.S_IFIFO, stat.S_IFSOCK]) | 0o640)


def add_hardlink(root: Path, chance: random.Random) -> None:
    files = [path for path in entries(root) if path.is_file() and not path.is_symlink()]
    path = free_name(root, chance)
    if files and path:
        os.link(chance.choice(files), path)


def rewrite(root: Path, chance: random.Random) -> None:
    files = [path for path in entries(root) if path.is_file() and not path.is_symlink()]
    if files:
        path = chance.choice(files)
        before = path.stat()
        with open(path, "r+b") as file:
            file.write(chance.randbytes(min(before.st_size, 3)) or b"x")
        if chance.random() < 0.5:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(root: Path, chance: random.Random) -> None:
    if there := entries(root):
        path = chance.choice(there)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def rename(root: Path, chance: random.Random) -> None:
    there, path = entries(root), free_name(root, chance)
    if there and path:
        old = chance.choice(there)
        if not str(path).startswith(f"{old}/") and path != old:
            old.rename(path)


def become_another(root: Path, chance: random.Random) -> None:
    if there := entries(root):
        path = chance.choice(there)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            path.write_text("was a folder\n")
        else:
            path.unlink()
            path.mkdir()
            (path / "inside").write_text("was none\n")


def set_attributes(root: Path, chance: random.Random) -> None:
    if there := entries(root):
        path = chance.choice(there)
        if not path.is_symlink():
            path.chmod(chance.choice([0o600, 0o755, 0o4711]))
            if path.is_file() or path.is_dir():
                os.setxattr(path, "user.note", chance.randbytes(4))
        os.chown(path, chance.choice([0, 1000]), 1000, follow_symlinks=False)


CHANGES: list[Callable[[Path, random.Random], None]] = [
    add_file,
    add_file,
    add_folder,
    add_link,
    add_node,
    add_hardlink,
    rewrite,
    rewrite,
    remove,
    rename,
    become_another,
    set_attributes,
]


def files(state: Listing) -> dict[bytes, Item]:
    return {path: item for path, item in state.items() if item.kind != "dir"}


def total_bytes(state: Listing) -> int:
    """Return the size of all files, that of hard links once."""
    return sum(
        item.size for path, item in files(state).items() if item.kind == "file" and path <= min(item.links or (path,))
    )


SEEDS = st.lists(st.integers(0, 2**32), min_size=0, max_size=6)


class Backups(RuleBasedStateMachine):
    """The state of the directory at each backup, kept aside as a listing."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="sandpoint-chain-"))
        self.states: dict[str, Listing] = {}
        self.has_overlay = False

    @initialize(seeds=st.lists(st.integers(0, 2**32), min_size=5, max_size=25), layers=st.sampled_from([2, 3, 5, 16]))
    def build(self, seeds: list[int], layers: int) -> None:
        self.place = self.make_place(layers)
        self.place.tree.mkdir()
        for seed in seeds:
            change(self.place.tree, seed)

    def make_place(self, layers: int) -> Place:
        return Place(self.base, chain_layers=layers)

    def now(self) -> Listing:
        return list_tree(self.place.tree)

    def same(self, expected: Listing, found: Listing) -> None:
        # An overlay shows whole seconds, and a state that was kept from one has them.
        assert_same(in_whole_seconds(expected), in_whole_seconds(found))

    def pick(self, number: int) -> str:
        return sorted(self.states)[number % len(self.states)]

    def work(self, seeds: list[int]) -> None:
        for seed in seeds:
            change(self.place.tree, seed)

    @rule(seeds=SEEDS, full=st.sampled_from([False] * 5 + [True]))
    def create(self, seeds: list[int], full: bool) -> None:
        self.work(seeds)
        state = self.now()
        backup = self.place.create(full=full)
        assert (backup.file_count, backup.total_bytes) == (len(files(state)), total_bytes(state))
        self.states[backup.id] = state

    @rule(works=st.lists(SEEDS, min_size=2, max_size=4))
    def create_some(self, works: list[list[int]]) -> None:
        for seeds in works:
            self.create(seeds=seeds, full=False)

    @precondition(lambda self: self.states)
    @rule(seeds=SEEDS, number=st.integers(0, 100), undo=st.booleans())
    def restore_by_copy(self, seeds: list[int], number: int, undo: bool) -> None:
        self.work(seeds)
        self.restore(number, "copy", undo)

    @precondition(lambda self: self.states)
    @rule(seeds=SEEDS, number=st.integers(0, 100), undo=st.booleans())
    def restore_by_overlay(self, seeds: list[int], number: int, undo: bool) -> None:
        self.work(seeds)
        self.restore(number, "overlay", undo)

    def restore(self, number: int, mode: str, undo: bool) -> None:
        wanted, before = self.pick(number), self.now()
        result = self.place.restore(wanted, mode=mode, undo=undo)
        self.same(self.states[wanted], self.now())
        if result.undo_id is not None:
            self.states[result.undo_id] = before
        elif undo and mode == "copy" and not self.has_overlay:
            self.same(before, self.now())
        self.has_overlay = mode == "overlay"

    @precondition(lambda self: self.has_overlay)
    @rule()
    def unmount(self) -> None:
        before = self.now()
        undo_id = self.place.unmount().undo_id
        if undo_id is not None:
            self.states[undo_id] = before
        self.has_overlay = False

    @precondition(lambda self: len(self.states) > 1)
    @rule(number=st.integers(0, 100))
    def delete(self, number: int) -> None:
        gone = self.pick(number)
        self.place.run(self.place.service.delete, gone)
        del self.states[gone]

    @rule()
    def prune(self) -> None:
        self.place.run(self.place.service.prune)

    @precondition(lambda self: self.states)
    @rule(number=st.integers(0, 100))
    def bring_elsewhere(self, number: int) -> None:
        other = self.base / "other"
        wanted = self.pick(number)
        self.place.restore(wanted, dir=other, undo=False)
        self.same(self.states[wanted], list_tree(other))

    @invariant()
    def only_the_backups_that_there_are(self) -> None:
        assert sorted(self.place.ids()) == sorted(self.states)

    def teardown(self) -> None:
        try:
            for wanted, state in self.states.items():
                other = self.base / "last"
                assert self.place.run(self.place.service.verify, wanted).ok
                self.place.restore(wanted, dir=other, undo=False)
                self.same(state, list_tree(other))
        finally:
            unmount_all(self.base)
            shutil.rmtree(self.base)


class BackupsInBucket(Backups):
    """The same in a bucket, with a cache of what is in it."""

    server: S3Server
    budget: int

    def make_place(self, layers: int) -> Place:
        return BucketPlace(self.base, self.server, chain_layers=layers, cache_bytes=self.budget)

    @invariant()
    def the_cache_is_within_its_budget_but_for_what_is_mounted(self) -> None:
        mounted = {os.path.basename(file) for file in loops_in(self.base)}
        kept = [path for path in self.place.state.glob("cache/*") if path.suffix != ".lock"]
        assert sum(path.stat().st_size for path in kept if path.name not in mounted) <= self.budget

    def teardown(self) -> None:
        try:
            self.place.run(self.place.service.prune)
            self.place.assert_clean()
        finally:
            super().teardown()


SETTINGS = settings(
    max_examples=int(os.environ.get("CHAIN_EXAMPLES", "90")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # a step takes long: what fails is shown as it was found
)

TestBackups = Backups.TestCase
TestBackups.settings = SETTINGS


@pytest.mark.parametrize("cache_bytes", [DEFAULT_CACHE_BYTES, 6000, 0], ids=["all", "some", "nothing"])
def test_backups_in_a_bucket_of_which_is_cached(s3_server: S3Server, cache_bytes: int) -> None:
    class Machine(BackupsInBucket):
        server = s3_server
        budget = cache_bytes

    examples = int(os.environ.get("BUCKET_EXAMPLES", "2"))
    run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=examples, stateful_step_count=15))
