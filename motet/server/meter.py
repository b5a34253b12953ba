"""Times one choice for the metrics."""

from __future__ import annotations

import time

from motet.engines.base import TokenOutput
from motet.server.metrics import Metrics


class Meter:
    def __init__(self, metrics: Metrics, strategy: str) -> None:
        self._metrics = metrics
        self._strategy = strategy
        self._began = time.perf_counter()
        self._last: float | None = None
        self.is_new = True

    def queued(self, seconds: float) -> None:
        self._metrics.queue_time.labels(self._strategy).observe(seconds)

    def saw(self, output: TokenOutput) -> None:
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
