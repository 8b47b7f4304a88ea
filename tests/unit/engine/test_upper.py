"""The upper layer of a real overlay says what was changed in it, as a full comparison does, and at less cost."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.changes import CHANGES, DEEP_PATHS, LINK_VERBS, Step, build_varied, carry_out, expected_changes
from helpers.engine import Stopped, count_descriptors, never, opened, stop, walk
from helpers.place import tmpfs, unmount_all
from helpers.trees import NAMES, Listing, at, build_zoo, list_tree, write
from sandpoint.engine import linux
from sandpoint.engine.contents import always, differing
from sandpoint.engine.manifest import Manifest, make_manifest
from sandpoint.engine.plan import Comparison, Plan, make_plan
from sandpoint.engine.upper import changed_since
from sandpoint.models import Changes


@dataclass
class Overlay:
    """A directory, and an overlay over it with an upper layer in memory."""

    lower: Path
    merged: Path
    upper: Path

    def plan(self, check: Callable[[], None] = never) -> Plan:
        """Return what changed, from the upper layer."""
        with opened(self.lower) as before, opened(self.merged) as now, opened(self.upper) as upper:
            return changed_since(before, now, [(b"", upper)], check).plan

    def changes(self) -> Changes:
        """Return the paths that changed, from the upper layer."""
        return self.plan().changes()

    def check(self, before: Listing) -> Changes:
        """Compare what the upper layer says with two full comparisons, one of them independent; return it."""
        found = self.changes()
        assert found == expected_changes(before, list_tree(self.merged), links=False)
        assert _steps(self.plan()) == _steps(self.full_plan())
        return found

    def full_plan(self) -> Plan:
        """Return what changed, from two walks."""
        with opened(self.lower) as before, opened(self.merged) as now:
            return make_plan(
                _without_links(walk(self.lower)),
                _without_links(walk(self.merged)),
                differ=lambda doubtful: differing(always(before), always(now), doubtful, never),
                comparison=Comparison(),
            )


def _without_links(manifest: Manifest) -> Manifest:
    return make_manifest(
        manifest.header, [msgspec.structs.replace(each, hardlink=b"") for each in manifest.entries.values()]
    )


def _steps(plan: Plan) -> dict[str, list[bytes]]:
    return {
        name: [entry.path for entry in sorted(getattr(plan, name), key=lambda entry: entry.path)]
        for name in ("added", "replaced", "touched", "restamped", "removed")
    }


@contextmanager
def overlay(base: Path, build: Callable[[Path], object], *, further: tuple[Path, ...] = ()) -> Iterator[Overlay]:
    """Mount an overlay as the pytest plugin does, over a directory that is built first."""
    lower, merged, scratch = base / "lower", base / "merged", base / "scratch"
    lower.mkdir(parents=True)
    build(lower)
    merged.mkdir()
    with tmpfs(scratch, size="256m"):
        (scratch / "upper").mkdir()
        (scratch / "work").mkdir()
        dress(scratch / "upper", lower)
        mount_overlay(merged, [*further, lower], scratch)
        try:
            yield Overlay(lower, merged, scratch / "upper")
        finally:
            unmount_all(merged)


def mount_overlay(merged: Path, lower: list[Path], scratch: Path) -> None:
    layers = ":".join(str(each) for each in lower)
    options = f"lowerdir={layers},upperdir={scratch}/upper,workdir={scratch}/work,"
    options += "index=off,metacopy=off,redirect_dir=on"
    linux.mount("test", os.fsencode(merged), "overlay", 0, options.encode())


def dress(upper: Path, like: Path) -> None:
    status = like.stat()
    os.chown(upper, status.st_uid, status.st_gid)
    upper.chmod(status.st_mode & 0o7777)
    for name in os.listxattr(like):
        os.setxattr(upper, name, os.getxattr(like, name))
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(autouse=True)
def _nothing_stays_mounted(tmp_path: Path) -> Iterator[None]:
    yield
    unmount_all(tmp_path)


# -- every kind of change --


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found(tmp_path: Path, name: str) -> None:
    with overlay(tmp_path, build_varied) as place:
        before = list_tree(place.lower)
        CHANGES[name](place.merged)
        place.check(before)


def test_nothing_changed_is_nothing_found(tmp_path: Path) -> None:
    with overlay(tmp_path, build_zoo) as place:
        list_tree(place.merged)
        assert place.plan().is_empty


def test_what_was_copied_up_and_put_back_is_not_listed(tmp_path: Path) -> None:
    with overlay(tmp_path, build_zoo) as place:
        before = list_tree(place.lower)
        for path, item in before.items():
            os.utime(at(place.merged, path), ns=(5, 5), follow_symlinks=False)
            os.utime(at(place.merged, path), ns=(5, item.mtime_ns), follow_symlinks=False)
        assert len(list_tree(place.upper)) == len(before)
        assert place.changes() == Changes(added=(), modified=(), removed=())
        place.check(before)


def test_a_tree_with_everything_in_it_that_was_touched_is_listed_whole(tmp_path: Path) -> None:
    with overlay(tmp_path, build_zoo) as place:
        before = list_tree(place.lower)
        for path in before:
            os.chown(at(place.merged, path), 99, 99, follow_symlinks=False)
        assert len(place.check(before).modified) == len(before)


def test_a_tree_with_everything_in_it_that_was_removed_is_listed_whole(tmp_path: Path) -> None:
    with overlay(tmp_path, build_zoo) as place:
        before = list_tree(place.lower)
        CHANGES["everything removed"](place.merged)
        found = place.check(before)
        assert len(found.removed) == len(before) - 1
        assert found.added == ()


def test_a_tree_with_everything_in_it_that_was_renamed_is_listed_whole(tmp_path: Path) -> None:
    def build(root: Path) -> None:
        build_zoo(root / "zoo")
        write(root / "beside", b"x")

    with overlay(tmp_path, build) as place:
        before = list_tree(place.lower)
        (place.merged / "zoo").rename(place.merged / "moved")
        found = place.check(before)
        assert len(found.removed) == len(found.added) == len(before) - 2
        (place.merged / "moved").rename(place.merged / "zoo")
        assert place.check(before) == Changes(added=(), modified=(), removed=())


def test_odd_names_are_found_in_every_way(tmp_path: Path) -> None:
    def build(root: Path) -> None:
        for name in NAMES:
            write(at(root / "files", name), b"x")
            write(at(root / "dirs", name) / "inside", b"x")
            write(at(root / "gone", name), b"x")
            write(at(root / "moved", name) / "inside", b"x")

    with overlay(tmp_path, build) as place:
        before = list_tree(place.lower)
        for name in NAMES:
            write(at(place.merged / "files", name), b"y")
            write(at(place.merged / "dirs", name) / "new", b"y")
            at(place.merged / "gone", name).unlink()
            if len(name) < 200:  # of longer ones the overlay takes no note: the kernel refuses
                at(place.merged / "moved", name).rename(at(place.merged / "files", name + b"moved"))
        found = place.check(before)
        assert len(found.modified) == len(NAMES)
        assert len(found.removed) == 3 * len(NAMES) - 2
        assert len(found.added) == 3 * len(NAMES) - 2


def test_a_directory_that_was_made_anew_hides_all_that_was_in_it(tmp_path: Path) -> None:
    with overlay(tmp_path, build_varied) as place:
        before = list_tree(place.lower)
        shutil.rmtree(place.merged / "dir")
        (place.merged / "dir").mkdir()
        write(place.merged / "dir" / "beside", b"beside")
        found = place.check(before)
        assert found.removed == ("dir/inner", "dir/inner/deep", "dir/inner/deeper", "dir/inner/deeper/deepest")
        assert found.modified == ("dir/beside",)


def test_a_link_that_was_broken_by_a_write_is_one_change(tmp_path: Path) -> None:
    with overlay(tmp_path, build_varied) as place:
        write(place.merged / "hard2", b"written")
        assert (place.merged / "hard1").read_bytes() == b"two names"
        assert place.changes() == Changes(added=(), modified=("hard2",), removed=())


def test_a_link_that_was_made_is_one_change(tmp_path: Path) -> None:
    with overlay(tmp_path, build_varied) as place:
        os.link(place.merged / "hard1", place.merged / "dir" / "hard3")
        os.link(place.merged / "file", place.merged / "file too")
        assert place.changes() == Changes(added=("dir/hard3", "file too"), modified=(), removed=())


def test_what_a_process_writes_through_a_mapping_is_found(tmp_path: Path) -> None:
    script = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0] = 33"
    with overlay(tmp_path, build_varied) as place:
        before = list_tree(place.lower)
        subprocess.run([sys.executable, "-c", script, place.merged / "big"], check=True)
        os.utime(place.merged / "big", ns=(1, before[b"big"].mtime_ns))
        assert place.check(before).modified == ("big",)


# -- one overlay upon another --


def test_an_overlay_upon_another_tells_only_what_changed_in_it(tmp_path: Path) -> None:
    with overlay(tmp_path / "first", build_varied) as first:
        CHANGES["a directory renamed and changed"](first.merged)
        CHANGES["a tree added"](first.merged)
        CHANGES["a file edited"](first.merged)
        shutil.rmtree(first.merged / "dir2")
        (first.merged / "dir2").mkdir()
        with tmpfs(tmp_path / "scratch") as scratch:
            (scratch / "upper").mkdir()
            (scratch / "work").mkdir()
            dress(scratch / "upper", first.merged)
            merged = tmp_path / "merged"
            merged.mkdir()
            mount_overlay(merged, [first.upper, first.lower], scratch)
            second = Overlay(first.merged, merged, scratch / "upper")
            before = list_tree(first.merged)
            assert second.check(before) == Changes(added=(), modified=(), removed=())
            write(merged / "renamed" / "inner" / "deep", b"edited again")
            write(merged / "new" / "a" / "b", b"edited again")
            (merged / "renamed" / "inner" / "deeper").rename(merged / "dir2" / "deeper")
            (merged / "file").unlink()
            found = second.check(before)
            assert found.modified == ("new/a/b", "renamed/inner/deep")
            assert found.added == ("dir2/deeper", "dir2/deeper/deepest")
            assert found.removed == ("file", "renamed/inner/deeper", "renamed/inner/deeper/deepest")
            unmount_all(merged)


# -- cost, stopping, and what goes on meanwhile --


def count_calls(monkeypatch: pytest.MonkeyPatch, function: Callable[[], object]) -> Counter[str]:
    """Return how often a function makes those system calls that cost on a large tree."""
    calls: Counter[str] = Counter()

    def counting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*args, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "open", "listdir", "scandir", "listxattr", "read"):
            patch.setattr(os, name, counting(getattr(os, name), name))
        patch.setattr(linux, "openat2", counting(linux.openat2, "openat2"))
        function()
    return calls


def test_the_cost_follows_the_change_and_not_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[list[Counter[str]]] = []
    for size in (1, 3000):

        def build(root: Path, size: int = size) -> None:
            build_varied(root)
            for number in range(size):
                write(root / f"many{number % 30}" / f"file{number}", b"x")

        with overlay(tmp_path / str(size), build) as place:
            before = list_tree(place.lower)
            costs.append([])
            for change in ("nothing", "a file added", "a file edited", "a directory renamed", "a mode changed"):
                CHANGES[change](place.merged)
                costs[-1].append(count_calls(monkeypatch, place.changes))
            place.check(before)
    assert costs[0] == costs[1]
    assert max(each.total() for each in costs[0]) < 100


def test_it_can_be_stopped(tmp_path: Path) -> None:
    with overlay(tmp_path, build_varied) as place:
        write(place.merged / "file", b"edited")
        before = count_descriptors()
        with pytest.raises(Stopped):
            place.plan(stop)
        assert count_descriptors() == before


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    with overlay(tmp_path, build_varied) as place:
        for name in ("a directory renamed and changed", "a tree added", "a symlink became a directory"):
            CHANGES[name](place.merged)
        before = count_descriptors()
        place.changes()
        assert count_descriptors() == before


def test_files_that_come_and_go_meanwhile_are_no_error(tmp_path: Path) -> None:
    def build(root: Path) -> None:
        for number in range(20):
            write(root / "passing" / str(number) / "old", b"x")

    with overlay(tmp_path, build) as place:
        before = list_tree(place.lower)
        passing = place.merged / "passing"
        for number in range(20):
            write(passing / str(number) / "new", b"x")
        checks = 0

        def take_away() -> None:
            nonlocal checks
            checks += 1
            if checks % 3 == 0 and checks < 18:
                shutil.rmtree(passing / str(checks))
            elif checks < 18:
                (passing / str(checks) / "new").unlink()
            if checks == 18:
                shutil.rmtree(passing)
                write(passing / "again", b"x")

        place.plan(take_away)
        assert checks > 18
        found = place.check(before)
        assert found.added == ("passing/again",)
        assert len(found.removed) == 40


def test_another_process_may_go_on_writing_meanwhile(tmp_path: Path) -> None:
    script = """
