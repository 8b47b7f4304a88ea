"""What folders of a backup hold: read from its manifests, and nothing restored."""

import os
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest

from helpers.bucket import BucketPlace
from helpers.cli import Program
from helpers.foreign import back_up
from helpers.place import Place
from helpers.s3 import S3Server
from sandpoint.errors import (
    BackupIntegrityError,
    BackupNotFoundError,
    InvalidBackupConfigError,
    NoSuchPathError,
    SandboxUnavailableError,
)
from sandpoint.models import Listing
from sandpoint.sandboxes.local import LocalSandbox
from sandpoint.service import BackupService
from sandpoint.stores.local import LocalStore

UNKNOWN = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"


def tree(place: Place, backup_id: str, path: str = "", **options: Any) -> Listing:
    return place.run(place.service.tree, backup_id, path, **options)


def names(listing: Listing) -> list[str]:
    return [entry.name for entry in listing.entries]


def build(place: Place) -> None:
    (place.tree / "src" / "empty").mkdir(parents=True)
    (place.tree / "src" / "app.py").write_text("print('hello')\n")
    (place.tree / "run.sh").write_text("#!/bin/sh\n")
    (place.tree / "run.sh").chmod(0o4750)
    os.link(place.tree / "run.sh", place.tree / "same.sh")
    (place.tree / "link").symlink_to("src/app.py")
    os.mkfifo(place.tree / "pipe")
    (place.tree / os.fsdecode(b"caf\xe9\n")).write_text("odd")


def test_each_entry_is_as_it_was(place: Place) -> None:
    build(place)
    before = {os.fsencode(path.name): path.lstat() for path in place.tree.iterdir()}
    backup = place.create()
    (place.tree / "run.sh").unlink()
    listing = tree(place, backup.id)
    assert [entry.exact_name for entry in listing.entries] == sorted(before)
    for entry in listing.entries:
        status = before[entry.exact_name]
        assert entry.mode == f"{stat.S_IMODE(status.st_mode):04o}"
        assert entry.mtime_ns == status.st_mtime_ns
        assert entry.size_bytes == (status.st_size if stat.S_ISREG(status.st_mode) else 0)
    kinds = {entry.name: entry.kind for entry in listing.entries}
    assert (kinds["src"], kinds["pipe"], kinds["run.sh"], kinds["same.sh"]) == ("directory", "pipe", "file", "file")
    (link,) = (entry for entry in listing.entries if entry.kind == "symlink")
    assert link.target == "src/app.py"
    assert names(tree(place, backup.id, "src")) == names(tree(place, backup.id, "src/")) == ["app.py", "empty"]
    assert tree(place, backup.id, "src/empty").entry_count == 0
    place.assert_clean()


def test_each_state_of_a_chain_has_its_own(place: Place) -> None:
    build(place)
    first = place.create().id
    (place.tree / "src" / "app.py").unlink()
    (place.tree / "src" / "new").mkdir()
    (place.tree / "src" / "new" / "deep").touch()
    second = place.create().id
    (place.tree / "src" / "new" / "deep").unlink()
    (place.tree / "src" / "new").rmdir()
    (place.tree / "src" / "new").touch()
    third = place.create().id
    assert place.run(place.service.get, third).kind == "delta"

    assert [names(tree(place, each, "src")) for each in (first, second, third)] == [
        ["app.py", "empty"],
        ["empty", "new"],
        ["empty", "new"],
    ]
    assert names(tree(place, second, "src/new")) == ["deep"]
    assert tree(place, third, "src/new").itself.kind == "file"
    for backup_id, path in ((first, "src/new"), (second, "src/app.py"), (third, "src/new/deep")):
        with pytest.raises(NoSuchPathError, match=f"path: {path} is not in the backup"):
            tree(place, backup_id, path)


@pytest.mark.parametrize("path", ["/etc", "../x", "src/../run.sh", "src//app.py", "nul\0", "\ud800"])
def test_a_path_that_is_none_is_refused(place: Place, path: str) -> None:
    build(place)
    backup = place.create()
    with pytest.raises(InvalidBackupConfigError, match="path: "):
        tree(place, backup.id, path)


@pytest.mark.parametrize("options", [{"limit": -1}, {"limit": 10_001}, {"cursor": ""}, {"cursor": "a%2Fb"}])
def test_options_that_cannot_be_are_refused(place: Place, options: dict[str, Any]) -> None:
    place.tree.mkdir()
    backup = place.create()
    with pytest.raises(InvalidBackupConfigError, match=next(iter(options))):
        tree(place, backup.id, **options)


