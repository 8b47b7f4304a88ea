"""`sandpoint ui` as a process, and its page in a real Chromium."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from playwright.sync_api import Browser, Page, expect, sync_playwright

from helpers.place import Place
from helpers.site import wait_until

PATIENCE_MS = 60_000
"""How long something may take to be shown on a machine that is busy with other tests."""

LINK = re.compile(r"http://127\.0\.0\.1:(\d+)/#token=\S+")


P = ParamSpec("P")
R = TypeVar("R")


class PlaceBeside(Place):
    """A place whose operations run in another thread: Playwright's event loop is in this one."""

    @staticmethod
    def run(function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an operation to its end."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: Place.run(function, *args, **kwargs)).result()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield Debian's Chromium. Playwright runs an event loop of its own meanwhile: nothing else can in this thread."""
    path = shutil.which("chromium")
    assert path is not None, "no chromium; install it with: apt-get install chromium"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Root, as tests often are, has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Window:
    """`sandpoint ui` of a directory, until the block ends."""

    def __init__(self, dir: Path, *, store: Path, state: Path, browser: Path | None = None) -> None:
        """Set it up.

        Args:
            dir: Whose backups it shows.
            store: Where they are.
            state: Of the engine.
            browser: What is to open the link; None: nothing is.
        """
        self.output = state.parent / "ui.txt"
        self._argv = [sys.executable, "-m", "sandpoint.cli", "ui", str(dir), *(() if browser else ("--no-open",))]
        places = {"SANDPOINT_STORE": store.as_uri(), "SANDPOINT_STATE_DIR": str(state)}
        self._env = {**os.environ, **places, "PYTHONUNBUFFERED": "1", "BROWSER": f"{browser} %s" if browser else ""}

    def __enter__(self) -> Self:
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                self._argv, env=self._env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        wait_until(lambda: "Ctrl-C" in self.text or self.process.poll() is not None, lambda: self.text)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    @property
    def link(self) -> str:
        """The last link, which nobody has used."""
        return [found[0] for found in LINK.finditer(self.text)][-1]

    @property
    def port(self) -> int:
        """Where it listens."""
        found = LINK.search(self.text)
        assert found is not None, self.text
        return int(found[1])

    def interrupt(self) -> int:
        """Send SIGINT; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


def watch(page: Page) -> list[str]:
    """Return a list that grows by each error of a page: an exception, or what its policy refused."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        # A refused request is logged as an error too; what the page makes of it is what tests look at.
        lambda message: (
            errors.append(message.text) if message.type == "error" and "Failed to load" not in message.text else None
        ),
    )
    return errors


def settled(page: Page) -> None:
    """Wait until what is chosen was compared, and every row in sight knows what changed in it."""
    page.wait_for_function(
        """() => document.querySelector("#list[aria-busy=false]") && !document.querySelector("[aria-busy=true]")
            && document.querySelectorAll(".row").length === document.querySelectorAll(".step > *:first-child").length"""
    )


CONTRASTS = """
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const back = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const weak = [];
  for (const node of document.querySelectorAll("body *")) {
    const says = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!says || !node.checkVisibility()) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(back(node))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) weak.push(`${node.tagName}.${node.className} "${node.textContent}" ${contrast.toFixed(2)}`);
  }
  return weak;
}
"""
"""Returns what text is hard to read on what lies behind it (WCAG 2, AA)."""
