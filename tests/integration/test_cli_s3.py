"""The program with a bucket of a real S3 server, as two machines that share it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.cli import Program
from helpers.place import unmount_all

if TYPE_CHECKING:
    from helpers.s3 import S3Server

Machine = Callable[[str], Program]


@pytest.fixture
def store(s3_server: "S3Server") -> str:
    return f"s3://{s3_server.make_bucket()}/some/prefix"


@pytest.fixture
def machine(s3_server: "S3Server", store: str, tmp_path: Path) -> Machine:
    """Return what makes a machine of a name, with a state directory of its own, that uses the bucket."""

    def make(name: str) -> Program:
        return Program(
            **s3_server.environment(),
            SANDPOINT_STORE=store,
            SANDPOINT_STATE_DIR=str(tmp_path / f"state of {name}"),
            SANDPOINT_ALLOWED_DIRS="",
        )

    return make


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(os.urandom(100_000))
    return tree


def test_the_doctor_tells_of_the_bucket(machine: Machine, store: str, s3_server: "S3Server") -> None:
    told = machine("one")("doctor")
    assert f"\nStore {store} at {s3_server.http_url}\n  ok       answers\n" in told.out
    broken = machine("one")("doctor", "--json", AWS_SECRET_ACCESS_KEY="another")
    assert broken.json["store"]["available"] is False
    assert "the secret access key is wrong" in broken.json["store"]["error"]["message"]
    for program in (told, broken):
        assert s3_server.secret_key not in program.out + program.err


def test_a_backup_of_one_machine_is_forked_on_another(machine: Machine, tree: Path, tmp_path: Path) -> None:
    one, other = machine("one"), machine("other")
    made = one("create", str(tree), "--json")
    assert made.status == 0, made
    (listed,) = other("list", "--json").json["backups"]
    assert (listed["id"], listed["sandbox_id"]) == (made.json["id"], made.json["sandbox_id"])

    dirs = [tmp_path / "first", tmp_path / "second"]
    try:
        forked = other("restore", listed["id"], "--to", str(dirs[0]), "--to", str(dirs[1]), "--mode", "overlay")
        assert forked.status == 0, forked
        (dirs[0] / "a").write_text("mine\n")
        assert (dirs[1] / "a").read_bytes() == (tree / "a").read_bytes()
    finally:
        unmount_all(tmp_path)

    own = other("create", str(tree), "--json").json
    assert own["kind"] == "full"
    assert own["sandbox_id"] != made.json["sandbox_id"]
    table = one("list").out.splitlines()
    assert table[0].split()[-1] == "SANDBOX"
    assert {line.split()[-1] for line in table[1:]} == {own["sandbox_id"], made.json["sandbox_id"]}
    limited = one("list", "--sandbox-id", own["sandbox_id"], "--json").json["backups"]
    assert [backup["id"] for backup in limited] == [own["id"]]


def test_the_rules_of_the_bucket_are_set_and_shown(machine: Machine, tree: Path, store: str) -> None:
    sandpoint = machine("one")
    assert "has no rules" in sandpoint("lifecycle", "show").out
    assert sandpoint("create", str(tree), "--ttl", str(20 * 86_400)).status == 0
    few = sandpoint("lifecycle", "apply", "--days", "5", "--json")
    assert (few.status, few.json["error"]["code"]) == (3, "INVALID_BACKUP_CONFIG")
    assert "has no rules" in sandpoint("lifecycle", "show").out

    applied = sandpoint("lifecycle", "apply", "--days", "30")
    assert applied.status == 0, applied
    assert "some/prefix/backups/*" in applied.out
    shown = sandpoint("lifecycle", "show", "--json").json
    assert shown["bucket"] == store.split("/")[2]
    days = {rule["expire_days"] for rule in shown["rules"] if rule["prefix"] == "some/prefix/backups/"}
    assert days == {30, None}
    assert all(rule["is_ours"] for rule in shown["rules"])
