"""A directory in each kind of sandbox, seen from outside too, for tests of what all of them have in common."""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import anyio

from helpers.docker import Engine, Target
from helpers.trees import Listing, in_whole_seconds, list_tree
from sandpoint.models import Backup, Changes, RestoreResult
from sandpoint.service import BackupService, open_service
from sandpoint.settings import read_settings

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["local", "direct", "helper", "archive"]
KINDS: tuple[Kind, ...] = ("local", "direct", "helper", "archive")


class Sandboxed:
    """A directory in a sandbox, a store and the service between them."""

    def __init__(self, kind: Kind, base: Path, target: Target | None, *, helper_base: str | None = None) -> None:
        self.kind = kind
        self.helper_base = helper_base
        self.target = target
        self.base = base
        self.store = base / "store"
        self.dir = str(base / "work") if target is None else "/workspace/work"
        self.service = self.open()

    def open(self) -> BackupService:
        """Return another service for the same, as another server would have."""
        return open_service(
            read_settings(
                {},
                store=self.store.as_uri(),
                state_dir=str(self.base / "state"),
                sandbox="local" if self.target is None else self.target.sandbox,
                docker_way=self.kind if self.target is not None else None,
                docker_helper_base=self.helper_base,
            )
        )

    def outside(self, dir: str) -> Path:
        """Return a directory of the sandbox as root of this machine sees it, with what is mounted on it."""
        return Path(dir) if self.target is None else self.target.root / dir.lstrip("/")

    @property
    def tree(self) -> Path:
        """The directory as seen from outside."""
        return self.outside(self.dir)

    def listing(self, dir: str | None = None) -> Listing:
        """Return what is in a directory, as exactly as the kind of sandbox can tell."""
        found = list_tree(self.outside(dir or self.dir))
        return found if self.kind in {"local", "direct", "helper"} else in_whole_seconds(found)

    @staticmethod
    def run(function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an operation to its end."""
        return anyio.run(partial(function, *args, **kwargs))

    def create(self, dir: str | None = None, **options: Any) -> Backup:
        """Back up the directory, or another."""
        return self.run(self.service.create, dir or self.dir, **options)

    def restore(self, backup_id: str, **options: Any) -> RestoreResult:
        """Restore a backup, by `copy` if nothing else is asked for."""
        return self.run(self.service.restore, backup_id, **({"mode": "copy"} | options))

    def diff(self, backup_id: str, other_id: str | None = None) -> Changes:
        """Compare a backup with the directory, or another backup."""
        return self.run(self.service.diff, backup_id, other_id)


@contextmanager
def opened(
    kind: Kind, base: Path, start: Callable[..., Target], *, engine: Engine | None = None, **options: Any
) -> Iterator[Sandboxed]:
    """Make a sandbox of a kind, of a container without any capability where it is one."""
    target = None
    if kind != "local":
        target = start(cap_drop=["ALL"], security_opt=["no-new-privileges"], **options)
    helper_base = engine.debian_image() if engine is not None and kind == "helper" else None
    sandboxed = Sandboxed(kind, base, target, helper_base=helper_base)
    try:
        yield sandboxed
    finally:
        anyio.run(sandboxed.service.close)
