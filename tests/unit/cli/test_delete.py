from collections.abc import Callable

import pytest

from helpers.cli import ID, FakeService
from sandpoint.cli import main
from sandpoint.models import DeleteResult

Answer = Callable[..., FakeService]


def test_delete_says_what_it_freed(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(delete=DeleteResult(id=ID, freed_bytes=1500))
    assert main(["delete", ID]) == 0
    assert service.calls == [("delete", {"backup_id": ID})]
    assert capsys.readouterr().out == f"Deleted {ID}, 1.5 kB freed.\n"


def test_delete_says_why_it_freed_nothing(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(delete=DeleteResult(id=ID, freed_bytes=0))
    assert main(["delete", ID]) == 0
    assert capsys.readouterr().out == f"Deleted {ID}. No space was freed: other backups need what it stored.\n"