def test_nobody_is_waited_for_and_an_expired_backup_can_be_looked_into(place: Place) -> None:
    build(place)
    backup = place.create(ttl=0.001)

    async def look() -> Listing:
        async with place.sandbox.turn():
            with anyio.fail_after(60):
                return await place.service.tree(backup.id, "src")

    assert names(place.run(look)) == ["app.py", "empty"]


def test_backups_that_are_out_of_reach_are_not_looked_into(place: Place) -> None:
    build(place)
    backup = place.create()
    sandbox = LocalSandbox(str(place.state), allowed_dirs=[str(place.base / "mine")])
    confined = BackupService(sandbox, LocalStore(str(place.store)))
    with pytest.raises(InvalidBackupConfigError, match="outside the allowed directories"):
        place.run(confined.tree, backup.id)
    with pytest.raises(BackupNotFoundError):
        place.run(confined.tree, UNKNOWN)


def test_backups_of_other_sandboxes_are_looked_into_without_them(place: Place, tmp_path: Path) -> None:
    build(place)
    backup = place.create()

    def away() -> None:
        raise SandboxUnavailableError("the container is stopped")

    sandbox = LocalSandbox(str(tmp_path / "elsewhere"))
    sandbox._connect = away  # type: ignore[assignment]
    elsewhere = BackupService(sandbox, place.backups)
    assert names(place.run(elsewhere.tree, backup.id, "src")) == ["app.py", "empty"]


@pytest.mark.parametrize("how", ["missing", "altered"])
def test_a_damaged_manifest_is_not_believed(place: Place, how: str) -> None:
    build(place)
    backup = place.create()
    path = place.store / "backups" / backup.id / "manifest.zst"
    path.chmod(0o600)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BackupIntegrityError):
        tree(place, backup.id)


def test_what_another_program_backed_up_is_found_out_by_reading_it(place: Place) -> None:
    build(place)
    backup_id = back_up(place, place.tree)
    assert names(tree(place, backup_id, "src")) == ["app.py", "empty"]
    page = tree(place, backup_id, limit=2)
    assert (len(page.entries), page.entry_count) == (2, 6)
    following = tree(place, backup_id, cursor=page.next_cursor)
    assert len(following.entries) == 4
    with pytest.raises(NoSuchPathError):
        tree(place, backup_id, "nothing")
    place.assert_clean()


def test_a_bucket_is_asked_for_each_manifest_once(tmp_path: Path, s3_server: S3Server) -> None:
    place = BucketPlace(tmp_path, s3_server)
    build(place)
    place.create()
    (place.tree / "more").touch()
    backup = place.create()

    async def look() -> list[Listing]:
        found = [await place.service.tree(backup.id)]
        stored = place.keys()
        for key in stored:
            if key.endswith("manifest.zst"):
                place.replace(key, b"")
        return [*found, await place.service.tree(backup.id, "src")]

    root, source = place.run(look)
    assert "more" in names(root)
    assert names(source) == ["app.py", "empty"]


@pytest.fixture
def sandpoint(place: Place) -> Program:
    return Program(SANDPOINT_STORE=place.store.as_uri(), SANDPOINT_STATE_DIR=str(place.state))


def test_the_program_lists_what_cat_then_reads(place: Place, sandpoint: Program) -> None:
    build(place)
    backup = place.create()
    listed = sandpoint("ls", backup.id, "src")
    assert listed.status == 0, listed.err
    assert [line.split()[-1] for line in listed.out.splitlines()] == ["app.py", "empty/"]
    told = sandpoint("ls", backup.id, "--json").json
    assert told["entry_count"] == 6
    (odd,) = (entry["name"] for entry in told["entries"] if entry["quoted_name"])
    assert sandpoint("cat", backup.id, odd).out == "odd"
    page = sandpoint("ls", backup.id, "--limit", "5", "--json").json
    rest = sandpoint("ls", backup.id, "--cursor", page["next_cursor"], "--json").json
    assert page["entries"] + rest["entries"] == told["entries"]
    missing = sandpoint("ls", backup.id, "nothing")
    assert missing.status == InvalidBackupConfigError.exit_status
    assert "nothing is not in the backup" in missing.err
