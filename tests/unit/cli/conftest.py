"""A service that answers as told, in place of the real one, and settings that no environment changes."""

from collections.abc import Callable
from typing import Any

import pytest

from helpers.cli import FakeService


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SANDPOINT_STORE", "SANDPOINT_SANDBOX", "SANDPOINT_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeService]:
    """Give `open_service` a service with these answers."""

    def replace(**answers: Any) -> FakeService:
        service = FakeService(**answers)
        monkeypatch.setattr("sandpoint.service.open_service", lambda settings: service)
        return service

    return replace
