"""A process that runs operations in children which kill themselves at their n-th change to the system.

Started as `python -m helpers.killer`; reads one JSON object a line: `base` and `place`, what the place is made of,
`operation`, `arguments`, `options`, `at`, `since`. Answers each with a line: `killed`, `done` or `failed: ...`.
"""

import builtins
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sandpoint.chains import DEFAULT_LIMITS
from sandpoint.engine import linux
from sandpoint.engine.visitor import Visitor

if TYPE_CHECKING:
    from sandpoint.service import BackupService

_OS = (
    "rmdir", "rename", "replace", "link", "symlink", "remove", "chmod", "fchmod", "chown", "utime",
    "setxattr", "removexattr", "mknod", "fsync", "write",
)  # fmt: skip
_LINUX = ("mount", "move_mount_to", "detach", "detach_open", "rename_new", "exchange", "_attach")
_MOST_CHANGES = 600


class Killer:
    """Child's side: counts the calls that change something, and kills the process before the n-th."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.lock = threading.Lock()

    def count(self) -> None:
        """One more call is about to be made."""
        with self.lock:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, holder: object, name: str, *, counts: Callable[..., bool] = lambda *_a, **_k: True) -> None:
        """Count the calls of a function from now on."""
        original = getattr(holder, name)

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if counts(*args, **kwargs):
                self.count()
            return original(*args, **kwargs)

        setattr(holder, name, counted)

    def install_at(self, function: str) -> None:
        """Count from the call of a function on, given by its full name."""
        module, _, name = function.rpartition(".")
        holder = importlib.import_module(module)
        original = getattr(holder, name)

        @functools.wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            self.install()
            return original(*args, **kwargs)

        setattr(holder, name, called)

    def install(self) -> None:
        """Count all calls that change the filesystem or the mount table, or start a program."""
        for name in _OS:
            self.wrap(os, name)
        self.wrap(os, "unlink", counts=lambda path, *, dir_fd=None: _is_there(path, dir_fd))
        self.wrap(os, "mkdir", counts=lambda path, *_a, dir_fd=None, **_k: not _is_there(path, dir_fd))
        self.wrap(os, "open", counts=lambda _path, flags, *_a, **_k: bool(flags & os.O_CREAT))
        self.wrap(builtins, "open", counts=lambda _path, mode="r", *_a, **_k: any(c in mode for c in "wxa"))
        for name in _LINUX:
            self.wrap(linux, name)
        self.wrap(Visitor, "_ask")
        self.wrap(subprocess.Popen, "__init__")
        self.wrap(subprocess.Popen, "wait")


def _is_there(path: Any, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _run(request: dict[str, Any]) -> None:
    import anyio

    operation = getattr(_service(request), request["operation"])
    killer = Killer(request["at"])
    if request["since"] is None:
        killer.install()
    else:
        killer.install_at(request["since"])
    anyio.run(functools.partial(operation, *request["arguments"], **request["options"]))


def _service(request: dict[str, Any]) -> "BackupService":
    from helpers.place import Place
    from sandpoint.service import open_service
    from sandpoint.settings import read_settings

    base = Path(request["base"])
    state = request["place"].pop("state")
    if request["sandbox"] is None:
        return Place(base, state=Path(state), **request["place"]).service
    sandbox, way = request["sandbox"]
    return open_service(
        read_settings({}, store=(base / "store").as_uri(), state_dir=state, sandbox=sandbox, docker_way=way)
    )


def _child(request: dict[str, Any]) -> None:
    try:
        _run(request)
    except BaseException as error:  # noqa: BLE001 - the parent is told
        sys.stdout.write(f"failed: {error!r}\n")
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Answer requests until stdin ends."""
    # Loaded and found out once, not by every child.
    import anyio._backends._asyncio  # noqa: F401
    import uuid6  # noqa: F401

    import helpers.place  # noqa: F401

    tempfile.gettempdir()
    for line in sys.stdin:
        request = json.loads(line)
        if request["sandbox"] is not None:
            import docker  # noqa: F401
        child = os.fork()
        if child == 0:
            _child(request)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print("killed", flush=True)
        elif status == 0:
            print("done", flush=True)


class HelperProcess:
    """The parent's side: a module of the helpers as a process that answers each line with a line."""

    module = "helpers.killer"

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._env = os.environ | (env or {})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            cwd=Path(__file__).parents[1],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def ask(self, request: Mapping[str, object]) -> str:
        """Send a request, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()


class KillerProcess(HelperProcess):
    """Runs operations of the service; used by tests."""

    def run(
        self,
        base: Path,
        state: Path,
        operation: str,
        *arguments: str,
        at: int,
        overlay: str | None = None,
        chain_layers: int = DEFAULT_LIMITS.layers,
        since: str | None = None,
        sandbox: tuple[str, str] | None = None,
        **options: Any,
    ) -> bool:
        """Run an operation that is killed before its change number `at`; return whether it came so far.

        With `since`, the full name of a function, changes are counted from the call of that on. With `sandbox`, it is
        done there, by a way: `("docker:web", "direct")`.
        """
        request = {
            "base": str(base),
            "place": {"state": str(state), "overlay": overlay, "chain_layers": chain_layers},
            "operation": operation,
            "arguments": arguments,
            "options": options,
            "at": at,
            "since": since,
            "sandbox": sandbox,
        }
        answer = self.ask(request)
        assert answer in {"killed", "done"}, answer
        return answer == "killed"


def points(killed_at: Callable[[int], bool]) -> int:
    """Kill at every point in turn until the operation completes; return how many there were."""
    for at in count(1):
        assert at < _MOST_CHANGES, "the operation makes more changes than this test has time for"
        if not killed_at(at):
            return at - 1
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main()
