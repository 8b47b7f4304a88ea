"""Sandpoint as a contender: the operations through `BackupService` in process, start-ups as processes."""

import asyncio
import json
import os
import random
import stat
import sys
import time
import uuid
import zlib
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import zstandard

from benchmarks.rounds import Contender, Samples, command, remove
from benchmarks.rows import CHAIN
from sandpoint.models import Backup, BackupMetadata
from sandpoint.service import BackupService, open_service
from sandpoint.settings import read_settings

CHANGES = 20
CHECKED = 4
"""Backups of a series that are restored at its end."""

_MEMORY = Path(__file__).with_name("memory.py")

Result = TypeVar("Result")


class Subject:
    """A store, a state directory and a tree of their own; removes what it mounted when closed.

    `tree` is where this machine has the tree; in a sandbox it is called `dir`.
    """

    def __init__(
        self,
        tree: str,
        work: str,
        runner: asyncio.Runner,
        *,
        store: str | None = None,
        dir: str | None = None,
        sandbox: str | None = None,
        docker_way: str | None = None,
        helper_base: str | None = None,
    ) -> None:
        self.tree = tree
        self.dir = dir or tree
        self.new = os.path.join(work, "new")
        folder = Path(work, "store")
        self.backups = folder / "backups"
        state = os.path.join(work, "state")
        self.settings = read_settings(
            store=store or folder.as_uri(),
            state_dir=state,
            sandbox=sandbox,
            docker_way=docker_way,
            docker_helper_base=helper_base,
        )
        self.service = open_service(self.settings)
        self.backup: Backup | None = None
        self.weights: Samples = {"changed_bytes": [], "changed_layer": []}
        self._extra: str | None = None
        self._extra_bytes = 0
        self._changed: list[str] = []
        self._runner = runner
        self._random = random.Random(20)

    def do(self, operation: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(operation)

    def id(self) -> str:
        assert self.backup is not None
        return self.backup.id

    def count(self) -> int:
        """Return how many backups the store has."""
        return len([*self.backups.glob("*/meta.json")])

    def can_overlay(self) -> bool:
        return self.do(self.service.capabilities()).overlay is not None

    # -- create --

    def creates(self) -> Iterator[Contender]:
        yield Contender("create", before=self._forget, run=self.create)
        yield Contender("create_again", run=self._create_again, after=self._drop_extra)
        yield Contender("create_changed", before=self.change, run=self._create_again, after=self._weigh_extra)

    def changed(self, key: str) -> Iterator[Contender]:
        """Backups of what has changed in the directory, under the key of a row."""
        yield Contender(key, before=self.change, run=self._create_again, after=self._drop_extra)

    def create_once(self) -> None:
        """Make a backup that is dropped again."""
        self._create_again()
        self._drop_extra()

    def create(self) -> None:
        self.backup = self.do(self.service.create(self.dir, name="bench", full=True))

    def _forget(self) -> None:
        if self.backup is not None:
            self.do(self.service.delete(self.backup.id))
            self.do(self.service.prune())
            self.backup = None

    def _create_again(self) -> None:
        made = self.do(self.service.create(self.dir, name="again"))
        self._extra, self._extra_bytes = made.id, made.size_bytes

    def _weigh_extra(self) -> None:
        self.weights["changed_bytes"].append(float(self._changed_bytes()))
        self.weights["changed_layer"].append(float(self._extra_bytes))
        self._drop_extra()

    def _changed_bytes(self) -> int:
        """Return the size of all contents of the files last changed, compressed by the engine's compressor at its
        level without any format around them: less than a file of any format could hold them in."""
        return len(zstandard.compress(b"".join(Path(path).read_bytes() for path in self._changed), 1))

    def _drop_extra(self) -> None:
        if self._extra is not None:
            self.do(self.service.delete(self._extra))
            self._extra = None

    # -- copy --

    def copies(self) -> Iterator[Contender]:
        yield Contender("restore_copy", before=self.change, run=self._copy, after=self._check)
        yield Contender("restore_copy_undo", before=self.change, run=self._copy_undo, after=self._check_undo)

    def copies_anew(self) -> Iterator[Contender]:
        yield Contender("restore_copy_new", before=self._empty_new, run=self._copy_new, after=lambda: remove(self.new))

    def change(self) -> None:
        """Edit 12 files, delete 4 and add 4, wherever they are."""
        chosen = self._choose(CHANGES)
        edited, deleted, beside = chosen[:12], chosen[12:16], chosen[16:]
        for path in edited:
            with open(path, "ab") as file:
                file.write(b"// edited\n")
        for path in deleted:
            os.unlink(path)
        added = [path.removesuffix(".js") + ".new" for path in beside]
        for path in added:
            Path(path).write_text("new\n")
        self._changed = [*edited, *added]

    def _choose(self, number: int) -> list[str]:
        """Choose files among those that were there at first and are still there."""
        chosen: list[str] = []
        while len(chosen) < number:
            path = self._random.choice(self._files)
            if path not in chosen and os.path.lexists(path):
                chosen.append(path)
        return chosen

    @cached_property
    def _files(self) -> list[str]:
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(self.tree)
            for name in names
            if name.endswith(".js")
        )

    def _copy(self) -> None:
        result = self.do(self.service.restore(self.id(), mode="copy", undo=False))
        changes = result.changes
        assert changes is not None
        assert len(changes.added) + len(changes.modified) + len(changes.removed) >= CHANGES, changes

    def _copy_undo(self) -> None:
        self._extra = self.do(self.service.restore(self.id(), mode="copy")).undo_id

    def _empty_new(self) -> None:
        remove(self.new)
        os.mkdir(self.new)

    def _copy_new(self) -> None:
        self.do(self.service.restore(self.id(), dir=self.new, mode="copy", undo=False))

    def _check(self) -> None:
        left = self.do(self.service.diff(self.id()))
        if left:
            raise RuntimeError(f"the restore left differences: {left}")

    def _check_undo(self) -> None:
        self._check()
        self._drop_extra()

    # -- overlay --

    def overlays(self, key: str, *, live: bool) -> Iterator[Contender]:
        """A first restore, not timed, checks the layers' digests: from then on they are known."""
        self._overlay()
        yield Contender(key, before=self.unmount, run=self._overlay, after=self._check_overlay)
        if live:
            yield Contender("restore_overlay_live", before=self._spoil, run=self._overlay, after=self._check_overlay)

    def overlay_creates(self, key: str) -> Iterator[Contender]:
        """Backups of what was changed on an overlay."""
        yield Contender(key, before=self._change_on_overlay, run=self._create_again, after=self._drop_overlay)

    def _change_on_overlay(self) -> None:
        self._overlay()
        self.change()

    def _drop_overlay(self) -> None:
        self._drop_extra()
        self.unmount()

    def chains(self) -> Iterator[Contender]:
        """An overlay of as many layers as a backup may have: a full one, and deltas of 20 changed files each."""
        self.unmount()
        self.create()
        for _ in range(CHAIN - 1):
            self.change()
            self.backup = self.do(self.service.create(self.dir, name="chain"))
        self._overlay()
        yield Contender("restore_overlay_chain", before=self.unmount, run=self._overlay, after=self._check_overlay)

    def _overlay(self) -> None:
        self.do(self.service.restore(self.id(), mode="overlay", undo=False))

    def _spoil(self) -> None:
        Path(self.tree, "spoiled").write_text("spoiled\n")

    def _check_overlay(self) -> None:
        if not is_mounted(self.tree) or os.path.lexists(os.path.join(self.tree, "spoiled")):
            raise RuntimeError("the overlay restore did not bring the backup back")

    def unmount(self) -> None:
        if is_mounted(self.tree):
            self.do(self.service.unmount(self.dir, undo=False))

    # -- many backups --

    def series(self, backups: int) -> Samples:
        """Bytes of the store after so many backups, between each of which 20 files change.

        Some are verified and restored at the end.

        Raises:
            RuntimeError: One of those is damaged, or does not bring back what there was.
        """
        self.create()
        least = self._stored_bytes()
        kept: dict[str, int] = {}
        start = time.perf_counter()
        for number in range(2, backups + 1):
            self.change()
            least += self._changed_bytes()
            backup = self.do(self.service.create(self.dir, name="series"))
            if number % max(1, backups // CHECKED) == 0:
                kept[backup.id] = fingerprint(self.tree)
                print(f"backup {number}/{backups}  {(time.perf_counter() - start) / (number - 1):9.3f} s each")
        whole = self._stored_bytes()
        self.do(self.service.prune())
        for backup_id, seen in reversed(kept.items()):
            self._check_kept(backup_id, seen)
        return {
            "series_least": [float(least)],
            "series_store": [float(whole)],
            "series_pruned": [float(self._stored_bytes())],
        }

    def _check_kept(self, backup_id: str, seen: int) -> None:
        verified = self.do(self.service.verify(backup_id))
        if not verified.ok:
            raise RuntimeError(f"a backup of the series is damaged: {verified.problem}")
        self.do(self.service.restore(backup_id, mode="copy", undo=False))
        if fingerprint(self.tree) != seen:
            raise RuntimeError(f"backup {backup_id} of the series did not bring the tree back")

    def _stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.backups.parent.rglob("*") if path.is_file())

    # -- processes --

    def environment(self) -> dict[str, str]:
        return {"SANDPOINT_STORE": self.settings.store, "SANDPOINT_STATE_DIR": self.settings.state_dir}

    def start_ups(self) -> Iterator[Contender]:
        sandpoint = os.path.join(os.path.dirname(sys.executable), "sandpoint")
        for key, arguments in (("start_help", ["--help"]), ("start_list", ["list"])):
            argv = [sandpoint, *arguments]
            command(argv, self.environment())
            yield Contender(key, run=lambda argv=argv: command(argv, self.environment()))  # type: ignore[misc]

    def memory(self) -> Samples:
        """Peak bytes of a Python process that does one operation."""
        created = self.peak("create", self.tree)
        self.backup = Backup.model_validate_json(json.dumps(created["backup"]))
        self.change()
        restored = self.peak("restore", self.id())
        self._empty_new()
        anew = self.peak("restore", self.id(), self.new)
        remove(self.new)
        return {
            "memory_create": [float(created["peak_bytes"])],
            "memory_restore": [float(restored["peak_bytes"])],
            "memory_restore_new": [float(anew["peak_bytes"])],
        }

    def memory_of_all(self) -> Samples:
        """Peak bytes of a process for each operation whose cost may follow the size of the tree."""
        os.sync()  # where a full create cannot write all out in time, the next one compares all contents
        created = self.peak("create", self.tree)
        self.backup = Backup.model_validate_json(json.dumps(created["backup"]))
        answers = {"create": created, "again": self.peak("again", self.tree)}
        self.change()
        answers["changed"] = self.peak("again", self.tree)
        self.change()
        answers["restore"] = self.peak("restore", self.id())
        if self.can_overlay():
            answers["overlay"] = self.peak("overlay", self.id())
            self.change()
            answers["create_overlay"] = self.peak("again", self.tree)
            self.unmount()
        samples = {f"memory_large_{key}": [float(answer["peak_bytes"])] for key, answer in answers.items()}
        return samples | {"memory_large_mksquashfs": [float(created["tools_peak_bytes"])]}

    def peak(self, *arguments: str) -> dict[str, Any]:
        """Return what a process of `memory.py` tells of one operation."""
        answer: dict[str, Any] = json.loads(command([sys.executable, str(_MEMORY), *arguments], self.environment()))
        return answer


