"""A service that answers as told, in place of the real one, and settings that no environment changes."""

from collections.abc import Callable
from typing import Any

import pytest

from helpers.cli import FakeService
from sandpoint.settings import R2_VARIABLES

VARIABLES = (
    "SANDPOINT_STORE",
    "SANDPOINT_SANDBOX",
    "SANDPOINT_S3_ENDPOINT_URL",
    "SANDPOINT_DEBUG",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "NO_COLOR",
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, *R2_VARIABLES.values()):
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
