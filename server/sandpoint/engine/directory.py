"""The directory that is backed up or restored: the rules for its path, and its one descriptor."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from sandpoint.engine import linux
from sandpoint.engine.roots import HOST, Root
from sandpoint.errors import InvalidBackupConfigError

KERNEL_DIRECTORIES = ("/proc", "/sys", "/dev")
"""Not files: refused with everything below, whatever is allowed. `/dev/shm` below is an ordinary filesystem."""

SYSTEM_TREES = ("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
"""The operating system: refused with everything below unless allowed by name."""

SYSTEM_DIRECTORIES = ("/home", "/media", "/mnt", "/opt", "/run", "/srv", "/tmp", "/var")  # noqa: S108 - names to refuse
"""Shared by all of the machine: refused themselves unless allowed by name; what lies below is fine."""

USER_TREES = ("/dev/shm", "/usr/local", "/usr/src")  # noqa: S108 - no file is made there
"""Exceptions from the trees above."""

INSIDE = linux.RESOLVE_BENEATH | linux.NO_LINKS


def parse_directory(path: str) -> str:
    """Return an absolute path without doubled or trailing slashes.

    Raises:
        InvalidBackupConfigError: It is relative, holds `.` or `..`, a NUL, or is not UTF-8.
    """
    if "\0" in path:
        raise InvalidBackupConfigError("dir: a path cannot hold a NUL character; remove it")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidBackupConfigError(
            "dir: the directory's own path must be UTF-8 (names inside it may be any bytes); rename it"
        ) from None
    if not path.startswith("/"):
        hint = f"; did you mean {os.path.abspath(path)}?" if path else ""
        raise InvalidBackupConfigError(f"dir: {path!r} is relative, and must be an absolute path{hint}")
    parts = [part for part in path.split("/") if part]
    if "." in parts or ".." in parts:
        raise InvalidBackupConfigError(
            f"dir: {path!r} holds '.' or '..'; give the plain path, {os.path.normpath(path)} if that is meant"
        )
    return "/" + "/".join(parts)


def check_allowed(path: str, allowed: Sequence[str] | None, kept_out: Sequence[str]) -> None:
    """Check a parsed path against the rules of the place.

    Args:
        path: As `parse_directory` returns it. Links are refused when it is opened, so what it says is where it is.
        allowed: Directories that may be used, with all below them; None allows any but the system's. Empty where a
            server would be held to its working directory, and that is the system's.
        kept_out: Directories of our own (store and state) that may not lie in it, nor it in them.

    Raises:
        InvalidBackupConfigError: It may not be used.
    """
    if path == "/":
        raise InvalidBackupConfigError("dir: '/' is the whole machine; name the directory that you work in")
    if is_within_any(path, KERNEL_DIRECTORIES) and not is_within_any(path, USER_TREES):
        raise InvalidBackupConfigError(f"dir: {path} belongs to the kernel and holds no files to back up")
    for own in kept_out:
        if is_within(own, path) or is_within(path, own):
            raise InvalidBackupConfigError(
                f"dir: {path} and Sandpoint's own {own} lie in one another: a restore would destroy the backups; "
                "set SANDPOINT_STORE or SANDPOINT_STATE_DIR to a place outside"
            )
    if allowed is not None:
        if not allowed:
            raise InvalidBackupConfigError(
                f"dir: {path} is outside the allowed directories (none), as all is where a server was started in a "
                "directory of the system; set SANDPOINT_ALLOWED_DIRS to those that may be backed up, separated by ':', "
                "or start the server in a project"
            )
        if not is_within_any(path, allowed):
            raise InvalidBackupConfigError(
                f"dir: {path} is outside the allowed directories ({', '.join(allowed)}); "
                "use one of these or set SANDPOINT_ALLOWED_DIRS"
            )
    elif is_system(path):
        raise InvalidBackupConfigError(
            f"dir: {path} is a directory of the system; name one of your own below it, or allow it with "
            f"SANDPOINT_ALLOWED_DIRS={path}"
        )


def is_system(path: str) -> bool:
    """Whether a parsed path is a directory of the system, which nobody means who does not name it."""
    if path in {"/", *SYSTEM_DIRECTORIES, *USER_TREES}:
        return True
    return is_within_any(path, (*SYSTEM_TREES, *KERNEL_DIRECTORIES)) and not is_within_any(path, USER_TREES)


def is_within_any(path: str, directories: Sequence[str]) -> bool:
    """Whether a path is one of some directories or below one."""
    return any(is_within(path, directory) for directory in directories)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is a directory or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def open_directory(path: str, root: Root = HOST) -> int:
    """Open a directory; all else is relative to this descriptor.

    Raises:
        InvalidBackupConfigError: It is missing, no directory, reached through a symlink, or may not be read.
    """
    try:
        return root.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidBackupConfigError(f"dir: {_why_not(path, error, root)}") from None


def _why_not(path: str, error: OSError, root: Root) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"{path} does not exist; create it or name another"
        case errno.ENOTDIR:
            return f"{path} is not a directory; name the directory that holds it"
        case errno.ELOOP:
            return f"there is a symlink in {path}; use {root.real_path(path) or 'the path that it leads to'}"
        case errno.EACCES | errno.EPERM:
            return f"{path} may not be read by this user; change its mode or run as its owner"
        case errno.ENAMETOOLONG:
            return f"the path is longer than the system allows ({len(path)} characters)"
        case errno.ENOSYS:
            return f"{path} cannot be opened safely: openat2 is missing; Linux 5.6 or later is needed"
    return f"{path} cannot be opened: {error.strerror}"


def create_directory(path: str, root: Root = HOST) -> list[str]:
    """Create a missing directory with its parents, and return those that were made, outermost first.

    Raises:
        InvalidBackupConfigError: A parent is a file or a symlink, or may not be written.
    """
    parent_path, _, name = path.rpartition("/")
    made: list[str] = []
    try:
        parent = root.open(parent_path or "/", os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        made = create_directory(parent_path, root)
        parent = root.open(parent_path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidBackupConfigError(f"dir: {_why_not(parent_path, error, root)}") from None
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return made
    except OSError as error:
        remove_directories(made, root)
        raise InvalidBackupConfigError(f"dir: {path} cannot be created: {error.strerror}") from None
    finally:
        os.close(parent)
    return [*made, path]


def remove_directories(made: Sequence[str], root: Root = HOST) -> None:
    """Take back what `create_directory` made, where it is still empty."""
    for path in reversed(made):
        parent, _, name = path.rpartition("/")
        with suppress(OSError):
            holder = root.open(parent or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                os.rmdir(name, dir_fd=holder)
            finally:
                os.close(holder)
