"""What the helper's image is built from."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sandpoint.engine.process import BUILD_FILE
from sandpoint.sandboxes.docker import image
from sandpoint.sandboxes.docker.host import DockerHost


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    with tarfile.open(fileobj=io.BytesIO(image.context())) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_engine_runs_from_what_is_copied_and_from_nothing_else(unpacked: Path) -> None:
    code = "import sys, sandpoint.engine.process as it; import sandpoint.engine.http_upload; print(it._build())"
    argv = [
        sys.executable,
        "-B",
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(unpacked / 'site')!r}); {code}",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, image.build_name(), "")


def test_only_what_the_engine_needs_is_in_it(unpacked: Path) -> None:
    assert (unpacked / "Dockerfile").read_text().startswith("#")
    assert "pydantic==" in (unpacked / "requirements.txt").read_text()
    own = {path.name for path in (unpacked / "site/sandpoint").iterdir()}
    assert own == {"__init__.py", "errors.py", "models.py", "py.typed", "engine"}
    assert not list(unpacked.rglob("*.pyc"))
    assert (unpacked / "site" / BUILD_FILE).read_text() == image.build_name()


def test_an_image_without_a_tag_is_that_of_the_present_engine() -> None:
    host = DockerHost()
    assert image.HelperImage(host, "registry:5000/helper", "").name == f"registry:5000/helper:{image.build_name()}"
    assert image.HelperImage(host, "helper:1", "").name == "helper:1"
    assert image.HelperImage(host, "helper@sha256:0", "").name == "helper@sha256:0"


def test_the_program_writes_the_context() -> None:
    done = subprocess.run([sys.executable, "-m", image.__name__], capture_output=True, check=True)
    assert done.stdout == image.context()
