"""The server's engine interface over vLLM's AsyncLLM."""

from __future__ import annotations

import asyncio
import gc
import itertools
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from motet.composers.plan import Plan
from motet.engines.base import (
    EngineError,
    EngineStats,
    GenerationRequest,
    ModelInfo,
    RequestTooLarge,
    UnsupportedRequest,
    ends_of,
)
from motet.engines.vllm.gate import Gate
from motet.engines.vllm.generation import VllmGeneration
from motet.engines.vllm.internals import touch
from motet.engines.vllm.payload import Probed, payload_size, read_payload
from motet.engines.vllm.plans import unsupported
from motet.engines.vllm.stats import Tally
from motet.engines.vllm.wire import KEY, Link, Probe, RowSpec, plain

SHUTDOWN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """`tokens`: how many one engine's KV cache holds, each with the keys and values of all members
    (`bytes_per_token`). `rows`: requests that it computes at once. `engines`: data-parallel copies. A context takes
    whole blocks of `block` tokens, for `ahead` tokens of drafts too. vLLM keeps `kept_free` tokens from requests that
    wait: linked ones, of which some run and some wait, must do without them."""

    max_model_len: int
    tokens: int
    bytes_per_token: int
    rows: int
    engines: int = 1
    block: int = 1
    ahead: int = 0
    kept_free: int = 0

    def held(self, size: int) -> int:
        """Tokens that the blocks of a context of `size` tokens hold."""
        return -(-min(size + self.ahead, self.max_model_len) // self.block) * self.block

    def room(self, num_contexts: int) -> int:
        """Tokens that the contexts of one choice can hold together."""
        return self.tokens if num_contexts == 1 else self.tokens - self.kept_free


class VllmEngine:
    """Composed generation by one vLLM engine that holds all members.

    Args:
        llm: vLLM's AsyncLLM over the composite.
        infos: the members by name.
        capacity: what a request may ask for.
        tally: what vLLM reports about its steps.
        linked: whether vLLM runs `scheduler.LinkedScheduler`.
    """

    def __init__(
        self, llm: Any, infos: Mapping[str, ModelInfo], capacity: Capacity, tally: Tally, *, linked: bool = True
    ) -> None:
        self._llm = llm
        self._infos = dict(infos)
        self._capacity = capacity
        self.tally = tally
        self._names = itertools.count()
        self._ranks = itertools.cycle(range(capacity.engines))
        # of one engine: where the contexts of a choice lie is not chosen by their size
        self._gate = Gate(capacity.room(2), capacity.rows) if linked else None
        self._running: set[VllmGeneration] = set()
        self._closing = False

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._infos

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def is_alive(self) -> bool:
        return self._llm is not None and not self._closing and not self._llm.errored

    def supports(self, plan: Plan) -> str | None:
        return unsupported(plan, self._infos)

    def check(self, request: GenerationRequest) -> int:
        if not request.forced and request.sampling.max_tokens < 1:
            raise ValueError("a request must score or generate at least one token")
        if not all(request.contexts):
            raise ValueError("every stream needs a context of at least one token")
        self._check_reports(request)
        return self._reserved(request) * self._capacity.bytes_per_token

    def _check_reports(self, request: GenerationRequest) -> None:
        """Raises UnsupportedRequest: a reason that the plan alone does not show."""
        if len(views_of(request)) > 1 and self._gate is None:
            raise UnsupportedRequest(
                "its streams read different prompts, for which this engine needs its own scheduler "
                "(engine_args.scheduler_cls names another)"
            )
        size = self.report_size(request)
        width = min(info.vocab_size for info in self._infos.values())
        if size > width:
            raise UnsupportedRequest(
                f"a trace of so many alternatives takes {size} numbers per token, the vocabulary of {width} holds fewer"
            )

    def _reserved(self, request: GenerationRequest) -> int:
        """Tokens that the blocks of one choice hold; raises RequestTooLarge."""
        sizes = [len(view) + len(request.forced) + request.sampling.max_tokens for view in views_of(request)]
        limit = self._capacity.max_model_len
        # vLLM always draws a token behind what it has scored
        if max(sizes) + (request.sampling.max_tokens == 0) > limit:
            raise RequestTooLarge(f"the request takes {max(sizes)} tokens, the engine's longest context is {limit}")
        held, room = sum(map(self._capacity.held, sizes)), self._capacity.room(len(sizes))
        if held > room:
            raise RequestTooLarge(
                f"the request takes {held:,} tokens in {len(sizes)} contexts, each of whole blocks of "
                f"{self._capacity.block}; the engine's KV cache has room for {room:,}"
            )
        if len(sizes) > 1 and self._gate is not None and not self._gate.fits(held, len(sizes)):
            raise RequestTooLarge(
                f"the request reads {len(sizes)} contexts at once, the engine runs {self._gate.rows} (max_running)"
            )
        return held

    def generate(self, request: GenerationRequest) -> VllmGeneration:
        self.check(request)
        if not self.is_alive:
            raise EngineError("the engine is closed")
        if request.sampling.seed is None and request.sampling.temperature:
            # every worker of a tensor-parallel group must draw alike
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        generation = VllmGeneration(self, request)
        self._running.add(generation)
        return generation

    def forget(self, generation: VllmGeneration) -> None:
        self._running.discard(generation)

    def stats(self) -> EngineStats:
        total = self._capacity.tokens * self._capacity.bytes_per_token * self._capacity.engines
        return self.tally.stats(total)

    async def close(self) -> None:
        self._closing = True
        for generation in self._running:
            generation.fail(EngineError("the engine was stopped"))
        if self._llm is not None and self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # else it logs the end that we ask for as a failure
        await asyncio.to_thread(self.shutdown)
        gc.collect()  # vLLM's destructor complains where the interpreter has gone before it

    def shutdown(self) -> None:
        """Ends vLLM's processes, also of an engine that no event loop ever ran."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown(SHUTDOWN_SECONDS)

    def as_engine_error(self, error: Exception) -> EngineError:
        """What the server knows how to answer."""
        if isinstance(error, EngineError):
            return error
        if isinstance(error, touch("EngineDeadError")):
            return EngineError("the engine died: see its log")
        return EngineError(f"the request failed: {error}")

    async def draw(self, request: GenerationRequest, index: int) -> AsyncGenerator[Any]:
        """vLLM's outputs of one choice; closing the iterator aborts it."""
        sampling, known = request.sampling, request.forced
        spec = self._spec(request, key=f"{sampling.seed}/{index}")
        ends = () if sampling.ignore_eos else spec.ends
        limits = {
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": [*ends, *sampling.stop_token_ids],
            "logprobs": sampling.top_logprobs if sampling.trace_top is None else self.report_size(request),
        }
        async with aclosing(self._answers(request, spec, known, limits)) as answers:
            async for answer in answers:
                yield answer

    def report_size(self, request: GenerationRequest) -> int:
        """How many numbers a token reports that has a payload."""
        return payload_size(_probe(request, 1), request.plan)

    def read(self, entries: Mapping[int, Any], request: GenerationRequest) -> Probed:
        """The numbers of a token with a trace."""
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
        """What holds for the context of the base; the others' places follow in `_views`."""
        context, grammar = len(request.contexts[0]), request.sampling.grammar
        return RowSpec(
            plan=request.plan,
            ends=ends_of(request.plan, self._infos),
            written_from=context + request.num_prompt_forced,
            drawn_from=context + len(request.forced),
            draw=replace(request.sampling, grammar=None),
            key=key,
            probe=probe,
            grammar="" if grammar is None else grammar.text,
        )

    async def _answers(
        self, request: GenerationRequest, spec: RowSpec, known: Sequence[int], limits: Mapping[str, Any]
    ) -> AsyncGenerator[Any]:
        """vLLM's outputs of the base's context, with the other contexts running beside it."""
        prompts = [(*view, *known) for view in views_of(request)]
        name = f"{request.request_id}#{next(self._names)}"
        if len(prompts) == 1 or self._gate is None:
            async for answer in self._one(prompts[0], spec, limits, name, None):
                yield answer
            return
        specs = _linked(spec, request, name)
        rank = next(self._ranks) if self._capacity.engines > 1 else None
        async with self._gate.room(self._reserved(request), len(prompts)):
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
        self, prompt: Sequence[int], spec: RowSpec, limits: Mapping[str, Any], name: str, rank: int | None
    ) -> AsyncGenerator[Any]:
        """One vLLM request. `spec` says how its tokens are drawn; vLLM, which does not draw them, is told no more."""
        if self._llm is None:
            raise EngineError("the engine is closed")
        params = touch("SamplingParams")(
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=touch("RequestOutputKind").DELTA,
            extra_args={KEY: plain(spec)},
            **limits,
        )
        tokens = {"prompt_token_ids": list(prompt)}
        async for answer in self._llm.generate(tokens, params, name, data_parallel_rank=rank):
            yield answer


def views_of(request: GenerationRequest) -> list[tuple[int, ...]]:
    """The distinct contexts, the base's first."""
    return list(dict.fromkeys(request.contexts))


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
    return Probe(start, request.sampling.top_logprobs, request.sampling.trace_top)
