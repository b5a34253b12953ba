"""A request of ours as vLLM's own: one request per choice and context, what the workers get with it and report."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from motet.engines.base import EngineError, EngineStopped, GenerationRequest, ends_of
from motet.engines.vllm.internals import touch
from motet.engines.vllm.memory import Capacity, Gate
from motet.engines.vllm.wire import KEY, Link, Probe, Probed, RowSpec, payload_size, plain, probe_of, read_payload
from motet.models.info import ModelInfo

SHUTDOWN_SECONDS = 2.0


class Client:
    """Speaks to one vLLM engine that holds all members.

    Args:
        llm: vLLM's AsyncLLM over the composite.
        infos: the members by name.
        capacity: what its cache and batch hold.
        linked: whether vLLM runs `scheduler.LinkedScheduler`; else requests read one context.
    """

    def __init__(self, llm: Any, infos: Mapping[str, ModelInfo], capacity: Capacity, *, linked: bool) -> None:
        self._llm = llm
        self.infos = dict(infos)
        self.capacity = capacity
        # of one engine: where the contexts of a choice lie is not chosen by their size
        self.gate = Gate(capacity.room(2), capacity.rows) if linked else None
        self._names = itertools.count()
        self._ranks = itertools.cycle(range(capacity.engines))
        self._closing = False

    @property
    def is_alive(self) -> bool:
        return self._llm is not None and not self._closing and not self._llm.errored

    def stop(self) -> None:
        """Takes no more requests."""
        self._closing = True
        if self._llm is not None and self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # else it logs the end that we ask for as a failure

    def shutdown(self) -> None:
        """Ends vLLM's processes, also of an engine that no event loop ever ran."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown(SHUTDOWN_SECONDS)

    def held(self, request: GenerationRequest) -> int:
        """Tokens that the blocks of one choice hold."""
        return sum(map(self.capacity.held, sizes_of(request)))

    async def draw(self, request: GenerationRequest, index: int) -> AsyncGenerator[Any]:
        """vLLM's outputs of one choice; closing the iterator aborts it."""
        sampling, known = request.sampling, request.forced
        spec = self._spec(request, key=f"{sampling.seed}/{index}")
        ends = () if sampling.goes_on else spec.ends
        limits = {
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": [*ends, *sampling.stop_token_ids],
            "logprobs": self.report_size(request) if sampling.reports_more else sampling.top_logprobs,
        }
        async with aclosing(self._answers(request, spec, known, limits)) as answers:
            async for answer in answers:
                yield answer

    def report_size(self, request: GenerationRequest) -> int:
        """How many numbers a token reports that has a payload."""
        return payload_size(_probe(request, 1), request.plan)

    def read(self, entries: Mapping[int, Any], request: GenerationRequest) -> Probed:
        """The numbers of a token that is told with more than log-probs."""
        return read_payload(lambda token: entries[token].logprob, _probe(request, 1), request.plan)

    async def probe(self, request: GenerationRequest, known: Sequence[int]) -> list[Probed]:
        """What is to be reported about the `known` tokens behind the context.

        One context is read at once with its known tokens; several walk over them in step.
        """
        probe = _probe(request, len(request.contexts[0]))
        spec = self._spec(request, probe=probe)
        size = payload_size(probe, request.plan)
        if len(views_of(request)) == 1:
            limits = {"max_tokens": 1, "prompt_logprobs": size}
        else:
            spec = replace(spec, forced=tuple(known))
            limits = {"max_tokens": len(known), "logprobs": size}
            known = ()
        rows: list[Any] = []
        async with aclosing(self._answers(request, spec, known, limits)) as answers:
            async for answer in answers:
                if spec.forced:
                    rows.extend(answer.outputs[0].logprobs)
                elif answer.prompt_logprobs:
                    rows = list(answer.prompt_logprobs[probe.start :])
        return [self.read(row, request) for row in rows]

    def _spec(self, request: GenerationRequest, *, key: str = "", probe: Probe | None = None) -> RowSpec:
        """What holds for the context of the base; the others' places follow in `_linked`."""
        context, grammar = len(request.contexts[0]), request.sampling.grammar
        return RowSpec(
            plan=request.plan,
            ends=ends_of(request.plan, self.infos),
            written_from=context + request.num_prompt_forced,
            drawn_from=context + len(request.forced),
            draw=replace(request.sampling, grammar=None),
            key=key,
            probe=probe,
            grammar="" if grammar is None else grammar.text,
            thought=None if grammar is None else grammar.thought,
            closing=None if grammar is None else grammar.closing,
        )

    async def _answers(
        self, request: GenerationRequest, spec: RowSpec, known: Sequence[int], limits: Mapping[str, Any]
    ) -> AsyncGenerator[Any]:
        """vLLM's outputs of the base's context, with the other contexts running beside it."""
        prompts = [_salted((*view, *known), request) for view in views_of(request)]
        name = f"{request.request_id}#{next(self._names)}"
        if len(prompts) == 1:
            async for answer in self._one(prompts[0], spec, limits, name, None):
                yield answer
            return
        held = self.held(request)
        if self.gate is None or not self.gate.fits(held, len(prompts)):
            raise EngineError("the request can never run on this engine, whose `check` was not called")
        specs = _linked(spec, request, name)
        rank = next(self._ranks) if self.capacity.engines > 1 else None
        async with self.gate.room(held, len(prompts)):
            others = [
                asyncio.create_task(_drained(self._one(prompt, other, limits, f"{name}.{view}", rank)))
                for view, (prompt, other) in enumerate(zip(prompts[1:], specs[1:], strict=True), 1)
            ]
            try:
                async for answer in self._one(prompts[0], specs[0], limits, name, rank):
                    yield answer
            finally:
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)

    async def _one(
        self, prompt: Mapping[str, Any], spec: RowSpec, limits: Mapping[str, Any], name: str, rank: int | None
    ) -> AsyncGenerator[Any]:
        """One vLLM request. `spec` says how its tokens are drawn; vLLM, which does not draw them, knows no more."""
        if self._llm is None:
            raise EngineStopped("the engine is closed")
        params = touch("SamplingParams")(
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=touch("RequestOutputKind").DELTA,
            extra_args={KEY: plain(spec)},
            **limits,
        )
        async for answer in self._llm.generate(prompt, params, name, data_parallel_rank=rank):
            yield answer


