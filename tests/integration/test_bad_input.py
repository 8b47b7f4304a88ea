"""Bad input and bad surroundings through Python: the code, a message that helps, and everything as it was."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers.place import Place, tmpfs
from helpers.trees import Listing, assert_same, build_small, list_tree, write
from sandpoint.engine import tools
from sandpoint.errors import (
    BackupCreateError,
    BackupExpiredError,
    BackupIntegrityError,
    BackupNotFoundError,
    BackupRestoreError,
    InvalidBackupConfigError,
    SandpointError,
    StoreUnavailableError,
)
from sandpoint.service import open_service
from sandpoint.settings import Settings

UNKNOWN = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"


@pytest.fixture
def small(place: Place) -> Place:
    build_small(place.tree)
    return place


@pytest.fixture
def unharmed(small: Place) -> Iterator[Place]:
    """A place where everything is as before when the test has ended."""
    mounts = small.mounts()
    tree = list_tree(small.tree)
    yield small
    assert_same(tree, list_tree(small.tree))
    assert small.mounts() == mounts
    small.assert_clean()


def store_of(place: Place) -> Listing:
    listing = list_tree(place.store / "backups")
    return {path: item for path, item in listing.items() if path}


# -- directories --


@pytest.mark.parametrize(
    ("directory", "telling"),
    [
        ("tree", "is relative, and must be an absolute path"),
        ("", "is relative"),
        ("{base}/tree/../tree", "'..'"),
        ("{base}/./tree", "'.'"),
        ("{base}/tree\0", "NUL"),
        ("{base}/missing", "does not exist"),
        ("{base}/tree/README.md", "is not a directory"),
        ("{base}/tree/README.md/below", "is not a directory"),
        ("{base}/link/src", "there is a symlink in"),
        ("{base}/link", "there is a symlink in"),
        ("/", "the whole machine"),
        ("//", "the whole machine"),
        ("/proc", "belongs to the kernel"),
        ("/proc/self/cwd", "belongs to the kernel"),
        ("/sys/kernel", "belongs to the kernel"),
        ("/dev", "belongs to the kernel"),
        ("/usr/lib", "directory of the system"),
        ("/opt", "directory of the system"),
        ("{base}/state", "lie in one another"),
        ("{base}/store/backups", "lie in one another"),
        ("{base}", "lie in one another"),
        ("{base}/\udcff", "UTF-8"),
        ("{base}/" + "x" * 300, "longer than the system allows"),
    ],
)
def test_a_directory_that_cannot_be_backed_up(unharmed: Place, directory: str, telling: str) -> None:
    (unharmed.base / "link").symlink_to(unharmed.tree)
    with pytest.raises(InvalidBackupConfigError) as refused:
        unharmed.run(unharmed.service.create, directory.replace("{base}", str(unharmed.base)))
    assert telling in str(refused.value)
    assert unharmed.ids() == []


@pytest.mark.parametrize(("directory", "telling"), [("tree", "is relative"), (".", "is relative"), ("/a/../b", "'..'")])
def test_a_directory_that_no_backup_can_be_of_is_not_listed_as_one_without_backups(
    small: Place, directory: str, telling: str
) -> None:
    with pytest.raises(InvalidBackupConfigError, match=re.escape(telling)):
        small.run(small.service.list, dir=directory)


def test_a_directory_s_backups_are_listed_however_its_slashes_are_written(small: Place) -> None:
    backup = small.create()
    for directory in (f"{small.tree}/", f"{small.tree}//", str(small.tree).replace("/tree", "//tree")):
        assert [each.id for each in small.run(small.service.list, dir=directory).backups] == [backup.id]


@pytest.mark.parametrize(
    ("directory", "telling"),
    [
        ("tree", "is relative"),
        ("{base}/tree/..", "'..'"),
        ("{base}/tree/README.md", "is not a directory"),
        ("{base}/tree/README.md/new", "is not a directory"),
        ("{base}/link/src", "there is a symlink in"),
        ("{base}/link/new/deep", "there is a symlink in"),
        ("/", "the whole machine"),
        ("/proc/new", "belongs to the kernel"),
        ("/etc/new", "directory of the system"),
        ("{base}/store", "lie in one another"),
    ],
)
@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_directory_that_cannot_be_restored_to(unharmed: Place, directory: str, telling: str, mode: str) -> None:
    backup = unharmed.create()
    (unharmed.base / "link").symlink_to(unharmed.tree)
    with pytest.raises(InvalidBackupConfigError) as refused:
        unharmed.restore(backup.id, dir=directory.replace("{base}", str(unharmed.base)), mode=mode)
    assert telling in str(refused.value)


def test_a_directory_outside_the_allowed_ones(unharmed: Place) -> None:
    allowed = unharmed.base / "allowed"
    allowed.mkdir()
    service = open_service(
        Settings(store=unharmed.store.as_uri(), state_dir=str(unharmed.state), allowed_dirs=(str(allowed),))
    )
    with pytest.raises(InvalidBackupConfigError, match=f"outside the allowed directories .*{allowed}"):
        unharmed.run(service.create, str(unharmed.tree))
    with pytest.raises(InvalidBackupConfigError, match="outside the allowed directories"):
        unharmed.run(service.create, str(unharmed.base / "allowed2"))
    backup = unharmed.create()
    with pytest.raises(InvalidBackupConfigError, match="outside the allowed directories"):
        unharmed.run(service.restore, backup.id)


# -- options --


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"name": "x" * 257}, "at most 256 characters"),
        ({"name": "a\nb"}, "control characters"),
        ({"name": "\x1b[31m"}, "control characters"),
        ({"name": ""}, "name"),
        ({"description": "a\0b"}, "control characters"),
        ({"ttl": 0}, "number of seconds above 0"),
        ({"ttl": -1}, "number of seconds above 0"),
        ({"ttl": float("nan")}, "number of seconds"),
        ({"ttl": float("inf")}, "number of seconds"),
        ({"ttl": 1e300}, "number of seconds"),
        ({"ttl": "60"}, "number of seconds"),
        ({"ttl": True}, "number of seconds"),
        ({"excludes": "*.log"}, "excludes"),
        ({"excludes": [""]}, "gitignore pattern"),
        ({"excludes": ["a\nb"]}, "gitignore pattern"),
        ({"metadata": {"key": "a\0"}}, "control characters"),
        ({"metadata": {str(number): "" for number in range(65)}}, "metadata"),
    ],
)
def test_options_that_are_not_fit(unharmed: Place, options: dict[str, Any], telling: str) -> None:
    with pytest.raises(InvalidBackupConfigError) as refused:
        unharmed.create(**options)
    assert telling in str(refused.value)
    assert not unharmed.store.exists()


@pytest.mark.parametrize(
    "backup_id", ["", "x", "../../etc", f"{{{UNKNOWN}}}", UNKNOWN.replace("-", ""), f"{UNKNOWN}\n"]
)
def test_an_id_that_is_no_uuid(unharmed: Place, backup_id: str) -> None:
    for operation in (unharmed.service.restore, unharmed.service.verify, unharmed.service.delete):
        with pytest.raises(InvalidBackupConfigError, match="no backup id; ids are UUIDs"):
            unharmed.run(operation, backup_id)
    with pytest.raises(InvalidBackupConfigError, match="no backup id"):
        unharmed.diff(backup_id)


def test_an_unknown_id(unharmed: Place) -> None:
    unharmed.create()
    for operation in (unharmed.service.restore, unharmed.service.verify, unharmed.service.delete):
        with pytest.raises(BackupNotFoundError, match=f"there is no backup {UNKNOWN}.*list shows"):
            unharmed.run(operation, UNKNOWN)


def rewrite_metadata(place: Place, backup_id: str, **changes: Any) -> None:
    path = place.store / "backups" / backup_id / "meta.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | changes))


def test_an_expired_backup(unharmed: Place) -> None:
    backup = unharmed.create(ttl=120)
    born = datetime.now(UTC) - timedelta(seconds=61)
    rewrite_metadata(unharmed, backup.id, createdAt=born.isoformat())
    with pytest.raises(BackupExpiredError, match=r"can be restored until .* only"):
        unharmed.restore(backup.id)
    assert backup.id not in [each.id for each in unharmed.run(unharmed.service.list).backups]


@pytest.mark.parametrize("ttl", [25.5, 30, 60, 61])
def test_no_backup_is_born_expired(unharmed: Place, ttl: float) -> None:
    backup = unharmed.create(ttl=ttl)
    assert unharmed.restore(backup.id).success


# -- what cannot be read --

AS_NOBODY = """
import os, sys
from pathlib import Path
import anyio._backends._asyncio, uuid6, zstandard, encodings.unicode_escape
from helpers.place import Place
from sandpoint.errors import SandpointError
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after the imports: the interpreter may be root's alone
place = Place(Path(sys.argv[1]))
try:
    print(place.create().id)
