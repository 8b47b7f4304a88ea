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
    assert told.pop("store") == {"url": "file:///backups", "endpoint": None, "available": True, "error": None}
    assert told == capabilities.model_dump(mode="json")


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, None),
        ({"SANDPOINT_S3_ENDPOINT_URL": "https://minio.test:9000"}, "https://minio.test:9000"),
        ({"AWS_ENDPOINT_URL": "http://all.test", "AWS_ENDPOINT_URL_S3": "http://s3.test"}, "http://s3.test"),
        ({"SANDPOINT_S3_ENDPOINT_URL": "http://[", "AWS_ENDPOINT_URL": "http://all.test"}, None),
        ({"SANDPOINT_S3_ENDPOINT_URL": "https://me:hidden@minio.test/x"}, "https://minio.test"),
        (
            {
                "CLOUDFLARE_ACCOUNT_ID": "0a1b",
                "R2_ACCESS_KEY_ID": "key",
                "R2_SECRET_ACCESS_KEY": "hidden",
            },
            "https://0a1b.r2.cloudflarestorage.com",
        ),
    ],
    ids=["AWS", "another server", "AWS's own setting", "no URL", "with a password", "R2"],
)
def test_a_bucket_is_told_with_its_server_and_no_secret(
    variables: dict[str, str],
    endpoint: str | None,
    answer: Answer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    answer(capabilities=make_capabilities(), check_store=None)
    assert main(["doctor", "--store", "s3://bucket/prefix"]) == 0
    told = capsys.readouterr().out
    assert f"\nStore s3://bucket/prefix{f' at {endpoint}' if endpoint else ''}\n  ok       answers\n" in told
    assert main(["doctor", "--store", "s3://bucket/prefix", "--json"]) == 0
    program = capsys.readouterr().out
    assert json.loads(program)["store"] == {
        "url": "s3://bucket/prefix",
        "endpoint": endpoint,
        "available": True,
        "error": None,
    }
    assert "hidden" not in told + program


def test_a_folder_has_no_server(
    answer: Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDPOINT_S3_ENDPOINT_URL", "https://minio.test:9000")
    answer(capabilities=make_capabilities(), check_store=None)
    assert main(["doctor", "--store", "file:///backups"]) == 0
    assert "minio" not in capsys.readouterr().out


def test_commands_that_help_are_for_the_same_store_and_sandbox(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Capability(
        name="overlay on /w",
        available=False,
        needed_for="what was open",
        remedy="restore it again",
        commands=(("restore", "ID", "--to", "/my dir"),),
    )
    answer(capabilities=Capabilities(sandbox="web", overlay=None, items=(lost,)), check_store=None)
    assert main(["doctor", "--store", "file:///backups", "--sandbox", "docker:web"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "sandpoint restore ID --to '/my dir' --store file:///backups --sandbox docker:web" in lines
