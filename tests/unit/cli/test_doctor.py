import json
from collections.abc import Callable

import pytest

from helpers.cli import FakeService
from sandpoint.cli import main
from sandpoint.errors import SandboxUnavailableError, StoreUnavailableError
from sandpoint.models import Capabilities, Capability

Answer = Callable[..., FakeService]


def make_capabilities(*, tools: bool = True) -> Capabilities:
    return Capabilities(
        sandbox="local",
        overlay="kernel",
        items=(
            Capability(
                name="mksquashfs",
                available=tools,
                needed_for="every backup",
                detail="4.5.1" if tools else "",
                remedy="apt-get install squashfs-tools",
            ),
            Capability(
                name="squashfuse_ll",
                available=False,
                needed_for="overlay restores as an ordinary user",
                remedy="apt-get install squashfuse",
            ),
        ),
    )


def test_optional_things_may_be_missing(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capabilities=make_capabilities(), check_store=None)
    assert main(["doctor", "--store", "file:///backups"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Sandbox local",
        "  ok       mksquashfs     for every backup (4.5.1)",
        "  missing  squashfuse_ll  for overlay restores as an ordinary user",
        "                          to have it: apt-get install squashfuse",
        "Store file:///backups",
        "  ok       answers",
        "Ready to make and restore backups.",
    ]


def test_needed_things_may_not(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capabilities=make_capabilities(tools=False), check_store=None)
    assert main(["doctor"]) == SandboxUnavailableError.exit_status
    out = capsys.readouterr().out
    assert "to have it: apt-get install squashfs-tools" in out
    assert out.endswith("Backups cannot be made or restored here yet.\n")


def test_a_store_that_cannot_be_reached_is_reported(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capabilities=make_capabilities(), check_store=StoreUnavailableError("/backups: permission denied"))
    assert main(["doctor"]) == StoreUnavailableError.exit_status
    out, err = capsys.readouterr()
    assert "ok       mksquashfs" in out
    assert "/backups: permission denied [STORE_UNAVAILABLE]" in out
    assert err == ""


def test_a_program_gets_all_of_it(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    capabilities = make_capabilities()
    answer(capabilities=capabilities, check_store=None)
    assert main(["doctor", "--json", "--store", "file:///backups"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("store") == {"url": "file:///backups", "available": True, "error": None}
    assert told == capabilities.model_dump(mode="json")
