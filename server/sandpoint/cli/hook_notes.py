"""What the hook of an agent remembers from one call to the next, each in a small file of the state directory.

{directory}.{session}.{failure}   the user was told of a failure
{directory}.{session}.rest        its time is that until which nothing is tried
{directory}.made                  a byte for each backup since the oldest were last deleted

The names are digests. A full disk mostly has room for an empty file; where nothing can be noted, it is forgotten.
"""

import hashlib
import os
import time
from contextlib import suppress

_END_S = 7 * 86400


class Notes:
    """The notes on one directory and one session of an agent."""

    def __init__(self, state_dir: str | None, directory: str, session: str) -> None:
        """Nothing is read or made yet.

        Args:
            state_dir: The state directory; None where nobody can tell which.
            directory: Which is backed up.
            session: Whose calls these are.
        """
        # Not by tempfile, which writes a file to find out, and fails where the disk is full.
        other = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"sandpoint-{os.geteuid()}")  # noqa: S108
        self._folders = (other,) if state_dir is None else (os.path.join(state_dir, "hooks"), other)
        self._directory = _digest(directory)
        self._session = f"{self._directory}.{_digest(session)}"

    def is_resting(self) -> bool:
        """Whether nothing is to be tried yet."""
        until = max((_time_of(os.path.join(folder, f"{self._session}.rest")) for folder in self._folders), default=0.0)
        return time.time() < until

    def rest(self, seconds: float) -> None:
        """Try nothing for so long."""
        path = self._make(f"{self._session}.rest")
        if path is not None:
            with suppress(OSError):
                os.utime(path, (time.time() + seconds,) * 2)

    def is_first(self, failure: str) -> bool:
        """Note a failure, and return whether it is the first of its kind in this session since the last success."""
        name = f"{self._session}.{_digest(failure)}"
        if any(os.path.exists(os.path.join(folder, name)) for folder in self._folders):
            return False
        self._make(name)
        return True

    def forget_failures(self) -> None:
        """Note that all went well."""
        for folder in self._folders:
            for name in _names(folder):
                if name.startswith(f"{self._session}."):
                    _remove(os.path.join(folder, name))

    def count(self) -> int:
        """Note another backup, and return how many there were since `start_again`."""
        path = self._make(f"{self._directory}.made")
        if path is None:
            return 0
        try:
            with open(path, "ab") as file:
                file.write(b".")
                return file.tell()
        except OSError:
            return 0

    def start_again(self) -> None:
        """Count from the beginning."""
        for folder in self._folders:
            _remove(os.path.join(folder, f"{self._directory}.made"))

    def _make(self, name: str) -> str | None:
        """Make a note where one can be made, and clear away old ones; None where it cannot be."""
        for folder in self._folders:
            try:
                _own_folder(folder)
                path = os.path.join(folder, name)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            except OSError:
                continue
            for other in _names(folder):
                if time.time() - _time_of(os.path.join(folder, other)) > _END_S:
                    _remove(os.path.join(folder, other))
            return path
        return None


def _own_folder(folder: str) -> None:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not ours alone")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _time_of(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
