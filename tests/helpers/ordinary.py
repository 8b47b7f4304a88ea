"""Runs programs as an ordinary user, for tests that run as root.

The user has no capabilities, no further groups, and a home of its own. The interpreter and the project are within
the user's reach wherever they lie: in a mount namespace of the program's own, each folder on the way that is closed
to the user is covered by an empty one, in which only what is needed appears again. The machine is not changed.

`python tests/helpers/ordinary.py --home DIR [--cwd DIR] [--reach DIR]... [--env NAME=VALUE]... -- ARGV...`
"""

import argparse
import ctypes
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from sandpoint.engine import linux

UID = 61234
GID = 61234
FAILED = 125

_REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_LEFT_OUT = ("PYTEST_", "SANDPOINT_", "XDG_", "SUDO_", "OLDPWD")
_MOST_LINKS = 40
_CLOSED_DEEPER = "what is closed further below is not opened: make the clone and the venv with umask 022"

_CLONE_NEWNS = 0x20000
_MS_REC = 0x4000
_MS_SLAVE = 1 << 19
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | str,
    home: Path | str,
    reach: Iterable[Path | str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program as the user, with `env` added to the environment; all of its group is killed after `timeout`.

    `home` is made, or given to the user if it is empty. `cwd`, `home` and `reach` are within the user's reach, but
    become mounts where a folder above is closed: best keep all that a test works on in one folder of the user's.

    Raises:
        RuntimeError: The program could not be started in this way.
        subprocess.TimeoutExpired: It took too long.
    """
    command = [sys.executable, "-P", __file__, f"--home={home}", f"--cwd={cwd}"]
    command += [f"--reach={path}" for path in reach]
    command += [f"--env={name}={value}" for name, value in (env or {}).items()]
    command += ["--", *(os.fspath(each) for each in argv)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode == FAILED:
        raise RuntimeError(err.strip())
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the user and the program; exit with FAILED and a line on stderr where that is impossible."""
    options = _parse(arguments)
    try:
        _become(options)
    except (OSError, ValueError) as error:
        print(f"ordinary: {error}", file=sys.stderr)
    sys.exit(FAILED)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ordinary", usage="%(prog)s [options] -- ARGV...")
    parser.add_argument("--home", required=True, help="the user's home, made if missing, given away if empty")
    parser.add_argument("--cwd", default=".", help="where the program starts")
    parser.add_argument("--reach", action="append", default=[], help="a further path the user is to reach")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    options.argv = arguments[split + 1 :]
    if not options.argv:
        parser.error("no program given after --")
    return options


def _become(options: argparse.Namespace) -> NoReturn:
    if os.geteuid() != 0:
        raise PermissionError("only root can become an ordinary user: run this as root")
    os.umask(0o022)
    home, cwd = os.path.abspath(options.home), os.path.abspath(options.cwd)
    _give_home(home)
    needed = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.executable, _REPOSITORY, *sys.path]
    _enter_namespace()
    _Reach([*filter(os.path.exists, needed), home, cwd, *map(os.path.abspath, options.reach)]).open_up()
    _drop()
    os.chdir(cwd)
    environment = _environment(home, cwd) | dict(each.split("=", 1) for each in options.env)
    for path in (os.__file__, linux.__file__, __file__):
        if not os.access(path, os.R_OK):
            raise PermissionError(f"the user cannot read {path}: {_CLOSED_DEEPER}")
    program = shutil.which(options.argv[0], path=environment["PATH"])
    if program is None:
        raise FileNotFoundError(f"the user has no program {options.argv[0]}: pass --reach for its folder")
    os.execve(program, options.argv, environment)


def _give_home(home: str) -> None:
    """Make the home, or give it to the user, but never a folder with something in it."""
    with suppress(FileExistsError):
        os.mkdir(home, 0o700)
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_uid != UID:
            if os.listdir(fd):
                raise PermissionError(f"{home} is not empty and not the user's: name a new folder, or chown it before")
            os.fchown(fd, UID, GID)
    finally:
        os.close(fd)


