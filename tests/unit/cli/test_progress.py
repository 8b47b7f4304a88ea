import io
import sys
from collections.abc import Sequence

import anyio
import pytest

from sandpoint.cli.progress import show_progress
from sandpoint.models import Progress

STEPS = (
    Progress(phase="reading", done=1),
    Progress(phase="reading", done=63864),
    Progress(phase="packing\x1b[2J [red]", done=1, total=4),
    Progress(phase="packing\x1b[2J [red]", done=4, total=4),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_steps(steps: Sequence[Progress] = STEPS, *, quiet: bool) -> None:
    async def work() -> None:
        with show_progress(quiet=quiet) as report:
            for step in steps:
                await report(step)

    anyio.run(work)


def test_a_file_gets_a_line_a_phase(capsys: pytest.CaptureFixture[str]) -> None:
    show_steps(quiet=False)
    assert capsys.readouterr() == ("", "Reading ...\nPacking\\x1b[2J [red] ...\n")


def test_a_program_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_steps(quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_gets_a_bar_that_goes_away(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_steps(quiet=quiet)
    shown = terminal.getvalue()
    assert "Packing\\x1b[2J [red]" in shown
    assert "100%" in shown
    assert shown.endswith("\x1b[2K"), "the bar's line is erased"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is back"


def test_a_bar_without_an_end_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_steps(STEPS[:2], quiet=False)
    assert "63,864" in terminal.getvalue()
    assert "%" not in terminal.getvalue()


def test_nothing_to_report_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress(quiet=False):
        pass
    assert terminal.getvalue() == ""