except SandpointError as error:
    print(error.code, error)
place.assert_clean()
print(place.ids() if place.store.exists() else [])
"""


def as_nobody(base: Path, program: str, *arguments: str) -> str:
    tests = Path(__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", program, str(base), *arguments],
        cwd=tests,
        env={**os.environ, "HOME": str(base), "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture
def nobodys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place that an ordinary user owns, below folders that he may enter."""
    with tmpfs(Path("/var/tmp") / f"sandpoint-test-{os.getpid()}", size="64m") as base:
        base.chmod(0o755)
        place = Place(base)
        build_small(place.tree)
        for path in (base, place.tree, *place.tree.rglob("*")):
            os.lchown(path, 65534, 65534)
        yield place
    base.rmdir()


@pytest.mark.parametrize(("mode", "name"), [(0o000, "src/app.py"), (0o000, "src"), (0o600, "src/lib"), (0o300, "src")])
def test_what_a_user_cannot_read_is_named(nobodys: Place, mode: int, name: str) -> None:
    (nobodys.tree / name).chmod(mode)
    os.chown(nobodys.tree / name, 0 if stat.S_ISREG((nobodys.tree / name).stat().st_mode) else 65534, 0)

    out = as_nobody(nobodys.base, AS_NOBODY)

    assert out.startswith("BACKUP_CREATE_FAILED ")
    assert f"may not read {name}" in out or f"{name}/" in out or "util.py" in out
    assert "change its mode, exclude it, or run as its owner" in out
    assert out.endswith("[]\n")


