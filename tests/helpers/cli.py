"""What the command line's tests share: sensible models, a service that answers as told, a process."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sandpoint.models import DEFAULT_TTL, Backup, Report
from sandpoint.service import BackupService

ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"
OTHER_ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b6"
UNDO_ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b7"
CREATED = datetime(2026, 11, 21, 20, 46, 51, tzinfo=UTC)


def make_backup(**changes: Any) -> Backup:
    """A backup of 3 files, taken at CREATED."""
    values: dict[str, Any] = {
        "id": ID,
        "dir": "/work/project",
        "name": None,
        "kind": "full",
        "parent_id": None,
        "size_bytes": 1_200_000,
        "total_bytes": 5_600_000,
        "file_count": 3,
        "created_at": CREATED,
        "expires_at": CREATED + timedelta(seconds=DEFAULT_TTL),
    }
    return Backup(**(values | changes))


class FakeService:
    """Answers each operation with what a test gave it, and holds its callers to the real signatures.

    An answer is a result, an exception to raise, or a dict of these by the first argument.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers = {"lost_overlays": ()} | answers
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    async def __aenter__(self) -> "FakeService":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.closed = True

    def __getattr__(self, operation: str) -> Any:
        signature = inspect.signature(getattr(BackupService, operation))

        async def answer(*args: Any, report: Report | None = None, **kwargs: Any) -> Any:
            given = signature.bind(self, *args, **kwargs).arguments
            self.calls.append((operation, {name: value for name, value in given.items() if name != "self"}))
            result = self.answers[operation]
            if isinstance(result, dict):
                result = result[args[0]]
            if isinstance(result, BaseException):
                raise result
            return result

        return answer


@dataclass(frozen=True)
class Finished:
    """A process that ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that stdout is."""
        return json.loads(self.out)


class Program:
    """The real program in processes of its own, with variables added to the environment."""

    def __init__(self, **variables: str) -> None:
        self.path = str(Path(sys.executable).with_name("sandpoint"))
        self.environment = {**os.environ, **variables}

    def __call__(self, *arguments: str, **variables: str) -> Finished:
        """Run one command to its end."""
        process = subprocess.run(
            [self.path, *arguments],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Finished(process.returncode, process.stdout.decode(), process.stderr.decode())
