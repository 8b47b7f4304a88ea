import json
from collections.abc import Callable

import pytest

from helpers.cli import ID, OTHER_ID, FakeService
from sandpoint.cli import main
from sandpoint.models import DeleteResult, PruneResult

Answer = Callable[..., FakeService]


def test_delete_says_what_it_freed(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(delete=DeleteResult(id=ID, freed_bytes=1500))
    assert main(["delete", ID]) == 0
    assert service.calls == [("delete", {"backup_id": ID})]
    assert capsys.readouterr().out == f"Deleted {ID}, 1.5 kB freed.\n"


def test_prune_tells_each_and_the_sum(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=PruneResult(removed=(ID,), abandoned=(OTHER_ID, "/w\x1b"), freed_bytes=1500))
    assert main(["prune"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Removed {ID}, expired.",
        f"Removed {OTHER_ID}, never finished.",
        "Removed what an overlay on /w\\x1b left, mounted no more.",
        "2 backups and 1 overlay removed, 1.5 kB freed in the store.",
    ]
    assert main(["prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "removed": [ID],
        "abandoned": [OTHER_ID, "/w\x1b"],
        "freed_bytes": 1500,
    }


def test_nothing_to_prune(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(prune=PruneResult(removed=(), abandoned=(), freed_bytes=0))
    assert main(["prune"]) == 0
    assert capsys.readouterr().out == "Nothing to remove.\n"
