import json
import re
from collections.abc import Callable

import pytest

from helpers.cli import ID, OTHER_ID, FakeService, make_backup
from sandpoint.cli import main
from sandpoint.cli.create import parse_metadata
from sandpoint.cli.terminal import local_time
from sandpoint.errors import StoreUnavailableError
from sandpoint.models import DEFAULT_TTL, TrimResult

Answer = Callable[..., FakeService]


def test_every_option_reaches_the_service(answer: Answer) -> None:
    service = answer(create=make_backup())
    arguments = (
        "create /work --name n --description d --ttl 90.5 --use-gitignore --exclude *.log "
        "--exclude !keep.log --metadata k=v --metadata url=a=b --full --freeze --if-changed"
    )
    assert main(arguments.split()) == 0
    assert service.calls == [
        (
            "create",
            {
                "dir": "/work",
                "name": "n",
                "description": "d",
                "use_gitignore": True,
                "excludes": ["*.log", "!keep.log"],
                "metadata": {"k": "v", "url": "a=b"},
                "full": True,
                "freeze": True,
                "if_changed": True,
                "ttl": 90.5,
            },
        )
    ]


def test_the_service_has_the_default_ttl_and_the_help_says_it(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    service = answer(create=make_backup())
    assert main(["create", "/work"]) == 0
    assert "ttl" not in service.calls[0][1]
    capsys.readouterr()
    main(["create", "--help"])
    assert f"default: {DEFAULT_TTL}," in capsys.readouterr().out


@pytest.mark.parametrize("ttl", ["nan", "inf", "-1", "0"])
def test_the_service_judges_the_ttl(ttl: str, answer: Answer) -> None:
    service = answer(create=make_backup())
    assert main(["create", "/work", "--ttl", ttl]) == 0
    assert str(service.calls[0][1]["ttl"]) == str(float(ttl))


def test_a_person_is_told_what_where_how_long_and_the_way_back(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = make_backup(name="before\x1b[31m")
    answer(create=backup)
    assert main(["create", "/work/project", "--store", "file:///my store"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.fullmatch(r"Backed up /work/project in \d+ ms\.", lines[0])
    assert [line.split(maxsplit=1) for line in lines[1:-1]] == [
        ["id", ID],
        ["name", "before\\x1b[31m"],
        ["kind", "full"],
        ["size", "1.2 MB in the store, 5.6 MB in the directory"],
        ["files", "3"],
        ["created", local_time(backup.created_at)],
        ["expires", local_time(backup.expires_at)],
    ]
    assert lines[-1] == f"Bring it back with: sandpoint restore {ID} --store 'file:///my store'"


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (900, f"delta: what changed since backup {OTHER_ID}"),
        (0, f"delta: nothing changed since backup {OTHER_ID}"),
    ],
)
def test_a_delta_says_what_it_is_built_on(
    stored: int, kind: str, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(create=make_backup(kind="delta", parent_id=OTHER_ID, size_bytes=stored))
    assert main(["create", "/work/project"]) == 0
    out = capsys.readouterr().out
    assert f"  kind     {kind}\n  size     {stored} bytes in the store, " in out


def test_what_is_not_whole_is_a_warning(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(create=make_backup(unstable_paths=("log", "db"), skipped_mounts=("data",)))
    assert main(["create", "/work"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: 2 paths changed while being read and may not be whole: log, db",
        "warning: not in the backup is what 1 mount inside the directory holds: data",
    ]


def test_where_nothing_has_changed_it_says_so_and_deletes_nothing(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    service = answer(create=make_backup(unchanged=True))
    assert main(["create", "/work/project", "--if-changed", "--keep", "3", "--name", "n"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Nothing has changed in /work/project since its last backup: no other was made.\n")
    assert f"sandpoint restore {ID}" in out
    assert [operation for operation, _ in service.calls] == ["create"]


def test_the_newest_of_a_name_are_kept(answer: Answer) -> None:
    service = answer(create=make_backup(name="n"), trim=TrimResult(removed=(OTHER_ID,), freed_bytes=1))
    assert main(["create", "/work/project", "--name", "n", "--keep", "3"]) == 0
    assert service.calls[1] == ("trim", {"dir": "/work/project", "name": "n", "keep": 3})


def test_a_backup_that_is_made_is_told_of_although_others_cannot_be_deleted(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(create=make_backup(name="n"), trim=StoreUnavailableError("it is gone"))
    assert main(["create", "/work/project", "--name", "n", "--keep", "3"]) == 10
    out, err = capsys.readouterr()
    assert ID in out
    assert "it is gone [STORE_UNAVAILABLE]" in err
    assert main(["create", "/work/project", "--name", "n", "--keep", "3", "--json"]) == 10
    assert json.loads(capsys.readouterr().out)["id"] == ID


def test_only_backups_of_a_name_are_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "/work/project", "--keep", "3"]) == 2
    assert "--name" in capsys.readouterr().err


def test_metadata_values_may_be_empty_or_hold_equals_signs() -> None:
    assert parse_metadata(["a=", "b=c=d"]) == {"a": "", "b": "c=d"}
