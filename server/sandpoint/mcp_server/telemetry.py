"""Spans of the service's operations and their phases, and their way to a collector where one is asked for.

The SDK makes a span of each message; those here lie within it. Without an OpenTelemetry SDK they cost next to nothing.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

from opentelemetry.trace import Span, StatusCode, get_tracer

from sandpoint.errors import SandpointError
from sandpoint.models import Progress, Report
from sandpoint.service import BackupService

logger = logging.getLogger(__name__)

FLUSH_MS = 3000
"""How long the end of a server waits for a collector."""

_ASKING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer = get_tracer("sandpoint")

P = ParamSpec("P")
T = TypeVar("T")


def traced(
    method: Callable[P, Coroutine[Any, Any, T]], *, has_phases: bool = True
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a span of each call of an operation, and of the phases that it reports, where it reports any."""
    name = getattr(method, "__name__", "operation")

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            if not span.is_recording():
                return await method(*args, **kwargs)
            with _coded(span):
                if not has_phases:
                    return await method(*args, **kwargs)
                given: object = kwargs.get("report")
                phases = _Phases(given if callable(given) else None)
                kwargs["report"] = phases
                try:
                    return await method(*args, **kwargs)
                finally:
                    phases.end()

    return call


@contextmanager
def _coded(span: Span) -> Iterator[None]:
    try:
        yield
    except SandpointError as error:
        # Its code alone: a message may name what shall not leave this machine.
        span.set_attribute("error.type", error.code)
        span.set_status(StatusCode.ERROR, error.code)
        raise
    except BaseException as error:
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(StatusCode.ERROR)
        raise


class _Phases:
    """Makes a span of each phase that is reported, and passes the report on."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._name = ""
        self._span: Span | None = None

    async def __call__(self, progress: Progress) -> None:
        if progress.phase != self._name:
            self.end()
            self._name = progress.phase
            self._span = _tracer.start_span(progress.phase)
        if self._report is not None:
            await self._report(progress)

    def end(self) -> None:
        if self._span is not None:
            self._span.end()
            self._span = None


class TracedService(BackupService):
    """A service whose operations are spans."""

    create = traced(BackupService.create)
    restore = traced(BackupService.restore)
    fork = traced(BackupService.fork)
    diff = traced(BackupService.diff)
    diff_contents = traced(BackupService.diff_contents)
    verify = traced(BackupService.verify)
    list = traced(BackupService.list, has_phases=False)
    delete = traced(BackupService.delete, has_phases=False)
    prune = traced(BackupService.prune, has_phases=False)


def is_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector, by the variables that OpenTelemetry gives them."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    wanted = environment.get("OTEL_TRACES_EXPORTER", "").lower()
    return wanted == "otlp" or (wanted == "" and any(environment.get(name) for name in _ASKING))


@asynccontextmanager
async def exporting(environment: Mapping[str, str] = os.environ) -> AsyncIterator[None]:
    """Send spans to the collector that the environment names, for a block; the rest of them at its end."""
    if not is_asked_for(environment):
        yield
        return
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter") is None:
        logger.warning(
            "OTEL_... variables ask for spans, but the OpenTelemetry SDK is not installed; "
            "install it with: pip install 'sandpoint[otel]'"
        )
        yield
        return
    from sandpoint.mcp_server.exporter import open_provider

    async with open_provider(flush_ms=FLUSH_MS):
        yield
