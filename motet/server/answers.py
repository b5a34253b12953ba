"""From jobs to the HTTP answer: whole, or as a stream of chunks, in the form of the endpoint."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from motet.engines.base import TokenOutput
from motet.server.choices import Choice, Piece
from motet.server.errors import as_api_error, error_body
from motet.server.forms.form import Form
from motet.server.jobs import Display, Job
from motet.server.meter import Meter
from motet.server.run import Run
from motet.server.schemas import StreamOptions
from motet.server.service import Service
from motet.server.sse import DONE, KEEP_ALIVE, data

log = logging.getLogger(__name__)

Numbered = tuple[int, Piece]  # (choice of the request, piece)


class Answer:
    """A request being answered. Choice i of job j is number j·n + i of the request."""

    def __init__(
        self,
        service: Service,
        form: Form,
        model: str,
        jobs: Sequence[Job],
        show: Display,
    ) -> None:
        self.form = form
        self.model = model
        self.jobs = jobs
        self.show = show
        self.keep_alive = service.config.keep_alive_seconds
        self.id = form.id_prefix + uuid.uuid4().hex
        self.created = int(time.time())
        self.owners = [job for job in jobs for _ in range(job.request.n)]
        self.choices = [Choice(job, show) for job in self.owners]
        self.meters = [Meter(service.metrics, job.plan.strategy) for job in self.owners]
        self.run = Run(service.engine, jobs)
        for job in jobs:
            service.metrics.prompt_tokens.labels(job.plan.strategy).inc(len(job.prompt_ids))

    async def pieces(self, idle_seconds: float | None = None) -> AsyncIterator[Numbered | None]:
        """Every choice's pieces as they come; None whenever nothing came for `idle_seconds`.

        Raises:
            EngineError: the engine failed on one of the jobs.
        """
        for number, choice in enumerate(self.choices):
            if (piece := choice.opening()) is not None:
                yield number, piece
        if self._finished():
            return
        async for event in self.run.outputs(idle_seconds):
            if event is None:
                yield None
            elif (numbered := self._read(*event)) is not None:
                yield numbered
                if numbered[1].finish and self._finished():
                    return

    def _finished(self) -> bool:
        return all(choice.finished for choice in self.choices)

    def _read(self, index: int, output: TokenOutput) -> Numbered | None:
        number = index * self.jobs[index].request.n + output.choice
        choice = self.choices[number]
        if choice.finished:  # computed before the engine heard of the stop
            return None
        if output.choice == 0 and self.meters[number].is_new:
            self.meters[number].queued(self.run.queued_of(index))
        self.meters[number].saw(output)
        piece = choice.read(output)
        if choice.finished and output.finish is None:
            self.run.stop(index, output.choice)
        if choice.finished:
            self.meters[number].ended(choice.num_tokens, output.finish or "stop")
        return None if piece is None else (number, piece)

    async def collect(self) -> list[dict[str, Any]]:
        """All choices, whole.

        Raises:
            EngineError: the engine failed on one of the jobs.
        """
        collected: list[list[Piece]] = [[] for _ in self.choices]
        async for numbered in self.pieces():
            if numbered is not None:
                collected[numbered[0]].append(numbered[1])
        return [
            self.form.whole(self.index(number), pieces, self.owners[number], self.show)
            for number, pieces in enumerate(collected)
        ]

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed. Raises EngineError as `collect` does."""
        choices = await self.collect()
        extras = self.form.extras(choices[0])
        body = self._head() | {"object": self.form.whole_object, "choices": choices, "usage": self.usage()}
        return body | extras | {"motet": extension(self.jobs)}

    async def events(self, options: StreamOptions) -> AsyncIterator[bytes]:
        """The bytes of a stream; an error in the middle of it is its last event."""
        try:
            async for chunk in self._chunks(options):
                yield KEEP_ALIVE if chunk is None else data(chunk)
        except Exception as error:
            answer = as_api_error(error)
            log.error("stream failed", exc_info=error)
            yield data(error_body(answer.status_code, answer.detail, answer.param, answer.code))
        yield DONE

    async def _chunks(self, options: StreamOptions) -> AsyncIterator[dict[str, Any] | None]:
        for number in range(len(self.choices)):
            if (opening := self.form.opening(self.index(number))) is not None:
                yield self._chunk(number, opening, options)
        async for numbered in self.pieces(self.keep_alive):
            if numbered is None:
                yield None
            elif _says_something(numbered[1], self.show):
                number, piece = numbered
                choice = self.form.chunk(self.index(number), piece, self.owners[number], self.show)
                yield self._chunk(number, choice, options)
        if options.include_usage:
            yield self.last_chunk()

    def _chunk(self, number: int, choice: dict[str, Any], options: StreamOptions) -> dict[str, Any]:
        chunk = self.chunk_head(number) | {"choices": [choice]}
        if not options.include_usage:
            return chunk
        return chunk | {"usage": self.usage() if options.continuous_usage_stats else None}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": self.form.chunk_object, "created": self.created, "model": self.model}

    def index(self, number: int) -> int:
        """The index that a choice has in the answer."""
        return number

    def chunk_head(self, number: int) -> dict[str, Any]:
        return self._head()

    def last_chunk(self) -> dict[str, Any]:
        return self._head() | {"choices": [], "usage": self.usage(), "motet": extension(self.jobs)}

    def usage(self) -> dict[str, Any]:
        """The base stream's prompt once per job, and all generated tokens."""
        prompt = sum(len(job.prompt_ids) for job in self.jobs)
        return usage(prompt, sum(choice.num_tokens for choice in self.choices), self.run.cached_tokens)


def extension(jobs: Sequence[Job]) -> dict[str, Any]:
    """What was composed, and what it took: KV bytes reserved, prompt tokens that each stream read."""
    plan = jobs[0].plan
    forced = sum(len(job.request.forced) for job in jobs)
    read = [sum(len(job.request.contexts[k]) for job in jobs) + forced for k in range(len(plan.streams))]
    return {
        "strategy": plan.strategy,
        "weight_sum": plan.weight_sum,
        "kv_bytes": sum(job.kv_bytes * job.request.n for job in jobs),
        "streams": [
            {"role": stream.role, "model": stream.model, "weight": stream.weight, "prompt_tokens": count}
            for stream, count in zip(plan.streams, read, strict=True)
        ],
    }


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _says_something(piece: Piece, show: Display) -> bool:
    """A chunk without text is sent only for its log-probs, ids or trace, or because it ends the choice."""
    asked = show.logprobs is not None or show.token_ids or show.trace is not None
    return bool(piece.text or piece.finish or (asked and piece.tokens))
