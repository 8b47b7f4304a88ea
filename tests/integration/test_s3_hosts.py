"""Many hosts and one bucket: what stays is whole, whoever works beside it, and nothing is left over."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.bucket import BucketPlace
from helpers.place import unmount_all
from helpers.proxy import Fault, Proxy, Request
from helpers.s3 import S3Server
from helpers.site import wait_until
from helpers.trees import assert_same, in_whole_seconds, list_tree, write
from sandpoint.errors import BackupNotFoundError, SandpointError

WORKERS = 4
STEPS = int(os.environ.get("HOST_STEPS", "14"))


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    unmount_all(tmp_path)


def test_beside_creates_restores_deletes_and_prunes_of_other_hosts(unmounted: Path, s3_server: S3Server) -> None:
    (unmounted / "states").mkdir()
    here = BucketPlace(unmounted / "here", s3_server)
    environment = os.environ | s3_server.environment() | {"SANDPOINT_STORE": f"s3://{here.bucket}/some/prefix"}
    roles = [*(("worker", f"host-{number}") for number in range(WORKERS)), ("pruner", "pruner")]
    processes = []
    for role, name in roles:
        (unmounted / name).mkdir()
        argv = [sys.executable, "-m", "helpers.hosts", role, str(unmounted / name), str(STEPS)]
        processes.append(
            subprocess.Popen(
                argv,
                cwd=Path(__file__).parents[1],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ends = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(roles), [err for _, err in ends if err]

    here.run(here.service.prune)
    assert here.ids() != []
    here.assert_clean()
    assert here.keys().keys() == here.needed()
    for backup_id in here.ids():
        verified = here.run(here.service.verify, backup_id)
        assert verified.ok, verified.problem
        here.restore(backup_id, dir=here.base / "other", undo=False)
        assert_same(
            pickle.loads((unmounted / "states" / backup_id).read_bytes()),
            list_tree(here.base / "other"),
        )
    for backup_id in here.ids():
        here.run(here.service.delete, backup_id)
    here.run(here.service.prune)
    assert here.keys() == {}


@pytest.mark.parametrize("mode", ["copy", "overlay"])
@pytest.mark.parametrize("stalled", ["data.sqsh", "manifest.zst"])
def test_a_backup_that_goes_while_it_is_restored_comes_back_whole_or_is_said_to_be_gone(
    unmounted: Path, s3_server: S3Server, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, mode: str, stalled: str
) -> None:
    here = BucketPlace(unmounted / "here", s3_server)
    write(here.tree / "file", os.urandom(1 << 20).hex())
    backup = here.create()
    there = BucketPlace(unmounted / "there", s3_server, bucket=here.bucket, url=s3_proxy.url)
    write(there.tree / "mine", "mine\n")
    before = list_tree(there.tree)
    monkeypatch.setattr("sandpoint.engine.http_line.READ_TIMEOUT_S", 1.0)

    def is_download(request: Request) -> bool:
        return request.method == "GET" and request.path.endswith(stalled)

    stall = s3_proxy.fail(Fault.STALL_ANSWER, when=is_download)
    errors: list[SandpointError] = []

    def restore() -> None:
        try:
            there.restore(backup.id, dir=there.tree, mode=mode, undo=False)
        except SandpointError as error:
            errors.append(error)

    restoring = threading.Thread(target=restore)
    restoring.start()
    wait_until(lambda: stall.hits == 1)
    here.run(here.service.delete, backup.id)
    here.run(here.service.prune)
    assert here.keys() == {}
    restoring.join()
    if errors:
        assert isinstance(errors[0], BackupNotFoundError)
        assert backup.id in str(errors[0])
        assert_same(before, list_tree(there.tree))
    else:
        assert_same(in_whole_seconds(list_tree(here.tree)), in_whole_seconds(list_tree(there.tree)))
    there.assert_clean_but_lower()
