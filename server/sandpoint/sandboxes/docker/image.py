"""The helper's image: built on the Docker engine from this installation, where it is missing.

`python -m sandpoint.sandboxes.docker.image` writes what it is built from to its output, for `docker build -t NAME -`.
The image has the engine's own code and the packages that this needs. These are copied from this installation, which
serves where the image's Python and machine are of the same kind; else the build takes them from PyPI.
"""

import functools
import hashlib
import importlib.metadata
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandpoint.engine.process import BUILD_FILE
from sandpoint.sandboxes.docker.host import ROLE_LABEL, DockerHost, explained
from sandpoint.sandboxes.docker.ways import WayClosedError

if TYPE_CHECKING:
    import docker

PACKAGES = (
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-extensions",
    "typing-inspection",
    "msgspec",
    "zstandard",
    "urllib3",
    "tenacity",
)
"""All that the engine imports."""

_OWN = ("__init__.py", "errors.py", "models.py", "py.typed", "engine")
_SITE = "site"
_SAID = 2000


def default_base() -> str:
    """Return the image that the helper's is built upon where none was chosen: with this Python."""
    return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm"


@functools.cache
def build_name() -> str:
    """Return the name of the engine's code and of all that its image is made of, the same for the same."""
    total = hashlib.sha256()
    for name, content in _files():
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


class HelperImage:
    """The image, by the settings."""

    def __init__(self, host: DockerHost, name: str, base: str) -> None:
        """Take its name and the image to build it upon.

        Args:
            host: The engine.
            name: With a tag, just that image, which is never built; without, one that is tagged with its contents.
            base: Empty for `default_base`.
        """
        self._host = host
        self._is_given = ":" in name.rpartition("/")[2] or "@" in name
        self.name = name if self._is_given else f"{name}:{build_name()}"
        self._base = base or default_base()

    def is_there(self) -> bool:
        """Whether the engine has it."""
        from docker.errors import ImageNotFound

        with explained(f"image {self.name}"):
            try:
                self._host.client.images.get(self.name)
            except ImageNotFound:
                return False
        return True

    def how(self) -> str:
        """Return in a few words where it comes from.

        Raises:
            WayClosedError: It is missing, and is not to be built.
        """
        if self.is_there():
            return f"image {self.name}"
        if self._is_given:
            raise WayClosedError(f"the engine has no image {self.name}; build it with: {self.command}")
        return f"image {self.name}, to be built upon {self._base} at first use"

    def ensure(self) -> None:
        """Build it if it is missing.

        Raises:
            WayClosedError: It cannot be built.
        """
        self.how()
        if not self.is_there():
            self._build(self._host.client)

    @property
    def command(self) -> str:
        """The command that builds it."""
        return (
            f"{sys.executable} -m sandpoint.sandboxes.docker.image | docker build --build-arg BASE={self._base} "
            f"-t {self.name} -"
        )

    def _build(self, client: "docker.DockerClient") -> None:
        from docker.errors import DockerException

        said = []
        has_failed = False
        try:
            lines: Iterator[dict[str, Any]] = client.api.build(
                fileobj=io.BytesIO(context()),
                custom_context=True,
                tag=self.name,
                buildargs={"BASE": self._base},
                labels={ROLE_LABEL: "helper"},
                rm=True,
                forcerm=True,
                decode=True,
            )
            for line in lines:  # to the end: what is left unread keeps its connection open
                said.append(str(line.get("stream") or line.get("error") or ""))
                has_failed = has_failed or "error" in line
        except DockerException as error:
            raise WayClosedError(self._failed(str(error))) from error
        if has_failed:
            raise WayClosedError(self._failed("".join(said)))

    def _failed(self, why: str) -> str:
        return (
            f"its image cannot be built: {why.strip()[-_SAID:]}; build it where that can be done, with: {self.command}"
        )


def context() -> bytes:
    """Return what the image is built from: an archive with its Dockerfile."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in (*_files(), (f"{_SITE}/{BUILD_FILE}", build_name().encode())):
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))
        return file.getvalue()


def _files() -> Iterator[tuple[str, bytes]]:
    yield "Dockerfile", _dockerfile().read_bytes()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    yield "requirements.txt", "".join(f"{name}=={version}\n" for name, version in versions.items()).encode()
    package = Path(__file__).parents[2]
    for name in _OWN:
        for path in sorted((package / name).rglob("*")) if (package / name).is_dir() else [package / name]:
            if path.suffix != ".pyc" and path.is_file():
                yield f"{_SITE}/sandpoint/{path.relative_to(package)}", path.read_bytes()
    if sys.platform == "linux":
        for name in PACKAGES:
            yield from _of_package(name)


def _of_package(name: str) -> Iterator[tuple[str, bytes]]:
    distribution = importlib.metadata.distribution(name)
    for entry in sorted(distribution.files or (), key=str):
        path = Path(str(distribution.locate_file(entry)))
        if ".." not in entry.parts and path.suffix not in (".pyc", ".pyi") and path.is_file():
            yield f"{_SITE}/{entry}", path.read_bytes()


def _dockerfile() -> Path:
    package = Path(__file__).parents[2]
    for path in (package / "helper" / "Dockerfile", package.parent / "helper" / "Dockerfile"):
        if path.is_file():
            return path
    raise WayClosedError("this installation has no Dockerfile for the helper's image; install sandpoint again")


if __name__ == "__main__":
    sys.stdout.buffer.write(context())
