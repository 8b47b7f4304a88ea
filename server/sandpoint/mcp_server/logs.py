"""What a server writes to stderr: which call of which client took how long, and how it ended. Never an argument."""

import json
import logging
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp_types import CallToolResult
from opentelemetry.trace import format_trace_id, get_current_span

from sandpoint.mcp_server.failures import CODE_META
from sandpoint.settings import Settings

logger = logging.getLogger(__name__)

Format = Literal["plain", "json"]

MAX_NAME = 64
"""Characters of a name that a client chose."""


@dataclass(frozen=True)
class Call:
    """What is being answered, as the log calls it."""

    request_id: str | None = None
    """Of the HTTP request, or of the message on stdio."""
    client: str | None = None
    session: str | None = None
    """The first characters of its id: enough to tell it apart, too few to use it."""
    method: str | None = None
    tool: str | None = None

    def fields(self) -> dict[str, str]:
        """Return what is known."""
        return {name: value for name, value in vars(self).items() if value is not None}


NOTHING = Call()
"""What is logged where no call is answered."""

current_call: ContextVar[Call] = ContextVar("current_call", default=NOTHING)
"""The call that this task works on."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: whatever a name holds, it ends no line and colours no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        entry |= current_call.get().fields()
        entry |= _details(record)
        trace = get_current_span().get_span_context()
        if trace.is_valid:
            entry["trace_id"] = format_trace_id(trace.trace_id)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class PlainFormatter(logging.Formatter):
    """A line for a person."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the message and what is known besides."""
        known = current_call.get().fields() | _details(record) if record.levelno <= logging.INFO else {}
        return super().formatMessage(record) + "".join(f" {name}={value}" for name, value in known.items())


def _details(record: logging.LogRecord) -> dict[str, Any]:
    details: object = getattr(record, "details", None)
    return details if isinstance(details, dict) else {}


def set_up_logging(settings: object, *, style: Format, level: str) -> None:
    """Log to stderr, in the style and from the level on that are given, unless the settings say otherwise."""
    if isinstance(settings, Settings):
        style, level = settings.log_format or style, settings.log_level or level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if level != "error" else logging.ERROR)
    logging.getLogger("sandpoint").setLevel(level.upper())


async def log_calls(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Note which call this is, for all that is logged meanwhile, and log how it ended. A middleware of the server."""
    if ctx.request_id is None:
        return await call_next(ctx)
    name = (ctx.params or {}).get("name") if ctx.method in {"tools/call", "prompts/get"} else None
    outer = current_call.get()
    call = replace(
        outer,
        request_id=outer.request_id or str(ctx.request_id)[:MAX_NAME],
        method=ctx.method[:MAX_NAME],
        tool=name[:MAX_NAME] if isinstance(name, str) else None,
    )
    token = current_call.set(call)
    began = time.monotonic()
    code = "CANCELLED"
    try:
        result = await call_next(ctx)
        code = _code(result)
    except Exception as error:
        code = type(error).__name__
        raise
    finally:
        details = {"duration_ms": round((time.monotonic() - began) * 1000, 1), "code": code}
        get_current_span().set_attributes({"sandpoint.request_id": call.request_id or "", "sandpoint.code": code})
        logger.info("call", extra={"details": details})
        current_call.reset(token)
    return result


def _code(result: HandlerResult) -> str:
    if isinstance(result, CallToolResult) and result.is_error:
        return str((result.meta or {}).get(CODE_META, "ERROR"))
    if isinstance(result, dict) and result.get("isError") is True:
        return str((result.get("_meta") or {}).get(CODE_META, "ERROR"))
    return "OK"
