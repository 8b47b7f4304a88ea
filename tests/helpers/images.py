"""Images without a registry: imported from trees that are made on this machine, and kept in the engine by recipe."""

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import platformdirs
from docker.errors import ImageNotFound

CACHE = Path(platformdirs.user_cache_dir("sandpoint-tests"))
"""What takes long to build, kept for the next run: safe to remove."""

_PREFIX = "sandpoint-test"
_CHANGES = ['CMD ["/bin/sleep", "1000000"]']

_PEOPLE = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/workspace:/bin/sh\n",
    "etc/group": "root:x:0:\nagent:x:1000:\n",
}

_SUITE = "bookworm"
_PACKAGES = ("python3", "python3-pip", "python3-venv", "squashfs-tools", "git", "util-linux", "postgresql-15")
_LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/lib/postgresql/*/lib/bitcode/*",  # PostgreSQL's compiler, half of the image: it does without
    "/usr/lib/postgresql/*/lib/llvmjit*",
    "/usr/lib/*/libLLVM*",
    "/usr/lib/*/libz3*",
)
_HOOKS = (
    'mkdir "$1/workspace"',
    'chroot "$1" useradd --uid 1000 agent',
    'chroot "$1" install -d -o postgres -g postgres /run/postgresql',
)
_RECIPE = (
    *("mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(_PACKAGES)}", "--skip=cleanup/run"),
    *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
    *(f"--customize-hook={hook}" for hook in _HOOKS),
    _SUITE,
)


def busybox_image(client: docker.DockerClient) -> str:
    """Return the name of an image with busybox alone: its commands, an empty `/workspace`, and a user `agent` (1000).

    Its containers sleep until they are removed.
    """
    program = shutil.which("busybox")
    if program is None:
        raise RuntimeError("busybox is missing, which an image for the tests is made of; run: make pytest")
    tree = _busybox_tree(Path(program).read_bytes(), _output("busybox", "--list").split())
    tag = hashlib.sha256(tree + repr(_CHANGES).encode()).hexdigest()[:12]

    def build() -> None:
        client.api.import_image_from_data(tree, repository=f"{_PREFIX}/busybox", tag=tag, changes=_CHANGES)

    return _kept(client, f"{_PREFIX}/busybox:{tag}", build)


def debian_image(client: docker.DockerClient) -> str:
    """Return the name of a Debian image with Python, squashfs-tools, git, util-linux and PostgreSQL, and `/workspace`.

    It is built once on a machine, which takes most of a minute; its tree is kept in `CACHE`. Its containers sleep
    until they are removed. PostgreSQL's programs are in `/usr/lib/postgresql/15/bin`.
    """
    tag = hashlib.sha256(repr((_RECIPE, _CHANGES)).encode()).hexdigest()[:12]

    def build() -> None:
        tree = str(debian_tree())
        client.api.import_image_from_file(tree, repository=f"{_PREFIX}/debian", tag=tag, changes=_CHANGES)

    return _kept(client, f"{_PREFIX}/debian:{tag}", build)


def debian_tree() -> Path:
    """Return the archive of the Debian image's tree, built if `CACHE` does not have it."""
    tree = CACHE / f"debian-{hashlib.sha256(repr(_RECIPE).encode()).hexdigest()[:12]}.tar"
    with _locked("tree"):
        for old in CACHE.glob("debian-*.tar"):
            if old != tree:
                old.unlink()
        if not tree.exists():
            if shutil.which("mmdebstrap") is None:
                raise RuntimeError("mmdebstrap is missing, which builds a Debian image for the tests; run: make pytest")
            partial = tree.with_suffix(".partial.tar")
            _output(*_RECIPE, str(partial))
            os.rename(partial, tree)
    return tree


def _kept(client: docker.DockerClient, name: str, build: Callable[[], object]) -> str:
    """Build an image unless the engine has it; one process at a time."""
    with _locked(name.partition("/")[2].partition(":")[0]):
        try:
            client.images.get(name)
        except ImageNotFound:
            build()
            client.images.get(name)
    return name


@contextmanager
def _locked(name: str) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _output(*argv: str) -> str:
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout


def _busybox_tree(program: bytes, commands: list[str]) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in ("bin", "dev", "etc", "proc", "root", "sys", "var", "workspace"):
                _add(tar, name, kind=tarfile.DIRTYPE, mode=0o755)
            _add(tar, "tmp", kind=tarfile.DIRTYPE, mode=0o1777)
            _add(tar, "bin/busybox", program, mode=0o755)
            for command in commands:
                if command != "busybox":
                    _add(tar, f"bin/{command}", kind=tarfile.SYMTYPE, link="busybox")
            for name, text in _PEOPLE.items():
                _add(tar, name, text.encode())
        return file.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname, member.size = kind, mode, link, len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    debian_tree()
