"""Apply: a plan carried out on a real directory, and taken back wherever it fails."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import Stopped, look, never, opened, walk, without_inodes
from sandpoint.engine import linux
from sandpoint.engine.apply import Holders, apply_plan, prepare_staged, staging_list
from sandpoint.engine.contents import always, differing
from sandpoint.engine.ignore import Rules
from sandpoint.engine.manifest import Entry, Manifest
from sandpoint.engine.plan import Comparison, Plan, make_plan
from sandpoint.errors import BackupIntegrityError, BackupRestoreError

COMPARISON = Comparison(owners=os.geteuid() == 0)

SYSTEM_CALLS = (
    (linux, "rename_new"),
    (linux, "exchange"),
    (linux, "openat2"),
    (os, "rename"),
    (os, "rmdir"),
    (os, "utime"),
    (os, "chown"),
    (os, "chmod"),
    (os, "fchmod"),
    (os, "setxattr"),
    (os, "removexattr"),
)


def build_present(root: Path) -> None:
    for folder in ("d", "d/inner", "gone", "gone/deep", "becomes-file", "same", "kept/below", "sealed"):
        (root / folder).mkdir(parents=True)
    for name in ("d/edited", "d/inner/x", "gone/a", "gone/deep/b", "becomes-file/x", "same/s", "becomes-dir", "old"):
        (root / name).write_text(f"present {name}")
    (root / "touched").write_text("the same")
    (root / "link").symlink_to("old")
    (root / "hard1").write_text("linked")
    os.link(root / "hard1", root / "hard2")
    os.setxattr(root / "touched", "user.going", b"x")
    (root / "kept" / "below" / "excluded").write_text("not in any backup")
    (root / "sealed" / "old").write_text("x")
    (root / "sealed").chmod(0o500)
    stamp(root, 1_000_000_000_000_000_001)


def build_target(root: Path) -> None:
    for folder in ("d", "d/inner", "new", "new/deep", "becomes-dir", "same", "sealed", "odd\n"):
        (root / folder).mkdir(parents=True)
    for name in ("d/edited", "d/inner/y", "new/a", "new/deep/b", "becomes-file", "becomes-dir/x", "odd\n/#"):
        (root / name).write_text(f"target {name}")
    (root / "same" / "s").write_text("present same/s")
    (root / "touched").write_text("the same")
    (root / "touched").chmod(0o4750)
    os.setxattr(root / "touched", "user.coming", b"y")
    os.setxattr(root / "d", "user.directory", b"z")
    (root / "link").symlink_to("d")
    (root / "hard1").write_text("linked")
    (root / "hard2").write_text("linked")
    (root / "hard3").write_text("three")
    os.link(root / "hard3", root / "d" / "hard4")
    (root / "sealed").chmod(0o500)
    (root / "d" / "inner").chmod(0o2711)
    stamp(root, 1_100_000_000_000_000_003)


def stamp(root: Path, mtime_ns: int) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    os.utime(root, ns=(mtime_ns, mtime_ns))


@dataclass
class Stage:
    """A directory, a target, and what is staged for the way from one to the other."""

    root: Path
    wanted: Path
    staged: Path
    trash: Path
    present: Manifest
    target: Manifest
    plan: Plan

    def stage(self) -> None:
        """Bring what the plan needs, as unsquashfs would."""
        for path in staging_list(self.plan, whole=True):
            name = os.fsdecode(path)
            (self.staged / name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "--no-preserve=links", self.wanted / name, self.staged / name], check=True)
        with opened(self.staged) as staged:
            prepare_staged(staged, self.plan, COMPARISON, never)

    def apply(self, check: Callable[[], None] = never) -> list[bytes]:
        with opened(self.root) as root, opened(self.staged) as staged, opened(self.trash) as trash:
            return apply_plan(
                self.plan,
                root=root,
                staged=staged,
                trash=trash,
                present=self.present,
                target=self.target,
                comparison=COMPARISON,
                untouchable=frozenset(),
                check=check,
            )


def make_stage(base: Path, present: Callable[[Path], None], target: Callable[[Path], None], *rules: str) -> Stage:
    for folder in ("root", "wanted", "staged", "trash"):
        (base / folder).mkdir(parents=True)
    present(base / "root")
    target(base / "wanted")
    source, wanted = walk(base / "root", Rules(rules)), walk(base / "wanted")
    with opened(base / "root") as first, opened(base / "wanted") as second:

        def differ(doubtful: list[Entry]) -> set[bytes]:
            return differing(always(first), always(second), doubtful, never)

        plan = make_plan(source, wanted, differ=differ, comparison=COMPARISON)
    stage = Stage(base / "root", base / "wanted", base / "staged", base / "trash", source, wanted, plan)
    stage.stage()
    return stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(tmp_path, build_present, build_target, "excluded")


@contextmanager
def failing_at(step: int, failure: BaseException) -> Iterator[Callable[[], bool]]:
    """Let one system call fail, the Nth; yields whether it came so far."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise failure
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in SYSTEM_CALLS:
            patch.setattr(module, name, wrap(getattr(module, name)))
        yield lambda: count >= step