def is_mounted(directory: str) -> bool:
    """Whether something is mounted on a directory; by way of `/proc/PID/root`, os.path.ismount looks elsewhere."""
    return os.stat(directory).st_dev != os.stat(os.path.dirname(directory)).st_dev


def fingerprint(tree: str) -> int:
    """Return a check sum of all that a backup of a tree shall bring back."""
    found = 0
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for path in (folder, *(os.path.join(folder, name) for name in sorted(names))):
            status = os.lstat(path)
            found = zlib.crc32(repr((path, status.st_mode, status.st_mtime_ns)).encode(), found)
            if stat.S_ISLNK(status.st_mode):
                found = zlib.crc32(os.fsencode(os.readlink(path)), found)
            elif stat.S_ISREG(status.st_mode):
                found = zlib.crc32(Path(path).read_bytes(), found)
    return found


def lists(subject: Subject, backups: int) -> Iterator[Contender]:
    """Fill a store: a real backup, and copies of its metadata with ids and times of their own."""
    subject.create()
    backup = _read_metadata(subject)
    step = min(10.0, backup.ttl / 3 / backups)
    for number in range(1, backups):
        _copy_metadata(subject, backup, number * step)

    def newest() -> None:
        # A service of its own each time: nothing is remembered from the round before.
        service: BackupService = open_service(subject.settings)
        page = subject.do(service.list(limit=20))
        assert len(page.backups) == 20
        assert page.backups[0].id == subject.id()

    yield Contender("list", run=newest)


