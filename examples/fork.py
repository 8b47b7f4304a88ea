"""Try several ways from one state side by side, and keep the one that is best.

python examples/fork.py
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio

from sandpoint.service import open_service
from sandpoint.settings import Settings


def shorten(project: Path) -> None:
    """Leave out what seems to be in vain."""
    (project / "sort.py").write_text("def sort(items): return items\n")


def rewrite(project: Path) -> None:
    """Use what the language has."""
    (project / "sort.py").write_text("def sort(items): return sorted(items)\n")


def tidy(project: Path) -> None:
    """Begin by making room."""
    (project / "sort.py").unlink()


ATTEMPTS: dict[str, Callable[[Path], None]] = {"shorten": shorten, "rewrite": rewrite, "tidy": tidy}
"""What agents would do, each in a directory of its own."""


def passes(project: Path) -> bool:
    """Run the check that decides."""
    module: dict[str, Callable[[list[int]], list[int]]] = {}
    try:
        exec((project / "sort.py").read_text(), module)
        return module["sort"]([3, 1, 2]) == [1, 2, 3]
    except OSError:
        return False


async def main(workspace: Path) -> None:
    """Fork a project once for each attempt.

    Most programs call `open_service()` alone. With `SANDPOINT_STORE=s3://bucket/prefix` the attempts may be made on
    other machines: each forks the backup by its id.
    """
    project = workspace / "project"
    project.mkdir()
    (project / "sort.py").write_text("def sort(items): return list(reversed(items))\n")

    service = open_service(Settings(store=(workspace / "store").as_uri(), state_dir=str(workspace / "state")))
    backup = await service.create(str(project), name="before the attempts")
    directories = {name: workspace / "attempts" / name for name in ATTEMPTS}
    # On Linux as root mode "overlay" takes milliseconds, whatever the size of the tree.
    await service.fork(backup.id, map(str, directories.values()), mode="copy")

    for name, attempt in ATTEMPTS.items():
        attempt(directories[name])
    for name, directory in directories.items():
        changes = await service.diff(backup.id, dir=str(directory))
        print(f"{name}: modified {changes.modified}, removed {changes.removed}, passes: {passes(directory)}")

    best = next(name for name, directory in directories.items() if passes(directory))
    result = await service.create(str(directories[best]), name=best)
    await service.restore(result.id, dir=str(project), mode="copy")
    print(f"took {best}: {(project / 'sort.py').read_text().strip()}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="sandpoint-example-") as temporary:
        anyio.run(main, Path(temporary))
