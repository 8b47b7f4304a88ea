"""A package tree: break an installed package, at its own path, to see how the code gets on without."""

import subprocess
import sys
from pathlib import Path

import iniconfig
import pytest

from pytest_sandpoint import checkpoint_fixture

PACKAGE = Path(iniconfig.__file__).parent

package = checkpoint_fixture(PACKAGE, name="package")


def can_be_imported() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "import iniconfig"], stderr=subprocess.DEVNULL, check=False).returncode
        == 0
    )


@pytest.mark.usefixtures("package")
def test_without_its_main_module() -> None:
    (PACKAGE / "__init__.py").unlink()
    (PACKAGE / "__init__.py").write_text("raise ImportError('broken by a test')")
    assert not can_be_imported()


def test_it_is_whole_again() -> None:
    assert can_be_imported()
