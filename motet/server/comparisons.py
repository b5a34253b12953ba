"""Replies to comparisons: one prompt under several candidates, each with choices of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.server.forms import usage
from motet.server.prepare import Job
from motet.server.query import Query
from motet.server.replies import Reply, thought_tokens
from motet.server.service import Service


class ComparisonReply(Reply):
    """A reply whose choices belong to candidates: candidate i has the choices of job i."""

    def __init__(self, service: Service, query: Query, jobs: Sequence[Job]) -> None:
        super().__init__(service, query, jobs)
        self.names = [target.model or job.base for target, job in zip(query.targets, jobs, strict=True)]
        self.labels = [label or name for label, name in zip(query.labels or (), self.names, strict=True)]

    def _candidate_of(self, number: int) -> int:
        return number // self.jobs[0].request.n

    def index(self, number: int) -> int:
        return number % self.jobs[0].request.n

    def chunk_head(self, number: int) -> dict[str, Any]:
        candidate = self._candidate_of(number)
        own = {"candidate": candidate, "label": self.labels[candidate], "model": self.names[candidate]}
        return {"id": self.id, "object": "comparison.chunk", "created": self.created} | own

    def last_chunk(self) -> dict[str, Any]:
        return self.chunk_head(0) | {"candidate": None, "label": None, "choices": [], "usage": self.usage()}

    async def whole(self) -> dict[str, Any]:
        choices = await self.collect()
        n = self.jobs[0].request.n
        grouped = [choices[i * n : (i + 1) * n] for i in range(len(self.jobs))]
        candidates = [self._entry(i, own) for i, own in enumerate(grouped)]
        return {"id": self.id, "object": "comparison", "created": self.created, "candidates": candidates}

    def _entry(self, index: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
        job = self.jobs[index]
        own = self.choices[index * job.request.n : (index + 1) * job.request.n]
        said, thought = sum(choice.num_tokens for choice in own), thought_tokens([job], own)
        used = usage(job.num_prompt_tokens, said, self.generations.cached_of(index), thought)
        head = {"label": self.labels[index], "model": self.names[index], "choices": choices, "usage": used}
        return head | {"motet": self._extension([job])}
