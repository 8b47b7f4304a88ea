"""The other contenders, each with the options its users are advised to take for speed."""

import os
import re
import shutil
from collections.abc import Iterator

from benchmarks.rounds import Contender, command, remove
from sandpoint.engine.squashfs import build_options
from sandpoint.models import Compression

_GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


def raw_squashfs(tree: str, work: str, compression: Compression) -> Iterator[Contender]:
    """`mksquashfs` with the options of the engine, and `unsquashfs` of all that it made."""
    archive, target = os.path.join(work, "raw.sqsh"), os.path.join(work, "raw")
    options = ["-noappend", "-no-progress", "-quiet", *build_options(compression)]
    yield Contender(
        "mksquashfs",
        before=lambda: remove(archive),
        run=lambda: command(["mksquashfs", tree, archive, *options]),
    )
    yield Contender(
        "unsquashfs",
        before=lambda: remove(target),
        run=lambda: command(["unsquashfs", "-no-progress", "-quiet", "-dest", target, archive]),
        after=lambda: remove(target),
    )


def copy(tree: str, work: str) -> Iterator[Contender]:
    """`cp -a` of the tree to the same filesystem."""
    target = os.path.join(work, "copy")
    yield Contender(
        "cp",
        before=lambda: remove(target),
        run=lambda: command(["cp", "-a", tree, target]),
        after=lambda: remove(target),
    )


def restic(tree: str, work: str) -> Iterator[Contender]:
    """`restic` with its default compression; it always encrypts."""
    repository, target = os.path.join(work, "restic"), os.path.join(work, "restic-restored")
    env = {
        "RESTIC_REPOSITORY": repository,
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": os.path.join(work, "restic-cache"),
    }

    def start() -> None:
        remove(repository)
        remove(env["RESTIC_CACHE_DIR"])
        command(["restic", "init"], env)

    def backup() -> bytes:
        return command(["restic", "backup", "--quiet", tree], env)

    yield Contender("restic_first", before=start, run=backup)
    yield Contender("restic_again", run=backup)
    yield Contender(
        "restic_restore",
        before=lambda: remove(target),
        run=lambda: command(["restic", "restore", "latest", "--target", target], env),
        after=lambda: remove(target),
    )


def borg(tree: str, work: str) -> Iterator[Contender]:
    """`borg` with zstd level 1, not encrypted."""
    repository = os.path.join(work, "borg")
    env = {
        "BORG_BASE_DIR": os.path.join(work, "borg-base"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }

    def start() -> None:
        remove(repository)
        remove(env["BORG_BASE_DIR"])
        command(["borg", "init", "--encryption", "none", repository], env)

    def backup(name: str) -> bytes:
        return command(["borg", "create", "--compression", "zstd,1", f"{repository}::{name}", tree], env)

    yield Contender("borg_first", before=start, run=lambda: backup("first"))
    yield Contender("borg_again", run=lambda: backup("again"))


def shadow_git(tree: str, work: str) -> Iterator[Contender]:
    """A git repository beside the tree, as coding agents keep one: `add -A` and `commit`."""
    repository = os.path.join(work, "shadow.git")
    git = ["git", f"--git-dir={repository}", f"--work-tree={tree}", "-c", "gc.auto=0"]

    def start() -> None:
        remove(repository)
        command(["git", "init", "--quiet", "--bare", repository], _GIT)

    def backup() -> None:
        command([*git, "add", "--all"], _GIT, cwd=tree)
        command([*git, "commit", "--quiet", "--allow-empty", "--message", "backup"], _GIT, cwd=tree)

    yield Contender("git_first", before=start, run=backup)
    yield Contender("git_again", run=backup)


def require(*, peers: bool) -> None:
    """Stop at once where a program is missing."""
    programs = ["mksquashfs", "unsquashfs", *(["restic", "borg", "git"] if peers else [])]
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise SystemExit(f"Not installed: {', '.join(missing)}. `make bench` installs what it needs.")


def versions(*, peers: bool) -> dict[str, str]:
    """Return the version of each program that takes part."""
    asked = {"mksquashfs": ["mksquashfs", "-version"]}
    if peers:
        asked |= {"restic": ["restic", "version"], "borg": ["borg", "--version"], "git": ["git", "--version"]}
    return {name: _version(argv) for name, argv in asked.items()}


def _version(argv: list[str]) -> str:
    found = re.search(rb"\d+(\.\d+)+", command(argv))
    return found.group().decode() if found else "unknown"