import os, shutil, sys
from pathlib import Path
root = Path(sys.argv[1])
print(flush=True)
while os.getppid() == int(sys.argv[2]):
    for number in range(5):
        (root / f"p{number}" / "deep").mkdir(parents=True)
        (root / f"p{number}" / "deep" / "file").write_text("x")
        (root / f"p{number}").rename(root / f"q{number}")
    for number in range(5):
        shutil.rmtree(root / f"q{number}")
"""
    with overlay(tmp_path, build_varied) as place:
        write(place.merged / "file", b"edited")
        arguments = [sys.executable, "-c", script, str(place.merged / "dir"), str(os.getpid())]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                for _ in range(100):
                    assert "file" in place.changes().modified
                assert process.poll() is None
            finally:
                process.kill()


# -- any tree and any changes --

STEPS = st.builds(
    Step,
    st.sampled_from([verb for verb in LINK_VERBS if verb != "link"]),
    st.sampled_from(DEEP_PATHS),
    st.sampled_from(DEEP_PATHS),
    st.integers(0, 999),
)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(STEPS, max_size=30), st.lists(STEPS, min_size=1, max_size=25))
def test_any_changes_of_any_tree_are_told_as_by_a_full_comparison(
    tmp_path: Path, begin: list[Step], steps: list[Step]
) -> None:
    def build(root: Path) -> None:
        for step in begin:
            carry_out(root, step)

    base = tmp_path / "any"
    try:
        with overlay(base, build) as place:
            before = list_tree(place.lower)
            for step in steps:
                carry_out(place.merged, step)
            place.check(before)
    finally:
        unmount_all(base)
        shutil.rmtree(base)
