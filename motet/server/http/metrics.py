"""Prometheus metrics under vLLM's names with our prefix; the engine's gauges are read when they are scraped."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from motet.engines.base import Engine
from motet.engines.outputs import TokenOutput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 120, 300)
NATS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20)


class EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._engine.stats()
        used = stats.kv_bytes_used / stats.kv_bytes_budget if stats.kv_bytes_budget else 0.0
        yield GaugeMetricFamily("motet:num_requests_running", "Choices being computed.", stats.running)
        yield GaugeMetricFamily("motet:num_requests_waiting", "Choices that wait for memory.", stats.waiting)
        yield GaugeMetricFamily("motet:kv_cache_usage_perc", "Share of the KV budget in use (1 is all).", used)
        yield CounterMetricFamily("motet:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queries)
        yield CounterMetricFamily("motet:prefix_cache_hits", "Prompt tokens found.", stats.prefix_hits)
        yield CounterMetricFamily("motet:engine_steps", "Steps of the engine.", stats.steps)
        yield CounterMetricFamily(
            "motet:num_preemptions",
            "Choices that gave their memory up to older ones and began anew.",
            stats.preemptions,
        )
        yield CounterMetricFamily("motet:engine_restarts", "Fresh starts of the engine after a defect.", stats.restarts)
        yield CounterMetricFamily("motet:spec_decode_num_drafts", "Blocks of guesses verified.", stats.drafts)
        yield CounterMetricFamily("motet:spec_decode_num_draft_tokens", "Tokens guessed.", stats.draft_tokens)
        yield CounterMetricFamily(
            "motet:spec_decode_num_accepted_tokens", "Guessed tokens that were right.", stats.accepted_tokens
        )
        places = CounterMetricFamily(
            "motet:spec_decode_num_accepted_tokens_per_pos",
            "Guessed tokens that were right, by their place in the block.",
            labels=["position"],
        )
        for place, count in enumerate(stats.accepted_at):
            places.add_metric([str(place)], count)
        yield places
        seconds = CounterMetricFamily("motet:member_forward_seconds", "Time in a model's forward.", labels=["member"])
        for name, value in stats.forward_seconds.items():
            seconds.add_metric([name], value)
        yield seconds


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.prompt_tokens = Counter(
            "motet:prompt_tokens", "Tokens of the prompts that clients sent.", ("strategy",), registry=self.registry
        )
        self.generation_tokens = Counter(
            "motet:generation_tokens", "Tokens generated.", ("strategy",), registry=self.registry
        )
        self.success = Counter(
            "motet:request_success",
            "Choices that ended.",
            labelnames=("strategy", "finished_reason"),
            registry=self.registry,
        )
        self.gate_decisions = Counter(
            "motet:gate_decisions",
            "Prompts that a gate decided about.",
            ("gate", "applied"),
            registry=self.registry,
        )
        self.cascade_answers = Counter(
            "motet:cascade_answers",
            "Answers of cascades per request, by the role of the model that gave them.",
            ("role",),
            registry=self.registry,
        )
        self.routed_tokens = Counter(
            "motet:routed_tokens",
            "Tokens under a gate or a router with a threshold, by the role of the model that wrote them.",
            ("role",),
            registry=self.registry,
        )
        self.first_token = Histogram(
            "motet:time_to_first_token_seconds", "From the request to a choice's first token.", ("strategy",),
            buckets=LATENCIES, registry=self.registry,
        )  # fmt: skip
        self.queue_time = Histogram(
            "motet:request_queue_time_seconds", "From the request to the admission of its first choice.", ("strategy",),
            buckets=LATENCIES, registry=self.registry,
        )  # fmt: skip
        self.inter_token = Histogram(
            "motet:inter_token_latency_seconds", "Between two tokens of a choice.", ("strategy",),
            buckets=LATENCIES, registry=self.registry,
        )  # fmt: skip
        self.latency = Histogram(
            "motet:e2e_request_latency_seconds", "From the request to a choice's end.", ("strategy",),
            buckets=LATENCIES, registry=self.registry,
        )  # fmt: skip
        self.shift = Histogram(
            "motet:shift_kl_nats", "KL of the composed distribution from the base's, traced tokens.", ("strategy",),
            buckets=NATS, registry=self.registry,
        )  # fmt: skip

    def render(self) -> bytes:
        return generate_latest(self.registry)


class Meter:
    """Times one choice."""

    def __init__(self, metrics: Metrics, strategy: str) -> None:
        self._metrics = metrics
        self._strategy = strategy
        self._began = time.perf_counter()
        self._last: float | None = None
        self.is_new = True

    def queued(self, seconds: float) -> None:
        self.is_new = False
        self._metrics.queue_time.labels(self._strategy).observe(seconds)

    def observe(self, output: TokenOutput) -> None:
        """Forced tokens come with the prompt: they count neither as the first token nor between tokens."""
        self.is_new = False
        if output.trace is not None:
            self._metrics.shift.labels(self._strategy).observe(output.trace.kl)
        if output.forced:
            return
        now = time.perf_counter()
        if self._last is None:
            self._metrics.first_token.labels(self._strategy).observe(now - self._began)
        else:
            self._metrics.inter_token.labels(self._strategy).observe(now - self._last)
        self._last = now

    def ended(self, num_tokens: int, reason: str) -> None:
        self._metrics.generation_tokens.labels(self._strategy).inc(num_tokens)
        self._metrics.success.labels(self._strategy, reason).inc()
        self._metrics.latency.labels(self._strategy).observe(time.perf_counter() - self._began)
