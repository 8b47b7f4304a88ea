"""A directory for the runs of pytest to protect."""

from pathlib import Path

import pytest

from helpers.trees import write


@pytest.fixture
def data(pytester: pytest.Pytester) -> Path:
    """Make the directory `data` in the run's root directory: a file, and a folder with another."""
    root = pytester.path / "data"
    write(root / "kept", "kept\n", mtime_ns=1_600_000_000_000_000_001)
    write(root / "sub" / "inner", "inner\n", mtime_ns=1_600_000_000_000_000_002)
    return root
