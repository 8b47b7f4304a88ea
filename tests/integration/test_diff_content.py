"""Differences with contents: between backups, and between a backup and the tree as it is."""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import Program
from helpers.place import Place, mounted
from sandpoint.errors import BackupExpiredError, BackupIntegrityError, InvalidBackupConfigError
from sandpoint.models import ContentChanges, FileDiff

ODD_NAMES = ("two words", "new\nline", "-dash", "naïve", os.fsdecode(b"caf\xe9"), "back\\slash", 'quo"te')


def contents(place: Place, backup_id: str, other_id: str | None = None, **options: Any) -> ContentChanges:
    found = place.run(place.service.diff_contents, backup_id, other_id, **options)
    plain = place.diff(backup_id, other_id, **{key: options[key] for key in ("dir", "paths") if key in options})
    assert (found.added, found.modified, found.removed) == (plain.added, plain.modified, plain.removed)
    assert {each.path for each in found.files} == {*plain.added, *plain.modified, *plain.removed}
    place.assert_clean()
    return found


def by_path(found: ContentChanges) -> dict[str, FileDiff]:
    return {each.path: each for each in found.files}


def make(tree: Path) -> None:
    (tree / "src" / "deep").mkdir(parents=True)
    (tree / "gone" / "with").mkdir(parents=True)
    (tree / "gone" / "with" / "all").write_text("in it\n")
    for number in range(20):
        (tree / "src" / f"module{number}.py").write_text("".join(f"{number} {line}\n" for line in range(50)))
    for name in ODD_NAMES:
        (tree / name).write_text(f"{name!r}\n")
    (tree / "ended").write_text("no newline")
    (tree / "link").symlink_to("src")
    (tree / "becomes a link").write_text("file\n")
    (tree / "becomes a file").symlink_to("/etc/passwd")
    (tree / "becomes a folder").write_text("file\n")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "empty").touch()
    os.link(tree / "ended", tree / "src" / "hard")


def change(tree: Path) -> None:
    shutil.rmtree(tree / "gone")
    (tree / "src" / "module3.py").write_text("".join(f"3 {line}\n" for line in range(50) if line not in {7, 30}))
    (tree / "src" / "module4.py").unlink()
    (tree / "src" / "deep" / "new").write_text("new\n")
    for name in ODD_NAMES:
        (tree / name).write_text(f"{name!r}\nand more\n")
    (tree / "odd\tnew").write_text("")
    (tree / "ended").write_text("a newline\n")
    (tree / "link").unlink()
    (tree / "link").symlink_to("elsewhere/\tx")
    (tree / "becomes a link").unlink()
    (tree / "becomes a link").symlink_to("/etc/passwd")
    (tree / "becomes a file").unlink()
    (tree / "becomes a file").write_text("file\n")
    (tree / "becomes a folder").unlink()
    (tree / "becomes a folder").mkdir()
    (tree / "becomes a folder" / "file").write_text("below\n")
    (tree / "run").chmod(0o755)


def texts(tree: Path) -> dict[str, tuple[int, bytes]]:
    """All that git knows of a tree."""
    found = {}
    for path in tree.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[str(path.relative_to(tree))] = (stat.S_IFLNK, os.fsencode(path.readlink()))
        elif stat.S_ISREG(mode):
            found[str(path.relative_to(tree))] = (mode & (stat.S_IFMT(mode) | 0o111), path.read_bytes())
    return found


