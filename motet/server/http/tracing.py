"""OpenTelemetry: a span for every request, by OpenTelemetry's own FastAPI instrumentation, and one for every step.

The trace that a client names (W3C `traceparent`) is gone on with. A step computes tokens of many requests, so that its
span belongs to none: it has a trace of its own and names them. Prompts and answers are in no span.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import get_current_span

import motet
from motet.composers.errors import MAX_SHOWN
from motet.engines.base import Engine, WatchesSteps
from motet.engines.outputs import StepTimes

log = logging.getLogger(__name__)
EXPORT_SECONDS = 5  # for a batch, so that a collector which is gone does not hold up the end of the process
MAX_NAMED = 64  # requests of a step
NOT_TRACED = r"^https?://[^/]+/(health|livez|ready|metrics)$"


class Traces:
    """One server's spans, in a provider of their own."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "motet", SERVICE_VERSION: motet.__version__}),
            span_limits=SpanLimits(max_span_attribute_length=MAX_SHOWN),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("motet", motet.__version__)

    @classmethod
    def to(cls, endpoint: str) -> Traces:
        """Spans are sent in batches, from a thread, to a collector that understands OTLP over HTTP."""
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)))

    def watch(self, app: FastAPI, engine: Engine) -> None:
        """Before the application answers its first request."""
        FastAPIInstrumentor.instrument_app(
            app, tracer_provider=self._provider, excluded_urls=NOT_TRACED, exclude_spans=["receive", "send"]
        )
        if isinstance(engine, WatchesSteps):
            engine.watch_steps(self.step)
        else:
            log.info("steps of this engine are traced by itself: engine_args.otlp_traces_endpoint")

    def describe(self, attributes: Mapping[str, str | int]) -> None:
        """What the request that is being handled turned out to be."""
        get_current_span().set_attributes(attributes)

    def step(self, times: StepTimes) -> None:
        """Called in the engine's thread: the span is put into a queue there, no more."""
        counts = {"motet.choices": times.choices, "motet.tokens": times.tokens, "motet.failures": times.failures}
        named = {"motet.requests": times.requests[:MAX_NAMED]}
        self._tracer.start_span("step", attributes={**counts, **named}, start_time=times.began).end(times.ended)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()
