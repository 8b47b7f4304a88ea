from collections.abc import Callable

import pytest

from helpers.cli import ID, UNDO_ID, FakeService
from sandpoint.cli import main
from sandpoint.models import UnmountResult

Answer = Callable[..., FakeService]


def test_what_was_written_has_a_way_back(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(unmount=UnmountResult(dir="/work", backup_id=ID, undo_id=UNDO_ID))
    assert main(["unmount", "/work"]) == 0
    assert service.calls == [("unmount", {"dir": "/work", "undo": True})]
    assert capsys.readouterr().out.splitlines() == [
        f"Took the overlay of backup {ID} down from /work.",
        f"The state before is backup {UNDO_ID}.",
        f"Go back to it with: sandpoint restore {UNDO_ID}",
    ]


def test_without_undo(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(unmount=UnmountResult(dir="/work", backup_id=ID, undo_id=None))
    assert main(["unmount", "/work", "--no-undo"]) == 0
    assert service.calls[0][1]["undo"] is False
    assert capsys.readouterr().out == f"Took the overlay of backup {ID} down from /work.\n"
