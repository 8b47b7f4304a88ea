"""Metadata that were read before: never older than their file, and not too many."""

import os
import time
from pathlib import Path
from unittest.mock import sentinel

import pytest

from sandpoint.stores import remembered
from sandpoint.stores.remembered import Remembered


def settled(path: Path, content: str) -> str:
    """Write a file, and wait until its times are old enough to be believed."""
    path.write_text(content)
    while time.time_ns() - os.stat(path).st_ctime_ns <= 2 * remembered._SETTLED_NS:
        time.sleep(0.02)
    return str(path)


def test_a_file_is_read_again_only_if_it_is_another(tmp_path: Path) -> None:
    known = Remembered()
    path = settled(tmp_path / "file", "a")
    assert known.read(path, lambda: sentinel.first) is sentinel.first
    assert known.read(path, lambda: sentinel.never) is sentinel.first
    (tmp_path / "file").write_text("b")
    assert known.read(path, lambda: sentinel.second) is sentinel.second
    os.unlink(path)
    assert known.read(path, lambda: sentinel.third) is sentinel.third


def test_a_file_that_was_just_written_is_not_believed(tmp_path: Path) -> None:
    known = Remembered()
    (tmp_path / "file").write_text("a")
    assert known.read(str(tmp_path / "file"), lambda: sentinel.first) is sentinel.first
    assert known.read(str(tmp_path / "file"), lambda: sentinel.second) is sentinel.second


def test_only_the_last_used_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 2)
    known = Remembered()
    paths = [settled(tmp_path / name, name) for name in "abc"]
    for path in (*paths[:2], paths[0], paths[2]):
        known.read(path, lambda: sentinel.first)
    found = [known.read(path, lambda: sentinel.second) for path in (paths[0], paths[2], paths[1])]
    assert found == [sentinel.first, sentinel.first, sentinel.second]