def assert_restored(stage: Stage) -> None:
    found = without_inodes(look(stage.root, leave_out=["kept", "kept/below", "kept/below/excluded"]))
    assert found == without_inodes(look(stage.wanted))


def test_the_directory_becomes_the_target(stage: Stage) -> None:
    kept = stage.apply()
    assert kept == [b"kept", b"kept/below"]
    assert_restored(stage)
    assert (stage.root / "kept" / "below" / "excluded").read_text() == "not in any backup"
    assert os.stat(stage.root / "hard3").st_ino == os.stat(stage.root / "d" / "hard4").st_ino


def test_what_stays_keeps_its_inode_and_the_kept_their_times(stage: Stage) -> None:
    before = look(stage.root)
    stage.apply()
    after = look(stage.root)
    for name in ("same/s", "touched"):
        assert after[name].inode == before[name].inode
    assert after["kept"] == before["kept"]
    assert after["kept/below"] == before["kept/below"]


def test_every_failing_system_call_is_taken_back(stage: Stage) -> None:
    before, staged = look(stage.root), look(stage.staged)
    for step in range(1, 1000):
        with failing_at(step, OSError(errno.EIO, "injected")) as came:
            with suppress(OSError):
                stage.apply()
            if not came():
                break
        if look(stage.root) == before:
            assert without_inodes(look(stage.staged)).keys() == without_inodes(staged).keys(), step
            assert os.listdir(stage.trash) == [], step
        else:  # the step was one that need not succeed
            pytest.fail(f"step {step} was not taken back")
    else:
        pytest.fail("it never comes to its end")
    assert step > 60
    assert_restored(stage)


def test_every_stop_is_taken_back(stage: Stage) -> None:
    before = look(stage.root)
    for step in range(1, 1000):
        left = step

        def check() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped

        try:
            stage.apply(check)
            break
        except Stopped:
            assert look(stage.root) == before, step
    assert step > 10
    assert_restored(stage)