def _salted(tokens: Sequence[int], request: GenerationRequest) -> dict[str, Any]:
    """vLLM's prompt. Blocks that were computed with one salt are found with that one alone: another composition's hold
    no keys and values of the members that it did not run."""
    members = "+".join(sorted({stream.model for stream in request.plan.streams}))
    return {"prompt_token_ids": list(tokens), "cache_salt": f"{request.cache_salt}/{members}"}


def views_of(request: GenerationRequest) -> list[tuple[int, ...]]:
    """The distinct contexts, the base's first."""
    return list(dict.fromkeys(request.contexts))


def sizes_of(request: GenerationRequest) -> list[int]:
    """Tokens of each distinct context at the end of one choice."""
    return [len(view) + len(request.forced) + request.sampling.max_tokens for view in views_of(request)]


async def _drained(answers: AsyncGenerator[Any]) -> None:
    async for _ in answers:
        pass


def _linked(spec: RowSpec, request: GenerationRequest, group: str) -> list[RowSpec]:
    """The rows of all contexts: the same, but for where their tokens lie."""
    views = views_of(request)
    reads = tuple(views.index(context) for context in request.contexts)
    specs: list[RowSpec] = []
    for number, view in enumerate(views):
        shift = len(view) - len(views[0])
        specs.append(
            replace(
                spec,
                written_from=spec.written_from + shift,
                drawn_from=spec.drawn_from + shift,
                probe=spec.probe and replace(spec.probe, start=spec.probe.start + shift),
                link=Link(group, number, len(views), reads),
            )
        )
    return specs


def _probe(request: GenerationRequest, start: int) -> Probe:
    return probe_of(start, request.sampling)
