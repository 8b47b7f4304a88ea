"""Back up, damage and bring back a real directory, through the real MCP server.

The directory is a copy of the virtual environment that this interpreter lives in, or of `--source DIR`. Every
entry is compared with a listing made before, which shares no code with Sandpoint. Exit status 1 if anything
differs.
"""

import argparse
import asyncio
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

SANDPOINT = os.path.join(os.path.dirname(sys.executable), "sandpoint")
SHOWN = 8
"""How many paths of a list are printed."""

RENAMED = ".old"
"""What a renamed directory's name gets at its end."""


# -- the independent listing --


@dataclass(frozen=True)
class Entry:
    """All that a restore has to bring back of one entry."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    sha256: str
    xattrs: tuple[tuple[str, bytes], ...]
    linked_with: tuple[bytes, ...]


Listing = Mapping[bytes, Entry]

_TYPES = {
    0o04: "directory",
    0o10: "file",
    0o12: "symlink",
    0o01: "fifo",
    0o14: "socket",
    0o02: "char",
    0o06: "block",
}


def list_tree(root: str) -> Listing:
    """Look at every entry below a directory, and at the directory itself."""
    base = os.fsencode(root)
    paths = [b".", *_paths_below(base)]
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path in paths:
        status = os.lstat(os.path.join(base, path))
        if status.st_nlink > 1:
            groups[status.st_dev, status.st_ino].append(path)
    return {path: _look(os.path.join(base, path), groups) for path in paths}


def _paths_below(base: bytes) -> Iterator[bytes]:
    for folder, directories, files in os.walk(base):
        for name in [*directories, *files]:
            yield os.path.relpath(os.path.join(folder, name), base)


def _look(path: bytes, groups: Mapping[tuple[int, int], list[bytes]]) -> Entry:
    status = os.lstat(path)
    kind = _TYPES[status.st_mode >> 12]
    group = () if kind == "directory" else groups.get((status.st_dev, status.st_ino), ())
    return Entry(
        type=kind,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        # What a directory's size means is its filesystem's own affair.
        size=0 if kind == "directory" else status.st_size,
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(path) if kind == "symlink" else b"",
        sha256=_digest(path) if kind == "file" else "",
        xattrs=_xattrs(path),
        linked_with=tuple(sorted(group)) if len(group) > 1 else (),
    )


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        # A squashfs in which nothing has any says so in this way.
        if error.errno == errno.EOPNOTSUPP:
            return ()
        raise
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(before: Listing, after: Listing, *, whole_seconds: bool) -> list[str]:
    """Say what differs, a sentence for each entry."""
    found = []
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was is None or now is None:
            found.append(f"{os.fsdecode(path)}: {'missing' if now is None else 'should not be there'}")
            continue
        if whole_seconds:
            was, now = _in_seconds(was), _in_seconds(now)
        fields = [name for name in Entry.__dataclass_fields__ if getattr(was, name) != getattr(now, name)]
        if fields:
            values = ", ".join(f"{name} {getattr(now, name)!r}, was {getattr(was, name)!r}" for name in fields)
            found.append(f"{os.fsdecode(path)}: {values}")
    return found


def _in_seconds(entry: Entry) -> Entry:
    return replace(entry, mtime_ns=entry.mtime_ns // 1_000_000_000)


# -- the damage --


class Damage:
    """What a careless agent does to a directory; it keeps no copy of what was there."""

    def __init__(self, root: str, seed: int) -> None:
        """Get ready to choose victims among what is there, by the seed."""
        self.root = Path(root)
        self.random = random.Random(seed)

    def do(self) -> Iterator[str]:
        """Do it all, a sentence for each kind."""
        yield self._rename_folder()
        yield self._delete_folder()
        links, files = self._links_and_files()
        few = max(1, len(files) // 400)
        yield self._edit(files[:few])
        yield self._edit_unseen(next(path for path in files[few:] if path.stat().st_size))
        yield self._change_modes(files[few:][-few:])
        yield self._delete(files[2 * few : 4 * few])
        yield self._add(few)
        if links:
            yield self._replace_symlink(self.random.choice(links))

    def _links_and_files(self) -> tuple[list[Path], list[Path]]:
        entries = [path for path in sorted(self.root.rglob("*")) if not self._is_renamed(path)]
        links = [path for path in entries if path.is_symlink()]
        files = [path for path in entries if path.is_file() and not path.is_symlink()]
        self.random.shuffle(files)
        return links, files

    def _folders(self) -> list[Path]:
        entries = [path for path in sorted(self.root.rglob("*")) if not self._is_renamed(path)]
        return [path for path in entries if path.is_dir() and not path.is_symlink() and any(path.iterdir())]

    def _is_renamed(self, path: Path) -> bool:
        return any(part.endswith(RENAMED) for part in path.relative_to(self.root).parts)

    def _edit(self, files: list[Path]) -> str:
        for path in files:
            with path.open("ab") as file:
                file.write(b"\n# edited by an agent\n")
        return f"edited {len(files)} files"

    def _edit_unseen(self, path: Path) -> str:
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return f"changed one byte of {self._name(path)}, and put its modification time back"

    def _change_modes(self, files: list[Path]) -> str:
        for path in files:
            path.chmod(0o600 if path.stat().st_mode & 0o777 != 0o600 else 0o777)
        return f"changed the modes of {len(files)} files"

    def _delete(self, files: list[Path]) -> str:
        for path in files:
            path.unlink()
        return f"deleted {len(files)} files"

    def _add(self, number: int) -> str:
        folder = self.root / "generated by an agent"
        folder.mkdir()
        for index in range(number):
            (folder / f"new-{index}.py").write_text(f"print({index})\n")
        return f"made {number} new files"

    def _replace_symlink(self, path: Path) -> str:
        path.unlink()
        path.write_text("no longer a link\n")
        return f"put a file in place of the symlink {self._name(path)}"

    def _delete_folder(self) -> str:
        folders = self._folders()
        deepest = max(len(path.parts) for path in folders)
        path = self.random.choice([path for path in folders if len(path.parts) == deepest])
        shutil.rmtree(path)
        return f"deleted the directory {self._name(path)}"

    def _rename_folder(self) -> str:
        path = max(self._folders(), key=_files_in)
        path.rename(path.with_name(path.name + RENAMED))
        return f"renamed the directory {self._name(path)}"

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))


def _files_in(path: Path) -> int:
    return sum(1 for entry in path.iterdir() if entry.is_file())


# -- the demo --


class Demo:
    """A copy of a directory, a listing of it, and a client that speaks to the server."""

    def __init__(self, folder: str, source: str) -> None:
        """Lay out a temporary folder; nothing is copied yet."""
        self.source = source
        self.project = os.path.join(folder, "project")
        self.environment = {
            "SANDPOINT_STORE": Path(folder, "store").as_uri(),
            "SANDPOINT_STATE_DIR": os.path.join(folder, "state"),
            "SANDPOINT_ALLOWED_DIRS": folder,
        }
        self.before: Listing = {}
        self.problems: list[str] = []

    async def run(self) -> None:
        """Go through it all."""
        self.prepare()
        server = StdioServerParameters(command=SANDPOINT, args=["serve"], env=self.environment)
        async with Client(server) as client:
            name = client.server_info.name if client.server_info else "a nameless server"
            headline(f"Connected to {name} over stdio, MCP {client.protocol_version}")
            backup_id = await self.back_up(client)
            await self.copy(client, backup_id)
            if self.can_overlay():
                await self.overlay(client, backup_id)

    def prepare(self) -> None:
        """Copy the directory and list it."""
        headline(f"A copy of {os.path.basename(self.source)}")
        started = time.perf_counter()
        subprocess.run(["cp", "-a", "--", self.source, self.project], check=True)
        say(f"copied with cp -a in {since(started)}")
        started = time.perf_counter()
        self.before = list_tree(self.project)
        files = [entry for entry in self.before.values() if entry.type != "directory"]
        size = sum(entry.size for entry in files)
        say(f"listed {len(self.before):,} entries in {since(started)}, of them {len(files):,} files")
        say(f"in all {megabytes(size)}")

    async def back_up(self, client: Client) -> str:
        """Create the backup that everything comes back from."""
        headline("create_backup")
        result, took = await call(client, "create_backup", dir=self.project, name="before the agent")
        say(f"{result['id']}: {result['file_count']:,} files in {took}")
        say(f"{megabytes(result['total_bytes'])} take {megabytes(result['size_bytes'])} in the store")
        backup_id: str = result["id"]
        return backup_id

    async def copy(self, client: Client, backup_id: str) -> None:
        """Damage, look, and restore file by file."""
        self.damage(seed=1)
        await self.look(client, backup_id)
        headline("restore_backup, mode copy")
        await self.restore(client, backup_id, "copy")
        self.compare("every entry, mtimes to the nanosecond", whole_seconds=False)

    async def overlay(self, client: Client, backup_id: str) -> None:
        """Do it twice by overlay and take that down: what was below is back, for `copy` to put right."""
        for seed in (2, 3):
            self.damage(seed)
            headline("restore_backup, mode overlay" + (", again, over the damaged overlay" if seed == 3 else ""))
            await self.restore(client, backup_id, "overlay", undo=False)
            self.compare("every entry, mtimes in whole seconds: squashfs keeps no more", whole_seconds=True)
        headline("sandpoint unmount")
        self.sandpoint("unmount", self.project)
        say("the overlay is gone, and the damage from before it is back" if self.differs() else "unmounted")
        headline("restore_backup, mode copy, to put that right")
        await self.restore(client, backup_id, "copy")
        self.compare("every entry, mtimes to the nanosecond", whole_seconds=False)

    def damage(self, seed: int) -> None:
        """Damage the project."""
        headline("The agent goes to work")
        for sentence in Damage(self.project, seed).do():
            say(sentence)

    async def look(self, client: Client, backup_id: str) -> None:
        """Show the diff, and check that a dry run says the same and touches nothing."""
        headline("diff_backup")
        diff, took = await call(client, "diff_backup", backup_id=backup_id)
        say(f"since the backup: {counted(diff)} (in {took})")
        for sign, kind in (("+", "added"), ("~", "modified"), ("-", "removed")):
            for path in diff.get(kind, [])[:SHOWN]:
                say(f"  {sign} {path}")
            if diff[f"{kind}_count"] > SHOWN:
                say(f"  {sign} ... and {diff[f'{kind}_count'] - SHOWN:,} more")
        damaged = list_tree(self.project)
        plan, took = await call(client, "restore_backup", backup_id=backup_id, mode="copy", dry_run=True)
        say(f"a restore would bring it back with {counted(plan['changes'])} (dry run, in {took})")
        touched = differences(damaged, list_tree(self.project), whole_seconds=False)
        self.problems += [f"touched by the dry run: {sentence}" for sentence in touched]

    async def restore(self, client: Client, backup_id: str, mode: str, *, undo: bool = True) -> None:
        """Restore, and say what happened."""
        result, took = await call(client, "restore_backup", backup_id=backup_id, mode=mode, undo=undo)
        changes = f": {counted(result['changes'])}" if "changes" in result else ""
        kept = f"; undo with {result['undo_id']}" if "undo_id" in result else ""
        say(f"restored in {took}{changes}{kept}")
        if result["mode"] != mode or not result["success"]:
            self.problems.append(f"asked for mode {mode}, got {result}")

    def compare(self, what: str, *, whole_seconds: bool) -> None:
        """Compare every entry with the listing."""
        found = differences(self.before, list_tree(self.project), whole_seconds=whole_seconds)
        self.problems += found
        say(f"compared {len(self.before):,} entries ({what}): {len(found):,} differ")

    def differs(self) -> bool:
        """Whether anything is not as it was."""
        return bool(differences(self.before, list_tree(self.project), whole_seconds=True))

    def can_overlay(self) -> bool:
        """Ask `sandpoint doctor`, and say what is missing where it says no."""
        headline("sandpoint doctor")
        capabilities = self.sandpoint("doctor")
        if capabilities.get("overlay"):
            say(f"this machine can mount overlays: {capabilities['overlay']}")
            return True
        say("this machine can mount no overlays, so that mode is left out; what is missing:")
        for item in capabilities["items"]:
            if not item["available"]:
                say(f"{item['name']}: {item['detail']} {item['remedy']}".rstrip())
        return False

    def sandpoint(self, *arguments: str) -> dict[str, Any]:
        """Run the command line beside the server."""
        done = subprocess.run(
            [SANDPOINT, *arguments, "--json"],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        if "error" in answer:
            raise RuntimeError(f"sandpoint {arguments[0]}: {answer['error']['message']}")
        return answer

    def clean_up(self) -> None:
        """Leave no mount behind, whatever happened."""
        if os.path.ismount(self.project):
            self.sandpoint("unmount", self.project)


async def call(client: Client, tool: str, **arguments: object) -> tuple[dict[str, Any], str]:
    """Call a tool; return its structured result and how long it took.

    Raises:
        RuntimeError: The tool failed, in its own words.
    """
    started = time.perf_counter()
    result = await client.call_tool(tool, arguments)
    took = since(started)
    if result.is_error or not isinstance(result.structured_content, dict):
        raise RuntimeError(f"{tool}: {' '.join(getattr(block, 'text', '') for block in result.content)}")
    return result.structured_content, took


def counted(changes: Mapping[str, Any]) -> str:
    """Return the sums of a list of changes."""
    return ", ".join(f"{changes[f'{kind}_count']:,} {kind}" for kind in ("added", "modified", "removed"))


def since(started: float) -> str:
    """Return the time since then, readable."""
    seconds = time.perf_counter() - started
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def megabytes(size: int) -> str:
    """Return a size, readable."""
    return f"{size / 1e6:.1f} MB"


def headline(text: str) -> None:
    """Print the beginning of a part."""
    print(f"\n{text}", flush=True)


def say(text: str) -> None:
    """Print a line of a part, whatever bytes the names in it hold."""
    print(f"  {text}".encode(errors="backslashreplace").decode(), flush=True)


def main() -> int:
    """Run the demo in a temporary folder, and take the folder away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=sys.prefix, help="the directory to copy (this virtual environment)")
    source = os.path.realpath(parser.parse_args().source)
    with tempfile.TemporaryDirectory(prefix="sandpoint-demo-", ignore_cleanup_errors=True) as folder:
        demo = Demo(os.path.realpath(folder), source)
        try:
            asyncio.run(demo.run())
        finally:
            demo.clean_up()
    if demo.problems:
        headline(f"{len(demo.problems):,} differences:")
        for problem in demo.problems[:100]:
            say(problem)
        return 1
    headline("Everything came back as it was.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
