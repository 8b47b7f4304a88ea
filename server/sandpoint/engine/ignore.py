"""Which paths are left out of a backup and left alone by a restore. It is decided here and nowhere else."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property

from sandpoint.engine import jail, tools
from sandpoint.engine.patterns import Pattern, parse_patterns
from sandpoint.engine.place import Place
from sandpoint.engine.plan import ancestors
from sandpoint.engine.tools import Check
from sandpoint.errors import InvalidBackupConfigError

_NO_REPOSITORY = b"not a git repository"


class GitError(Exception):
    """git is missing or failed; the message says what to do."""


class Rules:
    """Excludes in gitignore syntax, paths that git ignores, and paths that are excluded as such.

    A path is excluded by itself or with its directory; `cover` overrides all: these paths are never excluded.
    """

    def __init__(
        self,
        patterns: Sequence[str] = (),
        *,
        paths: Iterable[bytes] = (),
        cover: Iterable[bytes] = (),
    ) -> None:
        """Compile the patterns.

        Raises:
            InvalidBackupConfigError: git would not take a pattern.
        """
        self.patterns = tuple(patterns)
        self.paths = frozenset(paths)
        self._cover = frozenset(cover)
        self._patterns = _compile(self.patterns) if patterns else []

    @cached_property
    def is_empty(self) -> bool:
        """Whether nothing is excluded at all."""
        return not self._patterns and not self.paths

    def excludes(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether a path is left out; what lies below an excluded directory is not asked about."""
        if path in self._cover:
            return False
        if self._names(path, is_dir=is_dir):
            return True
        # A directory that is covered is walked although excluded: what else lies in it is excluded with it.
        return bool(self._cover) and any(
            above in self._cover and self._names(above, is_dir=True) for above in ancestors(path)[:-1]
        )

    def _names(self, path: bytes, *, is_dir: bool) -> bool:
        if path in self.paths:
            return True
        for pattern in self._patterns:
            if pattern.matches(path, is_dir=is_dir):
                return pattern.excludes
        return False


def _compile(patterns: Sequence[str]) -> list[Pattern]:
    """Return the patterns, the last first: it has the last word."""
    try:
        return parse_patterns(patterns)[::-1]
    except ValueError as error:
        raise InvalidBackupConfigError(f"excludes: {error}, which is no gitignore pattern; correct it") from None


def git_ignored(place: Place, check: Check) -> frozenset[bytes]:
    """Return the paths below a directory that git ignores, a directory standing for all below it.

    Git decides: nested `.gitignore` files, rules above the directory, negations; tracked files are never among
    them. Outside a repository nothing is ignored.

    Raises:
        GitError: git is missing or fails.
    """
    try:
        inside, complaint = _git(["rev-parse", "--is-inside-work-tree"], place, check, ok=(0, 128))
        if inside.strip() != b"true":
            if inside or _NO_REPOSITORY in complaint:
                return frozenset()
            raise GitError(f"use_gitignore: git cannot read the repository: {_first_line(complaint)}")
        listing, _ = _git(
            ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"], place, check
        )
    except tools.ToolMissingError as error:
        raise GitError(f"use_gitignore: {error}, or leave use_gitignore out") from None
    except tools.ToolFailedError as error:
        raise GitError(f"use_gitignore: {error}; repair the repository or leave use_gitignore out") from None
    listed = {path.rstrip(b"/") for path in listing.split(b"\0") if path}
    # A directory that is not ignored, but holds nothing else, is listed too: before what is ignored in it.
    return frozenset(listed.difference(*(ancestors(path) for path in listed)))


def _git(arguments: Sequence[str], place: Place, check: Check, *, ok: Sequence[int] = (0,)) -> tuple[bytes, bytes]:
    # The repository's own configuration is hostile: fsmonitor and hooks are programs that it names, and so are
    # transports, by which git would fetch what a partial clone lacks (see `tools.ENVIRONMENT`). Whose repository it
    # is does not matter, for it is only read.
    settings = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    argv = ["git", *settings, *arguments]
    tools.require("git")
    try:
        view = place.root.view_for_programs()
    except OSError as error:
        raise GitError(
            f"use_gitignore: git cannot be kept from all but the tree ({error.strerror}), which needs root; run as "
            "root, or leave use_gitignore out"
        ) from error
    if view is None:
        return tools.run(argv, cwd=f"/proc/self/fd/{place.fd}", check=check, ok=ok)
    try:
        return jail.run(argv, view, place.path, check=check, ok=ok)
    finally:
        os.close(view)


def _first_line(text: bytes) -> str:
    lines = text.decode("utf-8", "backslashreplace").splitlines()
    return lines[0] if lines else "it says nothing"
