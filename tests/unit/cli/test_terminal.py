import io
import os
import subprocess
import sys

import pytest

from helpers.cli import CREATED
from sandpoint.cli.terminal import (
    count,
    duration,
    has_colour,
    local_time,
    paint,
    printable,
    say_columns,
    shell_word,
    size,
    some,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï 名前 🙂", "plain ünï 名前 🙂"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("gnp\u202etxt", "gnp\\u202etxt"),
        ("line\u2028end", "line\\u2028end"),
        ("bytes\udcff", "bytes\\udcff"),
        ("already \\xff", "already \\xff"),
        ("hard\u00a0space\x00", "hard\u00a0space\\x00"),
    ],
)
def test_nothing_printed_can_move_the_cursor_or_reorder(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["plain", "it's", "a b", "", "\x1b[31m'\\\\'$HOME\n", "ünï 名\x07", os.fsdecode(b"\xff'")]
)
def test_a_shell_reads_its_word_back(text: str) -> None:
    word = shell_word(text)
    assert word.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert read.stdout == os.fsencode(text)


def test_lines_of_a_message_stay_lines() -> None:
    assert printable("first\n\tsecond\x07", lines=True) == "first\n\tsecond\\x07"


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_only_where_it_is_wanted(
    environment: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    assert has_colour(stream) is coloured
    assert paint("x", "red", stream) == ("\x1b[31mx\x1b[0m" if coloured else "x")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0421, "42 ms"), (1.25, "1.2 s"), (59.9, "59.9 s"), (125, "2 min 5 s")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("bytes_", "shown"), [(1, "1 byte"), (999, "999 bytes"), (1_234_567, "1.2 MB")])
def test_sizes_are_in_units_a_person_reads(bytes_: int, shown: str) -> None:
    assert size(bytes_) == shown


def test_counts_and_names_in_a_row() -> None:
    assert count(1, "path") == "1 path"
    assert count(63_864, "file") == "63,864 files"
    assert some(["a", "b\x1b"]) == "a, b\\x1b"
    assert some([str(number) for number in range(1002)], limit=2) == "0, 1 and 1,000 more"


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert local_time(CREATED) == "2026-11-22 02:16:51"
        assert local_time(CREATED, seconds=False) == "2026-11-22 02:16"
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_columns_are_aligned_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    say_columns([("ID", "NAME"), ("1", "x" * 200), ("22", "")])
    assert capsys.readouterr().out == f"ID  NAME\n1   {'x' * 200}\n22\n"
    assert not sys.stdout.isatty()
