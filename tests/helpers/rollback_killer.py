"""A process that rolls a directory back in children which kill themselves at their n-th change to the system.

Started as `python -m helpers.rollback_killer`; reads one JSON object a line: `directory`, `who`, `at` and `guarded`. By
`run` a checkpoint by copy is made in a child, the directory is changed, and the child is killed as it ends the
checkpoint, its guardian before that unless `guarded`; by `guardian` both are killed before that, and a second child as
it brings the directory back instead. Answers each with a line: `killed` or `done`, and the run's folder.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from helpers.killer import HelperProcess, Killer

Who = Literal["run", "guardian"]


def _change(directory: Path) -> None:
    (directory / "new").mkdir()
    (directory / "new" / "file").write_text("new\n")
    (directory / "README.md").write_text("changed\n")
    shutil.rmtree(directory / "src" / "lib")
    (directory / "run.sh").chmod(0o600)
    (directory / "link").unlink()
    (directory / "link").mkdir()
    (directory / "empty").rmdir()
    (directory / "empty").write_text("now a file\n")


def _protect_and_change(directory: Path, told: int, *, guarded: bool) -> Callable[[], None]:
    """Make a checkpoint and change the directory; return what brings it back."""
    from pytest_sandpoint.copying import CopiedDirectory
    from pytest_sandpoint.runs import Run
    from sandpoint.settings import read_settings

    run = Run(read_settings().state_dir)
    os.write(told, run.folder.encode())
    if not guarded:
        run._guardian.kill()
        run._guardian.wait()
    copied = CopiedDirectory(str(directory), run)
    snapshot = copied.take()
    _change(directory)

    def end() -> None:
        copied.bring_back(snapshot)
        copied.forget(snapshot)
        run.close()

    return end


def _run(directory: Path, told: int, at: int, *, guarded: bool) -> None:
    end = _protect_and_change(directory, told, guarded=guarded)
    Killer(at).install()
    end()


def _die(directory: Path, told: int) -> None:
    _protect_and_change(directory, told, guarded=False)
    os.kill(os.getpid(), signal.SIGKILL)


def _bring_back(folder: str, at: int) -> None:
    from pytest_sandpoint.guardian import bring_back

    Killer(at).install()
    assert bring_back(folder) == []


def _in_child(function: Callable[[], None]) -> str:
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - the parent is told
            sys.stdout.write(f"failed: {error!r}\n")
            sys.stdout.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else "done" if status == 0 else "failed"


def _answer(who: Who, directory: Path, at: int, *, guarded: bool) -> str:
    hears, told = os.pipe()
    try:
        if who == "run":
            how = _in_child(lambda: _run(directory, told, at, guarded=guarded))
            return f"{how} {os.read(hears, 4096).decode()}"
        _in_child(lambda: _die(directory, told))
        folder = os.read(hears, 4096).decode()
        return f"{_in_child(lambda: _bring_back(folder, at))} {folder}"
    finally:
        os.close(hears)
        os.close(told)


def main() -> None:
    """Answer requests until stdin ends."""
    # Loaded once, not by every child.
    import pytest_sandpoint.copying
    import pytest_sandpoint.guardian
    import pytest_sandpoint.runs  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        answer = _answer(request["who"], Path(request["directory"]), request["at"], guarded=request["guarded"])
        print(answer, flush=True)


class RollbackKiller(HelperProcess):
    """The parent's side, used by tests."""

    module = "helpers.rollback_killer"

    def __init__(self, state: Path) -> None:
        super().__init__({"SANDPOINT_STATE_DIR": str(state)})

    def kill(self, who: Who, directory: Path, *, at: int, guarded: bool = False) -> tuple[bool, str]:
        """Kill it before its change number `at`; return whether it came so far, and the run's folder."""
        request = {"who": who, "directory": str(directory), "at": at, "guarded": guarded}
        how, folder = self.ask(request).split()
        assert how in {"killed", "done"}, how
        return how == "killed", folder


if __name__ == "__main__":
    main()
