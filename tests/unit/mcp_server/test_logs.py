"""Lines of the log: one object each, whatever is in them."""

import json
import logging
import sys

import pytest

from sandpoint.mcp_server.logs import Call, JsonFormatter, PlainFormatter, current_call, set_up_logging
from sandpoint.settings import Settings


def record(message: str, level: int = logging.INFO, **details: object) -> logging.LogRecord:
    made = logging.LogRecord("sandpoint.x", level, "", 0, message, None, None)
    made.details = details
    return made


def test_a_line_is_one_object_whatever_a_name_holds() -> None:
    token = current_call.set(Call(request_id="r1", tool='x"\n{"level": "error"}\x1b[31m'))
    try:
        line = JsonFormatter().format(record("a\nb", duration_ms=1.5))
    finally:
        current_call.reset(token)
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    assert (told["message"], told["level"], told["request_id"], told["duration_ms"]) == ("a\nb", "info", "r1", 1.5)
    assert "client" not in told


def test_an_exception_is_in_its_line() -> None:
    made = record("failed", logging.ERROR)
    try:
        int("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("'why'")


def test_a_plain_line_is_for_a_person() -> None:
    assert PlainFormatter().format(record("call", code="OK")) == "INFO sandpoint.x: call code=OK"
    assert PlainFormatter().format(record("oh", logging.WARNING)) == "WARNING sandpoint.x: oh"


@pytest.mark.parametrize(
    ("settings", "formatter", "level"),
    [
        (Settings(), PlainFormatter, logging.WARNING),
        (Settings(log_format="json", log_level="debug"), JsonFormatter, logging.DEBUG),
        (ValueError(), PlainFormatter, logging.WARNING),
    ],
)
def test_the_settings_win(settings: object, formatter: type, level: int) -> None:
    root, ours = logging.getLogger(), logging.getLogger("sandpoint")
    before = [*root.handlers], root.level, ours.level
    try:
        set_up_logging(settings, style="plain", level="warning")
        [handler] = root.handlers
        assert type(handler.formatter) is formatter
        assert ours.level == level
        assert root.level == logging.WARNING, "what libraries say in detail may hold tokens"
    finally:
        root.handlers[:], root.level = before[0], before[1]
        ours.setLevel(before[2])