def test_it_works_and_is_taken_back_without_renames_with_flags(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such flag, as on NFS")

    monkeypatch.setattr(linux, "rename_new", refuse)
    monkeypatch.setattr(linux, "exchange", refuse)
    before = look(stage.root)
    left = 25

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(Stopped):
        stage.apply(check)
    assert look(stage.root) == before
    stage.apply()
    assert_restored(stage)


def test_what_cannot_be_taken_back_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = linux.rename_new
    count = 0

    def fail_from_the_third(*args: Any) -> None:
        nonlocal count
        count += 1
        if count >= 3:
            raise OSError(errno.EIO, "the disk is gone")
        real(*args)

    monkeypatch.setattr(linux, "rename_new", fail_from_the_third)
    with pytest.raises(BackupRestoreError, match="partly restored: restore again") as caught:
        stage.apply()
    assert caught.value.partly


def test_a_file_that_vanished_meanwhile_is_no_failure(stage: Stage) -> None:
    shutil.rmtree(stage.root / "gone")
    (stage.root / "link").unlink()
    stage.apply()
    assert_restored(stage)


def test_a_directory_made_meanwhile_is_not_overwritten(stage: Stage) -> None:
    (stage.root / "new").mkdir()
    (stage.root / "new" / "mine").write_text("mine")
    with pytest.raises(BackupRestoreError, match="new: a directory with excluded files, or one made during"):
        stage.apply()
    assert (stage.root / "new" / "mine").read_text() == "mine"
    assert (stage.root / "old").read_text() == "present old"


def test_a_file_made_meanwhile_comes_back_on_failure(stage: Stage) -> None:
    (stage.root / "new").write_text("made meanwhile")

    def check() -> None:
        if (stage.root / "new").is_dir():
            raise Stopped

    with pytest.raises(Stopped):
        stage.apply(check)
    assert (stage.root / "new").read_text() == "made meanwhile"


def test_a_link_put_in_the_way_leads_nowhere(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "edited").write_text("outside")
    (stage.root / "d").rename(tmp_path / "moved")
    (stage.root / "d").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        stage.apply()
    assert look(tmp_path / "outside").keys() == {".", "edited"}
    assert (tmp_path / "outside" / "edited").read_text() == "outside"


# -- what is staged --


@pytest.mark.parametrize("damage", ["missing", "other kind", "other size"])
def test_a_layer_that_is_not_as_the_manifest_says_is_found(stage: Stage, damage: str) -> None:
    path = stage.staged / "new" / "a"
    path.unlink()
    if damage == "other kind":
        path.symlink_to("/etc/passwd")
    elif damage == "other size":
        path.write_text("short")
    with opened(stage.staged) as staged, pytest.raises(BackupIntegrityError, match="new/a is"):
        prepare_staged(staged, stage.plan, COMPARISON, never)


def test_a_link_in_a_layer_is_not_followed(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(mode=0o500)
    (tmp_path / "outside" / "a").write_text("target new/a")
    shutil.rmtree(stage.staged / "new")
    (stage.staged / "new").symlink_to(tmp_path / "outside")
    before = look(tmp_path / "outside")
    with opened(stage.staged) as staged, pytest.raises((BackupIntegrityError, OSError)):
        prepare_staged(staged, stage.plan, COMPARISON, never)
    assert look(tmp_path / "outside") == before


def test_hard_links_that_came_apart_are_joined(tmp_path: Path) -> None:
    def links(root: Path) -> None:
        (root / "a").write_text("x")
        for name in ("#b", "c\n"):
            os.link(root / "a", root / name)

    made = make_stage(tmp_path, lambda root: None, links)
    assert {os.stat(made.staged / name).st_nlink for name in ("a", "#b", "c\n")} == {3}
    made.apply()
    assert {os.stat(made.root / name).st_nlink for name in ("a", "#b", "c\n")} == {3}


def test_staged_files_have_their_attributes_before_they_come(stage: Stage) -> None:
    for path in stage.staged.rglob("*"):
        os.utime(path, ns=(5, 5), follow_symlinks=False)
    (stage.staged / "new" / "a").chmod(0o777)
    with opened(stage.staged) as staged:
        prepare_staged(staged, stage.plan, COMPARISON, never)
    assert look(stage.staged)["new/a"].mtime_ns == look(stage.wanted)["new/a"].mtime_ns
    assert look(stage.staged)["new/a"].mode == look(stage.wanted)["new/a"].mode


# -- holders --


@pytest.mark.parametrize("path", [b"..", b"d/..", b"d/.", b"../x", b"/etc/passwd", b"link/x", b"d/../../x"])
def test_no_path_leads_out(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    with opened(tmp_path) as root:
        holders = Holders(root)
        try:
            with pytest.raises(OSError, match=r"."):
                holders.of(path)
        finally:
            holders.close()


def test_the_root_holds_itself(tmp_path: Path) -> None:
    with opened(tmp_path) as root:
        assert Holders(root).of(b"") == (root, b"")
