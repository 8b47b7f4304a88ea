"""Every kind of store, as one fixture: a new kind joins the suite by a line here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sandpoint.stores import Store
from sandpoint.stores.local import LocalStore

OpenStore = Callable[[], Store]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["local"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Open the same store once more, as another process would."""
    stores: dict[str, OpenStore] = {"local": lambda: LocalStore(str(tmp_path / "store"))}
    return stores[request.param]


@pytest.fixture
def store(open_again: OpenStore) -> Store:
    return open_again()
