"""A data directory: every test may write to it, and finds it as it is in the repository."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"

pytestmark = pytest.mark.sandbox_checkpoint(DATA)


def test_the_theme_is_saved() -> None:
    settings = json.loads((DATA / "settings.json").read_text())
    settings["theme"] = "dark"
    (DATA / "settings.json").write_text(json.dumps(settings))
    assert "dark" in (DATA / "settings.json").read_text()


def test_it_is_light_again() -> None:
    assert json.loads((DATA / "settings.json").read_text())["theme"] == "light"