def _enter_namespace() -> None:
    _check(_libc.unshare(_CLONE_NEWNS), "a mount namespace of its own")
    linux.mount("none", b"/", "none", _MS_REC | _MS_SLAVE)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


class _Reach:
    """Paths that the user is to reach, each with a descriptor from before anything was covered."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.needed: dict[str, int] = {}
        self.closed: set[str] = set()  # needed, but to be replaced by a folder that shows the same children
        self.ours: set[str] = set()  # folders that cover, and those made in them
        for path in paths:
            for place in _trail(path):
                self._add(place)

    def _add(self, path: str) -> None:
        fd = self.needed[path] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode) and not _allowed(info, os.R_OK | os.X_OK):
            self.closed.add(path)
            for name in os.listdir(path):
                child = os.path.join(path, name)
                if child not in self.needed:
                    self.needed[child] = os.open(child, os.O_PATH | os.O_NOFOLLOW)

    def open_up(self) -> None:
        """Cover what is closed, from the top down, and let the needed paths appear again."""
        for path in sorted(self.needed, key=lambda path: path.split("/")):
            if path in self.closed:
                self._make_enterable(path)
            else:
                self._make_enterable(os.path.dirname(path))
                if os.path.dirname(path) in self.ours and not os.path.lexists(path):
                    _show(self.needed[path], path)

    def _make_enterable(self, folder: str) -> None:
        if folder == "/":
            return
        parent = os.path.dirname(folder)
        self._make_enterable(parent)
        if parent in self.ours and not os.path.lexists(folder):
            os.mkdir(folder, 0o755)
            self.ours.add(folder)
        elif folder not in self.ours and not self._is_open(folder):
            flags = linux.MS_NOSUID | linux.MS_NODEV
            linux.mount("ordinary", os.fsencode(folder), "tmpfs", flags, b"mode=755,size=1m")
            self.ours.add(folder)

    def _is_open(self, folder: str) -> bool:
        return folder not in self.closed and _allowed(os.stat(folder), os.X_OK)


def _trail(path: str) -> Iterator[str]:
    """Yield the symlinks on the way to a path, and what it leads to: all of them where they really lie."""
    done, ahead, links = "/", path.split("/"), 0
    while ahead:
        name = ahead.pop(0)
        if name == "..":
            done = os.path.dirname(done)
        elif name not in {"", "."}:
            step = os.path.join(done, name)
            if not os.path.islink(step):
                done = step
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(f"too many symlinks on the way to {path}")
            yield step
            target = os.readlink(step)
            done = "/" if target.startswith("/") else done
            ahead[:0] = target.split("/")
    yield done


def _allowed(info: os.stat_result, wanted: int) -> bool:
    shift = 6 if info.st_uid == UID else 3 if info.st_gid == GID else 0
    return info.st_mode >> shift & wanted == wanted


def _show(fd: int, path: str) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink("", dir_fd=fd), path)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    linux.mount(f"/proc/self/fd/{fd}", os.fsencode(path), "none", linux.MS_BIND | _MS_REC)


def _drop() -> None:
    """Become the user, for good, with nothing of root's power left."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
    os.setgroups([])
    os.setresgid(GID, GID, GID)
    os.setresuid(UID, UID, UID)
    _check(_libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)), "capabilities")


def _environment(home: str, cwd: str) -> dict[str, str]:
    """Return the environment of the user's programs, and make the folders it names."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
    folders = {"TMPDIR": f"{home}/tmp", "XDG_RUNTIME_DIR": f"{home}/run"}
    for folder in folders.values():
        os.makedirs(folder, 0o700, exist_ok=True)
    # A folder that cannot be entered turns "no such program" into "permission denied".
    path = [each for each in os.environ.get("PATH", os.defpath).split(":") if os.access(each, os.X_OK)]
    return environment | {
        **folders,
        "HOME": home,
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "XDG_STATE_HOME": f"{home}/.local/state",
        "USER": "nobody",
        "LOGNAME": "nobody",
        "PWD": cwd,
        "PATH": ":".join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


if __name__ == "__main__":
    main(sys.argv[1:])