@pytest.mark.parametrize("against", ["the tree", "a backup"])
def test_git_applies_what_the_program_prints(place: Place, against: str) -> None:
    make(place.tree)
    program = Program(SANDPOINT_STORE=place.store.as_uri(), SANDPOINT_STATE_DIR=str(place.state), SANDPOINT_SANDBOX="")
    before = place.create()
    shutil.copytree(place.tree, place.base / "copy", symlinks=True)
    change(place.tree)
    other = [] if against == "the tree" else [place.create().id]
    printed = program("diff", before.id, *other, "--content")
    assert printed.status == 0, printed.err
    git = ["git", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(git, cwd=place.base / "copy", input=printed.out.encode(), check=True)
    assert texts(place.base / "copy") == texts(place.tree)


def test_every_state_of_a_chain_against_every_other(place: Place) -> None:
    place.tree.mkdir()
    (place.tree / "still").write_text("still\n")
    states = ["", "one\n", "one\ntwo\n", "two\n", "no end"]
    ids = []
    for state in states:
        (place.tree / "file").write_text(state)
        ids.append(place.create().id)
    for old, first in zip(states, ids, strict=True):
        for new, second in zip(states, ids, strict=True):
            found = contents(place, first, second)
            assert found.modified == (() if old == new else ("file",))
            if old != new:
                patch = found.files[0].patch
                said = [line[1:] for line in patch.splitlines() if line[:1] == "+" and not line.startswith("+++")]
                assert all(line in new.splitlines() for line in said)
    assert by_path(contents(place, ids[1], ids[2]))["file"].patch == (
        "diff --git a/file b/file\n--- a/file\n+++ b/file\n@@ -1 +1,2 @@\n one\n+two\n"
    )


def test_what_is_no_text_is_told_in_its_fields(place: Place) -> None:
    place.tree.mkdir()
    (place.tree / "binary").write_bytes(b"a\0b")
    (place.tree / "latin").write_bytes(b"caf\xe9\n")
    (place.tree / "large").write_bytes(b"x\n" * (1 << 19) + b"y")
    (place.tree / "just").write_bytes(b"x\n" * (1 << 19))
    (place.tree / "touched").write_text("same\n")
    (place.tree / "folder").mkdir()
    os.mkfifo(place.tree / "pipe")
    backup = place.create()
    for name in ("binary", "latin", "large", "just"):
        with open(place.tree / name, "r+b") as file:
            file.write(b"z")
    os.utime(place.tree / "touched", (5, 5))
    (place.tree / "folder").chmod(0o700)
    (place.tree / "pipe").unlink()
    found = by_path(contents(place, backup.id))
    assert {path: each.omitted for path, each in found.items()} == {
        "binary": "binary", "latin": "binary", "large": "large", "just": None,
        "touched": None, "folder": None, "pipe": None,
    }  # fmt: skip
    assert found["just"].patch.count("\n") == 3 + 1 + 1 + 1 + 3
    assert found["touched"].attributes == ("mtime",)
    assert found["folder"].attributes[0] == "mode"
    assert found["folder"].new is not None
    assert (found["folder"].new.kind, found["folder"].new.mode) == ("directory", "0700")
    assert found["pipe"].old is not None
    assert (found["pipe"].old.kind, found["pipe"].change) == ("pipe", "removed")
    assert [each.path for each in found.values() if each.patch] == ["just"]


def test_there_is_an_end_to_what_is_returned(place: Place) -> None:
    place.tree.mkdir()
    backup = place.create()
    for number in range(20):
        (place.tree / f"{number:02}").write_text("x" * 1000 + "\n")
    found = contents(place, backup.id, max_bytes=5000)
    patches = [each.patch for each in found.files if each.patch]
    assert 3 <= len(patches) <= 4
    assert [each.omitted for each in found.files] == [None] * len(patches) + ["limit"] * (20 - len(patches))
    assert not any(each.patch for each in contents(place, backup.id, max_bytes=0).files)
    with pytest.raises(InvalidBackupConfigError, match="max_bytes"):
        contents(place, backup.id, max_bytes=-1)


@pytest.mark.parametrize("against", ["the tree", "a backup"])
def test_paths_limit_it(place: Place, against: str) -> None:
    make(place.tree)
    before = place.create()
    change(place.tree)
    other = None if against == "the tree" else place.create().id
    found = contents(place, before.id, other, paths=["src", "new\\nline", "becomes a folder"])
    assert set(found.added) | set(found.modified) | set(found.removed) == {
        "src/deep/new", "src/module3.py", "src/module4.py", "src/hard",
        "new\\nline", "becomes a folder", "becomes a folder/file",
    }  # fmt: skip
    assert place.diff(before.id, other, paths=["src/deep"]).added == ("src/deep/new",)
    with pytest.raises(InvalidBackupConfigError, match="nowhere is neither in the backup nor"):
        place.diff(before.id, other, paths=["nowhere"])


def test_links_out_of_the_tree_are_never_followed(place: Place) -> None:
    outside = place.base / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    (place.tree / "folder").mkdir(parents=True)
    (place.tree / "folder" / "secret").write_text("harmless\n")
    (place.tree / "file").write_text("harmless\n")
    backup = place.create()
    (place.tree / "file").unlink()
    (place.tree / "file").symlink_to(outside / "secret")
    shutil.rmtree(place.tree / "folder")
    (place.tree / "folder").symlink_to(outside)
    found = contents(place, backup.id)
    assert not {"+secret", "-secret"} & {line for each in found.files for line in each.patch.splitlines()}
    assert by_path(found)["file"].patch.endswith(f"+{outside}/secret\n\\ No newline at end of file\n")
    assert by_path(found)["folder/secret"].change == "removed"


def test_a_directory_that_is_gone_or_another_one(place: Place) -> None:
    make(place.tree)
    backup = place.create()
    gone = contents(place, backup.id, dir=str(place.base / "nowhere"))
    assert not gone.added
    assert not gone.modified
    assert by_path(gone)["run"].patch == (
        "diff --git a/run b/run\ndeleted file mode 100644\n--- a/run\n+++ /dev/null\n@@ -1 +0,0 @@\n-#!/bin/sh\n"
    )
    with pytest.raises(InvalidBackupConfigError, match="not with both"):
        place.run(place.service.diff_contents, backup.id, backup.id, dir=str(place.tree))


def test_expired_backups_give_out_nothing(place: Place) -> None:
    place.tree.mkdir()
    backup, other = place.create(), place.create(ttl=0.001)
    for first, second in ((backup.id, other.id), (other.id, backup.id)):
        with pytest.raises(BackupExpiredError):
            place.run(place.service.diff_contents, first, second)


@pytest.mark.parametrize("how", ["missing", "altered"])
def test_a_damaged_layer_gives_out_nothing(place: Place, how: str) -> None:
    place.tree.mkdir()
    (place.tree / "file").write_text("old\n" * 1000)
    backup = place.create()
    (place.tree / "file").write_text("new\n" * 1000)
    layer = place.store / "backups" / backup.id / "data.sqsh"
    layer.chmod(0o600)
    if how == "missing":
        layer.unlink()
    else:
        layer.write_bytes(bytes(byte ^ 1 for byte in layer.read_bytes()))
    with pytest.raises(BackupIntegrityError):
        place.run(place.service.diff_contents, backup.id)
    place.assert_clean()


def test_backups_of_one_chain_are_compared_without_their_shared_layers(place: Place) -> None:
    place.tree.mkdir()
    for number in range(50):
        (place.tree / f"file{number}").write_text(f"{number}\n")  # too young for its stamp to prove anything
    full = place.create()
    (place.tree / "file0").write_text("changed\n")
    first = place.create()
    (place.tree / "file1").write_text("changed too\n")
    second = place.create()
    third = place.create()
    assert [place.run(place.service.get, each.id).kind for each in (first, second, third)] == ["delta"] * 3
    for each in (full, first, second):
        (place.store / "backups" / each.id / "data.sqsh").unlink()
    assert place.diff(first.id, second.id).modified == ("file1",)
    assert place.diff(full.id, second.id).modified == ("file0", "file1")
    assert not place.diff(second.id, third.id)
    assert not contents(place, second.id, third.id)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_mounted_in_the_tree_is_not_looked_into(place: Place) -> None:
    (place.tree / "inner").mkdir(parents=True)
    (place.tree / "inner" / "file").write_text("hidden\n")
    backup = place.create()
    with mounted(place.tree / "inner", "-t", "tmpfs", "sandpoint-test"):
        (place.tree / "inner" / "other").write_text("not ours\n")
        assert not contents(place, backup.id)


def test_hard_links_that_part_are_told_though_their_contents_are_the_same(place: Place) -> None:
    place.tree.mkdir()
    (place.tree / "a").write_bytes(b"same\0")
    os.link(place.tree / "a", place.tree / "b")
    backup = place.create()
    (place.tree / "b").unlink()
    (place.tree / "b").write_bytes(b"same\0")
    found = by_path(contents(place, backup.id))
    assert "links" in found["b"].attributes
    assert {(each.patch, each.omitted) for each in found.values()} == {("", None)}
