"""From jobs to the body of the reply: the engine's generations, read as text, whole or as a stream of chunks."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from motet.engines.outputs import TokenOutput
from motet.server.adapters.adapter import Chunks
from motet.server.forms import FORMS, extension, usage
from motet.server.generations import Generations
from motet.server.http.errors import for_reader
from motet.server.http.metrics import Meter
from motet.server.http.sse import KEEP_ALIVE, PIECE
from motet.server.http.turns import Turn
from motet.server.http.writing import MANY_TOKENS, beside_others
from motet.server.prepare import Job
from motet.server.query import Query
from motet.server.service import Service
from motet.server.shapes.requests import StreamOptions
from motet.server.text import ChoiceText, TextPiece
from motet.server.trials import trials_of

log = logging.getLogger(__name__)

Numbered = tuple[int, TextPiece]  # (choice of the request, piece)


class Reply:
    """The answer to a query while it is computed. Choice i of job j is number j·n + i of the request."""

    def __init__(self, service: Service, query: Query, jobs: Sequence[Job]) -> None:
        self.form = FORMS[query.form]
        self.model = query.targets[0].model or jobs[0].base
        self.jobs = jobs
        self.show = query.display
        self.adapter = query.adapter
        self.service = service
        self.turns = service.turns
        self.keep_alive = service.config.keep_alive_seconds
        self.id = self.form.id_prefix + uuid.uuid4().hex
        self.created = int(time.time())
        self.owners = [job for job in jobs for _ in range(job.request.n)]
        self.trials = trials_of(jobs) if any(job.escalation is not None for job in jobs) else {}
        self.written = {id(job): Counter[str]() for job in jobs}  # routed tokens by role
        self.choices = [ChoiceText(job, self.show) for job in self.owners]
        self.metrics = service.metrics
        self.meters = [Meter(service.metrics, job.plan.strategy) for job in self.owners]
        self.generations = Generations(service.engine, jobs, service.turns)
        self.running = [(job, i * job.request.n) for i, job in enumerate(jobs)]  # with the number of its first choice
        for job in jobs:
            service.metrics.prompt_tokens.labels(job.plan.strategy).inc(job.num_prompt_tokens)

    def close(self) -> None:
        """Ends what the engine still computes of it."""
        self.generations.close()

    async def pieces(self, idle_seconds: float | None = None) -> AsyncIterator[Numbered | None]:
        """Every choice's pieces as they come; None whenever nothing came for `idle_seconds`.

        Raises:
            EngineError: the engine failed on one of the jobs.
        """
        for number in range(len(self.choices)):
            for piece in self._opened(number):
                yield number, piece
        if self._finished():
            return
        last = time.monotonic()
        async for event in self.generations.outputs(idle_seconds):
            found = [] if event is None else self._read(*event)
            is_idle = not found and idle_seconds is not None and time.monotonic() - last > idle_seconds
            if event is None or is_idle:  # much may be computed before anything can be told
                last = time.monotonic()
                yield None
            for numbered in found:
                last = time.monotonic()
                yield numbered
                if numbered[1].finish and self._finished():
                    return

    def _opened(self, number: int) -> list[TextPiece]:
        """What is known of a choice before its first output, and may be told."""
        piece, trial = self.choices[number].opening(), self.trials.get(number)
        if piece is not None and trial is not None and trial.sure is None:
            trial.hold(piece)
            return []
        return [] if piece is None else [piece]

    def _finished(self) -> bool:
        return all(choice.finished for choice in self.choices)

    def _read(self, index: int, output: TokenOutput) -> list[Numbered]:
        """What may be told with this output of job `index` of those that run."""
        job, first = self.running[index]
        number = first + output.choice
        choice, trial = self.choices[number], self.trials.get(number)
        if choice.finished or job is not self.owners[number]:  # computed before the stop reached the engine
            return []
        piece = choice.read(output)
        if output.choice == 0 and self.meters[number].is_new:
            self.meters[number].queued(self.generations.queued_of(index))
        pieces = [] if piece is None else [piece]
        if trial is not None and trial.sure is None:
            for one in pieces:
                trial.hold(one)
            trial.weigh(output, finished=choice.finished)
            if not trial.sure:
                return [] if trial.sure is None else self._given_up(index, number, output)
            pieces = trial.released()
            self._judged(index)
        self.meters[number].observe(output)
        if output.writer is not None:
            role = job.plan.streams[output.writer].role
            self.written[id(job)][role] += 1
            self.metrics.routed_tokens.labels(role).inc()
        if choice.finished and output.finish is None:
            self.generations.stop(index, output.choice)
        if choice.finished:
            self.meters[number].ended(choice.num_tokens, output.finish or "stop")
        return [(number, piece) for piece in pieces]

    def _given_up(self, index: int, number: int, output: TokenOutput) -> list[Numbered]:
        """Another answers this choice anew; nothing was told of it yet."""
        trial = self.trials[number]
        if output.finish is None:
            self.generations.stop(index, output.choice)
        trial.released()
        trial.num_discarded = self.choices[number].num_tokens
        self.metrics.generation_tokens.labels(trial.first.plan.strategy).inc(trial.num_discarded)
        self.owners[number], self.choices[number] = trial.anew, ChoiceText(trial.anew, self.show)
        self._judged(index)
        return [(number, piece) for piece in self._opened(number)]

    def _judged(self, index: int) -> None:
        """One more choice of a job is judged: with the last, those that were not sure are answered anew, together, so
        that each draws as it would have drawn for that model alone."""
        job, first = self.running[index]
        trials = [self.trials[first + choice] for choice in range(job.request.n)]
        if any(trial.sure is None for trial in trials):
            return
        for trial in trials:
            self.metrics.cascade_answers.labels(trial.answerer.plan.streams[0].role).inc()
        lost = [trial.index for trial in trials if not trial.sure]
        if lost:
            self.generations.start(trials[0].anew, lost)
            self.running.append((trials[0].anew, first))

    async def collect(self) -> list[dict[str, Any]]:
        """All choices, whole.

        Raises:
            EngineError: the engine failed on one of the jobs.
        """
        collected: list[list[TextPiece]] = [[] for _ in self.choices]
        async for numbered in self.pieces():
            if numbered is not None:
                collected[numbered[0]].append(numbered[1])
        choices: list[dict[str, Any]] = []
        for number, pieces in enumerate(collected):
            tokens = sum(len(piece.tokens) for piece in pieces)
            whole = self.index(number), pieces, self.owners[number], self.show
            choices.append(await beside_others(self.turns, tokens, self.form.whole, *whole))
            pieces.clear()
        return choices

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed. Raises EngineError as `collect` does."""
        choices = await self.collect()
        extras = self.form.extras(choices[0])
        body = self._head() | {"object": self.form.whole_object, "choices": choices, "usage": self.usage()}
        return body | extras | {"motet": self._extension(self.jobs)}

    async def events(self, options: StreamOptions) -> AsyncIterator[bytes]:
        """The bytes of a stream; an error in the middle of it is its last event."""
        writer = Chunks() if self.adapter is None else self.adapter.events()
        try:
            async for chunk in self._chunks(options):
                async for sent in self._sent(iter([KEEP_ALIVE]) if chunk is None else writer.write(chunk)):
                    yield sent
        except Exception as error:
            refusal = for_reader(error, self.service.hidden)
            if refusal.status_code >= 500:
                log.error("stream failed", exc_info=error)
            async for sent in self._sent(writer.fail(refusal)):
                yield sent
        async for sent in self._sent(writer.end()):
            yield sent

    async def _sent(self, written: Iterator[bytes]) -> AsyncIterator[bytes]:
        """What is written, together as far as it is short; others are served between the pieces of what is long."""
        turn, held = Turn(self.turns), bytearray()
        for piece in written:
            held += piece
            if len(held) > PIECE:
                yield bytes(held)
                held.clear()
                await turn.go_on()
        if held:
            yield bytes(held)

    async def _chunks(self, options: StreamOptions) -> AsyncIterator[dict[str, Any] | None]:
        for number in range(len(self.choices)):
            if (opening := self.form.opening(self.index(number), self.owners[number])) is not None:
                yield self._chunk(number, opening, options)
        async for numbered in self.pieces(self.keep_alive):
            if numbered is None:
                yield None
                continue
            number, piece = numbered
            choices = self.form.chunks(self.index(number), piece, self.owners[number], self.show)
            if len(piece.tokens) > MANY_TOKENS:  # of an echoed prompt
                choices = await beside_others(self.turns, len(piece.tokens), list, choices)
            for choice in choices:
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
        """The index that a choice has in the reply."""
        return number

    def chunk_head(self, number: int) -> dict[str, Any]:
        return self._head()

    def last_chunk(self) -> dict[str, Any]:
        return self._head() | {"choices": [], "usage": self.usage(), "motet": self._extension(self.jobs)}

    def usage(self) -> dict[str, Any]:
        """What the client sent, once per job, and all generated tokens."""
        read, written, thought = self.prompt_tokens, self.answer_tokens, thought_tokens(self.owners, self._told)
        return usage(read, written, self.generations.cached_tokens, thought)

    def _extension(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """`jobs`: of `self.jobs`."""
        trials = [(self.index(number), trial) for number, trial in self.trials.items() if trial.first in jobs]
        written = sum((self.written[id(job)] for job in jobs), Counter[str]())
        return extension(jobs, traced=self.show.trace is not None, trials=trials, written=written)

    @property
    def prompt_tokens(self) -> int:
        return sum(job.num_prompt_tokens for job in self.jobs)

    @property
    def answer_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self._told)

    @property
    def _told(self) -> list[ChoiceText]:
        """The choices that are on no trial."""
        held = {number for number, trial in self.trials.items() if trial.sure is None}
        return [choice for number, choice in enumerate(self.choices) if number not in held]

    @property
    def spent_tokens(self) -> int:
        """Tokens of the answers, of those that were given up, and of prompts that were read for others in their
        place."""
        read = sum(job.num_prompt_tokens for job, _ in self.running[len(self.jobs) :])
        written = sum(choice.num_tokens for choice in self.choices)
        return written + sum(trial.num_discarded for trial in self.trials.values()) + read


def thought_tokens(jobs: Sequence[Job], choices: Sequence[ChoiceText]) -> int | None:
    """Tokens of the choices' thoughts; None where none of the jobs can think."""
    if not any(job.syntax.tags for job in jobs):
        return None
    return sum(choice.num_thought for choice in choices)
