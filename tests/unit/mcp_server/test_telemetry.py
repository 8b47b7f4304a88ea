"""Spans of operations and phases, seen by the real SDK."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from helpers.mcp import ID, FakeService
from sandpoint.errors import StoreUnavailableError
from sandpoint.mcp_server import telemetry
from sandpoint.mcp_server.telemetry import exporting, is_asked_for
from sandpoint.models import Progress

pytestmark = pytest.mark.anyio


create = telemetry.traced(FakeService.create)
delete = telemetry.traced(FakeService.delete, has_phases=False)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_an_operation_is_a_span_and_its_phases_lie_in_it(spans: InMemorySpanExporter) -> None:
    told: list[Progress] = []

    async def report(progress: Progress) -> None:
        told.append(progress)

    await create(FakeService(), "/work", report=report)
    phase, operation = spans.get_finished_spans()
    assert (phase.name, operation.name) == ("reading", "create")
    assert phase.parent is not None
    assert operation.context is not None
    assert phase.parent.span_id == operation.context.span_id
    assert [each.phase for each in told] == ["reading"]


async def test_a_failure_is_told_by_its_code_alone(spans: InMemorySpanExporter) -> None:
    with pytest.raises(StoreUnavailableError):
        await delete(FakeService(error=StoreUnavailableError("the store in /secret cannot be used")), ID)
    [span] = spans.get_finished_spans()
    assert dict(span.attributes or {}) == {"error.type": "STORE_UNAVAILABLE"}
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:1"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_spans_are_sent_only_where_the_environment_asks(environment: dict[str, str], asked: bool) -> None:
    assert is_asked_for(environment) is asked


async def test_that_the_extra_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry, "find_spec", lambda _: None)
    async with exporting({"OTEL_TRACES_EXPORTER": "otlp"}):
        pass
    assert "pip install 'sandpoint[otel]'" in caplog.text
