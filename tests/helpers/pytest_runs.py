"""Runs of pytest with the plugin, in a process of their own: as root and as an ordinary user, alone and by workers."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import ordinary

QUIET = ("-p", "no:cacheprovider", "-p", "no:pytester", "-p", "no:hypothesispytest")
"""Off: what leaves files, and Hypothesis, whose import takes nearly half of a short run."""


@dataclass(frozen=True)
class Way:
    """Who runs it, and by how many workers (0: by none)."""

    name: str
    is_root: bool
    workers: int

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*QUIET, "-n", str(self.workers)) if self.workers else QUIET


ROOT = Way("root", is_root=True, workers=0)
ROOT_WORKERS = Way("root-n4", is_root=True, workers=4)
USER = Way("user", is_root=False, workers=0)
USER_WORKERS = Way("user-n4", is_root=False, workers=4)
WAYS = (ROOT, ROOT_WORKERS, USER, USER_WORKERS)


def run(
    pytester: pytest.Pytester, way: Way, *arguments: str, env: dict[str, str] | None = None, timeout: float = 120
) -> pytest.RunResult:
    """Run pytest on what is in the pytester's folder, with a state directory beside it."""
    box = pytester.path
    state = box.parent / f"{box.name}-home" / "state"
    variables = {"SANDPOINT_STATE_DIR": str(state), "SANDPOINT_STORE": f"{(state.parent / 'store').as_uri()}"}
    variables |= {"PYTHONDONTWRITEBYTECODE": "1"} | (env or {})
    argv = [sys.executable, "-m", "pytest", *way.arguments, *arguments]
    start = time.perf_counter()
    if way.is_root:
        state.mkdir(parents=True, exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(("PYTEST_", "SANDPOINT_"))]:
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            return pytester.run(*argv, timeout=timeout)
    _give_to_user(box)
    done = ordinary.run(argv, cwd=box, home=state.parent, env=variables, timeout=timeout)
    return pytest.RunResult(
        done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), time.perf_counter() - start
    )


def _give_to_user(box: Path) -> None:
    os.chown(box, ordinary.UID, ordinary.GID)
    for folder, folders, files in os.walk(box):
        for name in (*folders, *files):
            os.chown(os.path.join(folder, name), ordinary.UID, ordinary.GID, follow_symlinks=False)
    box.chmod(0o755)


def save_backup(pytester: pytest.Pytester) -> tuple[str, str]:
    """Let a test save the folder `data` with a file `seeded` in it; return the backup's id and its store."""
    store = (pytester.path / "a store").as_uri()
    pytester.makepyfile(
        test_saves=f"""
        def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / "seeded").write_text("seeded")
            with open("id", "w") as file:
                file.write(checkpoint.save(store={store!r}).id)
    """
    )
    run(pytester, ROOT).assert_outcomes(passed=1)
    backup_id = (pytester.path / "id").read_text()
    return backup_id, store
