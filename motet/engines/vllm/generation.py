"""A running request: one vLLM request per choice and context, read as the server reads every engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from motet.engines.base import EngineError, EngineStopped, GenerationRequest, GrammarFailed, NoTokenPossible, ends_of
from motet.engines.outputs import FinishReason, TokenOutput
from motet.engines.vllm.client import Client
from motet.engines.vllm.internals import touch
from motet.engines.vllm.wire import Probed

_END = None


class VllmGeneration:
    """See `base.Generation`. Each choice is read by a task of its own; cancelling it aborts vLLM's request.

    A scored text is a request of its own, whose prompt it is part of.
    """

    def __init__(self, client: Client, request: GenerationRequest) -> None:
        self._client = client
        self._request = request
        self._queue: asyncio.Queue[TokenOutput | Exception | None] = asyncio.Queue()
        self._began = time.perf_counter()
        self._started: float | None = None
        self._open = set(range(request.n))
        self._scored: asyncio.Task[list[Probed]] | None = None
        self.cached_tokens = 0
        if request.forced:
            self._scored = asyncio.create_task(client.probe(request, request.forced))
        self._tasks = [asyncio.create_task(self._choice(index)) for index in range(request.n)]

    @property
    def queued_seconds(self) -> float:
        return (self._started or time.perf_counter()) - self._began

    def __aiter__(self) -> AsyncIterator[TokenOutput]:
        return self

    async def __anext__(self) -> TokenOutput:
        while self._open:
            output = await self._queue.get()
            if isinstance(output, Exception):
                self._cancel()
                raise output
            if output is None or output.choice not in self._open:
                continue
            if output.finish is not None:
                self._open.discard(output.choice)
            return output
        raise StopAsyncIteration

    def stop_choice(self, choice: int) -> None:
        self._open.discard(choice)
        self._tasks[choice].cancel()
        self._queue.put_nowait(_END)

    async def aclose(self) -> None:
        self._open.clear()
        self._cancel()
        self._queue.put_nowait(_END)

    def fail(self, error: EngineError) -> None:
        """The engine is closing: the reader gets the error."""
        self._queue.put_nowait(error)
        self._cancel()

    def _cancel(self) -> None:
        for task in (*self._tasks, *([self._scored] if self._scored else [])):
            task.cancel()

    async def _choice(self, index: int) -> None:
        try:
            async for output in self._outputs(index):
                self._queue.put_nowait(output)
        except asyncio.CancelledError:
            if self._client.is_alive:
                raise
            self._queue.put_nowait(EngineStopped("the engine was stopped"))
        except Exception as error:
            self._queue.put_nowait(_as_engine_error(error))

    async def _outputs(self, index: int) -> AsyncIterator[TokenOutput]:
        ends_scored = self._request.sampling.max_tokens == 0
        if self._scored is not None:
            probed = await asyncio.shield(self._scored)
            self._note_start()
            for output in self._forced(index, probed, "length" if ends_scored else None):
                yield output
        if ends_scored:
            return
        async for output in self._drawn(index):
            yield output

    def _forced(self, index: int, probed: Sequence[Probed], finish: FinishReason | None) -> list[TokenOutput]:
        outputs = [
            TokenOutput(index, token, known.logprob, True, known.top, known.trace)
            for token, known in zip(self._request.forced, probed, strict=True)
        ]
        self._check(outputs)
        return [*outputs[:-1], replace(outputs[-1], finish=finish)]

    def _check(self, outputs: Sequence[TokenOutput]) -> None:
        position = next((i for i, output in enumerate(outputs) if math.isnan(output.logprob)), None)
        if position is not None:
            raise _not_a_number(position)

    async def _drawn(self, index: int) -> AsyncIterator[TokenOutput]:
        """Tokens as vLLM hands them out."""
        count, drawn = len(self._request.forced), list[int]()
        async for answer in self._client.draw(self._request, index):
            self._note_start()
            self.cached_tokens = max(self.cached_tokens, answer.num_cached_tokens or 0)
            part = answer.outputs[0]
            finish = _finish(part.finish_reason)
            for number, (token, entries) in enumerate(zip(part.token_ids, part.logprobs, strict=True), 1):
                probed = self._probed(token, entries)
                if math.isnan(probed.logprob):
                    raise self._no_number(count, drawn)
                yield self._output(index, token, probed, count, finish if number == len(part.token_ids) else None)
                drawn.append(token)
                count += 1

    def _output(
        self, index: int, token: int, probed: Probed, position: int, finish: FinishReason | None
    ) -> TokenOutput:
        if probed.logprob == -math.inf:
            raise NoTokenPossible(
                f"no token is possible at position {position}: the masks of the request exclude each other"
            )
        return TokenOutput(index, token, probed.logprob, False, probed.top, probed.trace, finish, probed.confidence)

    def _probed(self, token: int, entries: dict[int, Any]) -> Probed:
        """What is reported of a drawn token."""
        sampling = self._request.sampling
        if not sampling.reports_more:
            return Probed(entries[token].logprob, _ranked(entries, sampling.top_logprobs))
        return self._client.read(entries, self._request)

    def _no_number(self, position: int, drawn: Sequence[int]) -> EngineError:
        """Workers can say nothing but numbers: whether a grammar failed there is found out by following it here."""
        grammar = self._request.sampling.grammar
        try:
            if grammar is not None:
                grammar.start(ends_of(self._request.plan, self._client.infos)).allowed(drawn)
        except GrammarFailed as failure:
            return failure
        return _not_a_number(position)

    def _note_start(self) -> None:
        self._started = self._started or time.perf_counter()


def _as_engine_error(error: Exception) -> EngineError:
    """What the server knows how to answer."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, touch("EngineDeadError")):
        return EngineStopped("the engine died: see its log")
    return EngineError(f"the request failed: {error}")


def _not_a_number(position: int) -> EngineError:
    return EngineError(f"the request failed at token {position}: its composed distribution is not a number")


def _ranked(entries: dict[int, Any], count: int) -> tuple[tuple[int, float], ...]:
    """The most likely of what vLLM hands out, best first; the drawn token is among it in any case."""
    pairs = ((token, float(entry.logprob)) for token, entry in entries.items())
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


def _finish(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    if reason in ("stop", "length"):
        return "stop" if reason == "stop" else "length"
    raise EngineError(f"vLLM ended the request: {reason}")
