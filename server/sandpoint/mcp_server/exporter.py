"""Sending spans to a collector by OTLP over HTTP; loaded only where the environment names one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio
from anyio.to_thread import run_sync
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider


@asynccontextmanager
async def open_provider(*, flush_ms: int) -> AsyncIterator[None]:
    """Send spans for a block, as the OTEL_... variables say; at its end what is left, if that takes no longer."""
    resource = Resource.create({SERVICE_NAME: "sandpoint", SERVICE_VERSION: version("sandpoint")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter())
    provider.add_span_processor(processor)
    set_tracer_provider(provider)
    try:
        yield
    finally:
        with anyio.move_on_after(flush_ms / 1000, shield=True):
            await run_sync(provider.shutdown, abandon_on_cancel=True)
