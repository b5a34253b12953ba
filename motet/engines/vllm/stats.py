"""What vLLM reports about its steps → the server's metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from motet.engines.outputs import EngineStats
from motet.engines.vllm.internals import touch


@dataclass
class Tally:
    """The latest numbers of each data-parallel engine, and sums over all steps."""

    running: dict[int, int] = field(default_factory=dict[int, int])
    waiting: dict[int, int] = field(default_factory=dict[int, int])
    usage: dict[int, float] = field(default_factory=dict[int, float])
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0
    preemptions: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, engine: int, stats: Any, iteration: Any) -> None:
        """`stats` and `iteration`: vLLM's SchedulerStats and IterationStats of one step."""
        self.preemptions += 0 if iteration is None else iteration.num_preempted_reqs
        self.running[engine] = stats.num_running_reqs
        self.waiting[engine] = stats.num_waiting_reqs
        self.usage[engine] = stats.kv_cache_usage
        self.prefix_queries += stats.prefix_cache_stats.queries
        self.prefix_hits += stats.prefix_cache_stats.hits
        self.steps += 1
        drafts = stats.spec_decoding_stats
        if drafts is not None:
            self.draft_tokens += drafts.num_draft_tokens
            self.accepted_tokens += drafts.num_accepted_tokens

    def stats(self, kv_bytes: int) -> EngineStats:
        usage = sum(self.usage.values()) / max(1, len(self.usage))
        return EngineStats(
            running=sum(self.running.values()),
            waiting=sum(self.waiting.values()),
            kv_bytes_used=int(kv_bytes * usage),
            kv_bytes_budget=kv_bytes,
            prefix_queries=self.prefix_queries,
            prefix_hits=self.prefix_hits,
            steps=self.steps,
            preemptions=self.preemptions,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
        )

    def logger(self) -> type:
        """A class of vLLM's stat loggers that writes here."""
        tally = self

        class Logger(touch("StatLoggerBase")):
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                self._index = engine_index

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    tally.add(self._index, scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        return Logger