def test_a_user_backs_up_and_restores_his_own(nobodys: Place) -> None:
    before = list_tree(nobodys.tree)
    program = (
        AS_NOBODY
        + """
(place.tree / "README.md").write_text("broken")
(place.tree / "src" / "app.py").unlink()
done = place.restore(place.ids()[0])
assert done.undo_id
place.assert_clean()
"""
    )
    as_nobody(nobodys.base, program)
    assert_same(before, list_tree(nobodys.tree))


# -- tools --


@pytest.fixture
def only_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make PATH a folder with the system's tools less some, and with stubs in the place of others."""

    def set_path(*, less: str = "", **stubs: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("mksquashfs", "unsquashfs", "git", "setpriv", "sh", "kill", "squashfuse_ll", "fusermount3"):
            found = tools.find(name)
            if found is not None and name != less and name not in stubs:
                (folder / name).symlink_to(found)
        for name, script in stubs.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setitem(tools.ENVIRONMENT, "PATH", str(folder))

    return set_path


@pytest.mark.parametrize(
    ("stub", "telling"),
    [
        (None, "mksquashfs is not installed; install it with: apt-get install squashfs-tools"),
        ("echo 'FATAL ERROR: it is broken' >&2; exit 1", "FATAL ERROR: it is broken"),
        ("kill -9 $$", "mksquashfs was killed by SIGKILL"),
    ],
)
def test_mksquashfs_missing_or_failing(
    unharmed: Place, only_tools: Callable[..., None], stub: str | None, telling: str
) -> None:
    only_tools(**({"less": "mksquashfs"} if stub is None else {"mksquashfs": stub}))
    with pytest.raises(BackupCreateError) as failed:
        unharmed.create()
    assert telling in str(failed.value)
    assert unharmed.ids() == []


@pytest.mark.parametrize(
    ("stub", "telling"),
    [
        (None, "unsquashfs is not installed; install it with: apt-get install squashfs-tools"),
        ("echo 'it is broken' >&2; exit 1", "unsquashfs failed with status 1: it is broken"),
        ("kill -9 $$", "unsquashfs was killed by SIGKILL"),
    ],
)
def test_unsquashfs_missing_or_failing(
    unharmed: Place, only_tools: Callable[..., None], stub: str | None, telling: str
) -> None:
    write(unharmed.base / "tree2" / "file", "in the backup\n")
    backup = unharmed.create(unharmed.base / "tree2")
    only_tools(**({"less": "unsquashfs"} if stub is None else {"unsquashfs": stub}))
    with pytest.raises(BackupRestoreError) as failed:
        unharmed.restore(backup.id, dir=unharmed.tree)
    assert telling in str(failed.value)
    assert unharmed.ids() == [backup.id]  # the undo went with the failure
    with pytest.raises(BackupRestoreError):
        unharmed.restore(backup.id, dir=unharmed.base / "new" / "deep")
    assert not (unharmed.base / "new").exists()


@pytest.mark.parametrize(
    ("stub", "telling"),
    [
        (None, "use_gitignore: git is not installed; install it with: apt-get install git"),
        ("echo 'fatal: it is broken' >&2; exit 128", "fatal: it is broken"),
        ("exit 3", "git failed with status 3"),
        ("kill -9 $$", "git was killed by SIGKILL"),
    ],
)
def test_git_missing_or_failing(
    unharmed: Place, only_tools: Callable[..., None], stub: str | None, telling: str
) -> None:
    only_tools(**({"less": "git"} if stub is None else {"git": stub}))
    with pytest.raises(BackupCreateError) as failed:
        unharmed.create(use_gitignore=True)
    assert telling in str(failed.value)
    assert unharmed.ids() == []
    unharmed.create()


# -- space --


def fill(folder: Path) -> None:
    """Use up all space of a filesystem."""
    with open(folder / "ballast", "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_no_space_in_the_store(small: Place) -> None:
    write(small.tree / "big", os.urandom(1_000_000))
    tree = list_tree(small.tree)
    with tmpfs(small.store, size="256k"):
        with pytest.raises((BackupCreateError, StoreUnavailableError), match=r"(?i)no space.*; free some space"):
            small.create()
        assert small.ids() == []
        small.assert_clean()
        assert_same(tree, list_tree(small.tree))


@pytest.mark.parametrize("undo", [False, True], ids=["without undo", "with undo"])
def test_no_space_in_the_target(small: Place, undo: bool) -> None:
    write(small.base / "source" / "big", os.urandom(1_000_000))
    write(small.base / "source" / "README.md", "small\n")
    backup = small.create(small.base / "source")
    target = small.base / "target"
    with tmpfs(target, size="512k"):
        write(target / "README.md", "as it was\n")
        write(target / "extra", "as it was\n")
        before = list_tree(target)

        with pytest.raises(BackupRestoreError, match=r"(?i)no space.*; free some space"):
            small.restore(backup.id, dir=target, undo=undo)

        assert_same(before, list_tree(target))
        assert small.ids() == [backup.id]
        small.assert_clean()


def test_no_space_for_the_state(small: Place) -> None:
    backup = small.create()
    (small.tree / "README.md").unlink()
    before = list_tree(small.tree)
    with tmpfs(small.base / "full", size="64k") as full:
        fill(full)
        place = Place(small.base, state=full / "state")
        with pytest.raises(SandpointError, match=r"(?i)no space"):
            place.restore(backup.id, undo=False)
    assert_same(before, list_tree(small.tree))


# -- damage in the store --

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [truncate, alter, remove, empty])
@pytest.mark.parametrize("file", ["data.sqsh", "manifest.zst"])
@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_damaged_layer_or_manifest_is_found_before_the_directory_is_touched(
    small: Place, damage: Damage, file: str, mode: str
) -> None:
    backup = small.create()
    write(small.tree / "src" / "app.py", "changed\n")
    before = list_tree(small.tree)
    damage(small.store / "backups" / backup.id / file)

    with pytest.raises(BackupIntegrityError) as found:
        small.restore(backup.id, mode=mode)

    assert file in str(found.value)
    assert_same(before, list_tree(small.tree))
    assert small.mounts() == []
    assert small.ids() == [backup.id]
    small.assert_clean()
    verified = small.run(small.service.verify, backup.id)
    assert not verified.ok
    assert file in (verified.problem or "")


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damaged_metadata(unharmed: Place, damage: Damage) -> None:
    whole = unharmed.create()
    backup = unharmed.create()
    damage(unharmed.store / "backups" / backup.id / "meta.json")

    with pytest.raises(BackupIntegrityError, match=f"the metadata of backup {backup.id} is damaged"):
        unharmed.restore(backup.id)

    assert unharmed.ids() == [whole.id]
    other = unharmed.create()
    assert unharmed.run(unharmed.service.delete, other.id).deleted
    assert unharmed.run(unharmed.service.delete, backup.id).deleted
    assert unharmed.ids() == [whole.id]


@pytest.mark.parametrize(
    "changes",
    [
        {"formatVersion": 2},
        {"layers": []},
        {"dir": 5},
        {"ttl": -1},
        {"id": UNKNOWN},
        {"layers": [{"key": "../../../etc/passwd", "size": 1, "sha256": "0" * 64}]},
        {"manifest": {"key": "/etc/passwd", "size": 1, "sha256": "0" * 64}},
    ],
)
def test_altered_metadata(unharmed: Place, changes: dict[str, Any]) -> None:
    backup = unharmed.create()
    rewrite_metadata(unharmed, backup.id, **changes)
    with pytest.raises(BackupIntegrityError, match=f"the metadata of backup {backup.id}"):
        unharmed.restore(backup.id)


def test_missing_metadata_is_no_backup(unharmed: Place) -> None:
    backup = unharmed.create()
    (unharmed.store / "backups" / backup.id / "meta.json").rename(unharmed.base / "meta.json")
    with pytest.raises(BackupNotFoundError, match=backup.id):
        unharmed.restore(backup.id)
    (unharmed.base / "meta.json").rename(unharmed.store / "backups" / backup.id / "meta.json")