def _read_metadata(subject: Subject) -> BackupMetadata:
    path = subject.backups / subject.id() / "meta.json"
    return BackupMetadata.model_validate_json(path.read_bytes())


def older_metadata(real: BackupMetadata, age: float) -> tuple[str, str]:
    """Return the id and the metadata of a backup as old as this, in seconds more than a real one."""
    new_id = _older_id(real.id, age)
    fields = json.loads(real.model_dump_json(by_alias=True).replace(real.id, new_id))
    fields["createdAt"] = (real.created_at - timedelta(seconds=age)).isoformat()
    fields["expiresAt"] = (real.expires_at - timedelta(seconds=age)).isoformat()
    return new_id, json.dumps(fields)


def _copy_metadata(subject: Subject, real: BackupMetadata, age: float) -> None:
    new_id, content = older_metadata(real, age)
    source, target = (subject.backups / name for name in (real.id, new_id))
    target.mkdir()
    for path in source.iterdir():
        if path.name != "meta.json":
            os.link(path, target / path.name)
    (target / "meta.json").write_text(content)


def _older_id(real: str, age: float) -> str:
    number = uuid.UUID(real).int
    milliseconds = (number >> 80) - int(age * 1000)
    return str(uuid.UUID(int=(milliseconds << 80) | (number & ((1 << 80) - 1))))
