"""Progress of long operations on stderr: a bar on a terminal, a line a phase elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sandpoint.cli.terminal import printable, say

if TYPE_CHECKING:
    from rich.progress import Progress as Display

    from sandpoint.models import Progress, Report


@contextmanager
def show_progress(*, quiet: bool) -> Iterator["Report"]:
    """Give a report that shows how far the operation is, until the end of the context.

    A terminal on stderr always gets the bar, which leaves no trace; `quiet` spares a file the lines.
    """
    if sys.stderr.isatty():
        bar = Bar()
        try:
            yield bar.report
        finally:
            bar.close()
    elif quiet:
        yield _nothing
    else:
        yield Lines().report


class Bar:
    """A bar for the phase that is under way. Rich is loaded when there is a first thing to show."""

    def __init__(self) -> None:
        self._display: Display | None = None

    async def report(self, progress: "Progress") -> None:
        """Move the bar."""
        if self._display is None:
            self._display = _open_display()
        task = self._display.task_ids[-1] if self._display.task_ids else None
        description = _phase(progress)
        if task is None or self._display.tasks[-1].description != description:
            if task is not None:
                self._display.remove_task(task)
            task = self._display.add_task(description, total=progress.total, amount="")
        # Where nobody knows how much is to come, what is done is said instead of a percentage.
        amount = f"{progress.done:,}" if progress.total is None and progress.done else ""
        self._display.update(task, completed=progress.done, total=progress.total, amount=amount)

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self._display is not None:
            self._display.stop()


class Lines:
    """A line on stderr for each phase that begins."""

    def __init__(self) -> None:
        self._phase = ""

    async def report(self, progress: "Progress") -> None:
        """Print the phase if it is another one."""
        phase = _phase(progress)
        if phase != self._phase:
            self._phase = phase
            say(f"{phase} ...", error=True)


async def _nothing(_: "Progress") -> None:
    pass


def _phase(progress: "Progress") -> str:
    phase = printable(progress.phase)
    return phase[:1].upper() + phase[1:]


def _open_display() -> "Display":
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    display = Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    display.start()
    return display
