import pytest

from helpers.mcp import FakeService


@pytest.fixture
def service() -> FakeService:
    return FakeService()
