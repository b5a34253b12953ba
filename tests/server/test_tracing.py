"""Traces: a span for every request, in the client's own trace, and one for every step; no prompts in them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from motet.engines.base import WatchesSteps
from motet.engines.outputs import StepTimes
from motet.engines.torch import TorchEngine
from motet.operator import settings
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.http.tracing import MAX_NAMED, Traces
from motet.server.service import Service
from tests.server.conftest import make_service

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXT = {"model": "large-proxy", "prompt": "SECRET", "max_tokens": 3, "n": 2}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def client(spans: InMemorySpanExporter) -> AsyncGenerator[httpx.AsyncClient]:
    service = replace(make_service(), traces=Traces(SimpleSpanProcessor(spans)))
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet") as client:
        yield client


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    assert "SECRET" not in span.to_json()
    return span


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_goes_on_with_the_clients_trace(
    client: httpx.AsyncClient, spans: InMemorySpanExporter, stream: bool
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    answer = await client.post("/v1/completions", json={**TEXT, "stream": stream}, headers=headers)
    assert answer.status_code == 200
    span, attributes = only(spans), only(spans).attributes or {}
    assert span.name == "POST /v1/completions"
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert {name: attributes[name] for name in attributes if name.startswith(("motet", "gen_ai"))} == {
        "motet.request_id": "mine",
        "motet.strategy": "proxy_tuning",
        "motet.choices": 2,
        "gen_ai.request.model": "large",
        "gen_ai.usage.input_tokens": 6,
    }
    assert 200 in attributes.values(), "the status"


async def test_scores_and_refusals_have_spans_and_probes_have_none(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    for path in ("/health", "/livez", "/ready", "/metrics"):
        assert (await client.get(path)).status_code == 200
    assert not spans.get_finished_spans()
    await client.post("/v1/score", json={"model": "large", "prompt": "SECRET", "continuations": ["a"]})
    assert (only(spans).attributes or {})["motet.choices"] == 1
    spans.clear()
    await client.post("/v1/completions", json={**TEXT, "top_p": "SECRET"})
    assert 400 in (only(spans).attributes or {}).values()


def test_a_step_names_its_requests(spans: InMemorySpanExporter) -> None:
    names = tuple(f"r{i}" for i in range(100))
    Traces(SimpleSpanProcessor(spans)).step(StepTimes(1_000, 3_000, names, 100, 99, 1))
    span = only(spans)
    assert (span.name, span.start_time, span.end_time, span.parent) == ("step", 1_000, 3_000, None)
    attributes = json.loads(span.to_json())["attributes"]
    assert attributes["motet.requests"] == list(names[:MAX_NAMED])
    assert (attributes["motet.choices"], attributes["motet.tokens"], attributes["motet.failures"]) == (100, 99, 1)


def test_the_embedded_engine_can_be_watched() -> None:
    assert isinstance(TorchEngine({}), WatchesSteps)


def test_a_collector_is_named_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_service().traces is None
    endpoint = "http://127.0.0.1:9/v1/traces"
    service: Service = make_service(otlp_traces_endpoint=endpoint)
    assert service.traces is not None
    service.traces.close()
    with pytest.raises(ValidationError, match=r"otlp_traces_endpoint"):
        ServerConfig(otlp_traces_endpoint="localhost:4318")
    monkeypatch.setattr(settings, "find_spec", lambda name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(ValidationError, match=r"pip install 'motet\[otel\]'"):
        ServerConfig(otlp_traces_endpoint=endpoint)


async def test_what_a_client_wrote_is_cut(client: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
    """Spans wait for their collector by the thousand."""
    await client.get("/" + "x" * 30_000, headers={"user-agent": "y" * 30_000})
    (span,) = spans.get_finished_spans()
    values = (span.attributes or {}).values()
    assert max(len(value) for value in values if isinstance(value, str)) <= 200
