"""Run a program on a hostile tree where none of this machine's own files can be reached but programs and libraries.

git follows what a repository says: a `.git` file that names a directory elsewhere, configuration that includes other
files. In the jail there is nothing elsewhere: `/tree` is a read-only view of the root that the tree lies in, in which
no symlink leads anywhere, and `/usr` is this machine's, read-only.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from sandpoint.engine import linux, tools
from sandpoint.engine.tools import Check

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandpoint.engine.jail import enter; "
    "enter(int(sys.argv[2]), sys.argv[3], sys.argv[4:])"
)
_TOP = "/tmp"  # noqa: S108 - a directory that is everywhere; what is in it is hidden by a mount of the jail's own
_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "GIT_CEILING_DIRECTORIES": "/tree:/",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def run(argv: Sequence[str], view: int, path: str, *, check: Check, ok: Sequence[int] = (0,)) -> tuple[bytes, bytes]:
    """Run a program in a directory of a view to its end, and return what it wrote to stdout and stderr.

    Args:
        argv: The program by its name, then its arguments.
        view: A mount that appears nowhere, as `linux.clone_for_reading` returns it; it is used up.
        path: The directory, from the view's top.
        check: May raise to stop.
        ok: Exit statuses that are no error.

    Raises:
        tools.ToolMissingError, tools.ToolFailedError: The program, or what makes the jail, is missing or failed.
    """
    tools.require("setpriv")
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    launcher = [sys.executable, "-I", "-S", "-c", _START, home, str(view), path, *argv]
    return tools.Tool(launcher, name=argv[0], ok=ok, pass_fds=(view,)).finish(check)


def enter(view: int, path: str, argv: Sequence[str]) -> None:
    """Make the jail and become the program in it. For a process of its own, of one thread."""
    linux.enter_mount_namespace()
    linux.mount("sandpoint-jail", _TOP.encode(), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, b"mode=755,size=64k")
    os.mkdir(f"{_TOP}/tree")
    os.mkdir(f"{_TOP}/usr")
    linux.move_mount_to(view, f"{_TOP}/tree".encode())
    _bind_for_reading("/usr")
    for name in _PROGRAMS:
        with suppress(FileNotFoundError):
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), f"{_TOP}/{name}")
            elif os.path.isdir(f"/{name}"):
                os.mkdir(f"{_TOP}/{name}")
                _bind_for_reading(f"/{name}")
    os.mkdir(f"{_TOP}/dev")
    os.close(os.open(f"{_TOP}/dev/null", os.O_WRONLY | os.O_CREAT, 0o600))
    linux.bind(b"/dev/null", f"{_TOP}/dev/null".encode())
    os.chroot(_TOP)
    os.chdir(f"/tree{path}")
    environment = _ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("GIT_")}
    guard = ["setpriv", "--bounding-set=-all,+dac_read_search", "--inh-caps=-all", "--no-new-privs", "--"]
    os.execvpe(guard[0], [*guard, *argv], environment)  # noqa: S606 - an argv list


def _bind_for_reading(path: str) -> None:
    target = f"{_TOP}{path}".encode()
    linux.bind(path.encode(), target)
    flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", target, "none", flags)
