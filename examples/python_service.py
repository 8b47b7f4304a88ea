"""Back up, break and bring back a directory from Python, without a server.

python examples/python_service.py
"""

import shutil
import tempfile
from pathlib import Path

import anyio

from sandpoint.service import open_service
from sandpoint.settings import Settings


async def main(workspace: Path) -> None:
    """Show the operations on a small tree.

    Most programs call `open_service()` alone, which does as the environment says; this one keeps to
    its workspace.
    """
    tree = workspace / "tree"
    (tree / "docs").mkdir(parents=True)
    (tree / "docs" / "plan.md").write_text("first do no harm\n")
    (tree / "data.csv").write_text("a,b\n1,2\n")

    service = open_service(
        Settings(
            store=(workspace / "store").as_uri(),
            state_dir=str(workspace / "state"),
            allowed_dirs=(str(tree),),
        )
    )
    backup = await service.create(str(tree), name="before", ttl=3600)
    print(f"created {backup.id}: {backup.file_count} files, {backup.size_bytes} bytes in the store")

    shutil.rmtree(tree / "docs")
    (tree / "data.csv").write_text("oops\n")
    (tree / "junk.tmp").touch()

    changes = await service.diff(backup.id)
    print(f"since then: added {changes.added}, modified {changes.modified}, removed {changes.removed}")

    restored = await service.restore(backup.id, mode="copy")
    print(f"restored; plan.md says: {(tree / 'docs' / 'plan.md').read_text().strip()}")
    print(f"the broken state is kept as {restored.undo_id}")

    for kept in (await service.list(dir=str(tree))).backups:
        print(f"{kept.id}  {kept.created_at:%H:%M:%S}  {kept.name or ''}")

    verified = await service.verify(backup.id)
    print(f"verified: {verified.ok}")
    await service.delete(backup.id)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="sandpoint-example-") as temporary:
        anyio.run(main, Path(temporary))
