"""The server's engine interface over vLLM's AsyncLLM."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from motet.composers.plan import Plan
from motet.server.engines.base import (
    EngineError,
    EngineStats,
    GenerationRequest,
    ModelInfo,
    RequestTooLarge,
    UnsupportedRequest,
)
from motet.server.engines.vllm.generation import VllmGeneration
from motet.server.engines.vllm.internals import touch
from motet.server.engines.vllm.payload import Probed, payload_size, read_payload
from motet.server.engines.vllm.plans import unsupported
from motet.server.engines.vllm.stats import Tally
from motet.server.engines.vllm.wire import KEY, Probe, RowSpec, plain

SHUTDOWN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """`tokens`: how many the KV cache holds, each with the keys and values of all members (`bytes_per_token`)."""

    max_model_len: int
    tokens: int
    bytes_per_token: int


class VllmEngine:
    """Composed generation by one vLLM engine that holds all members.

    Args:
        llm: vLLM's AsyncLLM over the composite.
        infos: the members by name.
        capacity: what a request may ask for.
        tally: what vLLM reports about its steps.
    """

    def __init__(self, llm: Any, infos: Mapping[str, ModelInfo], capacity: Capacity, tally: Tally) -> None:
        self._llm = llm
        self._infos = dict(infos)
        self._capacity = capacity
        self._tally = tally
        self._names = itertools.count()
        self._running: set[VllmGeneration] = set()
        self._closing = False

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._infos

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
        self._check_views(request)
        return self._reserved(request) * self._capacity.bytes_per_token

    def _check_views(self, request: GenerationRequest) -> None:
        """Raises UnsupportedRequest: what the plan alone does not show."""
        if len(views_of(request)) > 1:
            raise UnsupportedRequest("this engine needs one prompt for all streams")
        size = payload_size(_probe(request, 1), len(request.plan.streams))
        width = min(info.vocab_size for info in self._infos.values())
        if size > width:
            raise UnsupportedRequest(
                f"a trace of so many alternatives takes {size} numbers per token, the vocabulary of {width} holds fewer"
            )

    def _reserved(self, request: GenerationRequest) -> int:
        """Tokens of one choice; raises RequestTooLarge."""
        sizes = [len(view) + len(request.forced) + request.sampling.max_tokens for view in views_of(request)]
        limit = self._capacity.max_model_len
        # vLLM always draws a token behind what it has scored
        if max(sizes) + (request.sampling.max_tokens == 0) > limit:
            raise RequestTooLarge(f"the request takes {max(sizes)} tokens, the engine's longest context is {limit}")
        if sum(sizes) > self._capacity.tokens:
            raise RequestTooLarge(
                f"the request takes {sum(sizes):,} tokens in {len(sizes)} contexts; the engine's KV cache holds "
                f"{self._capacity.tokens:,}"
            )
        return sum(sizes)

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
        total = self._capacity.tokens * self._capacity.bytes_per_token
        return self._tally.stats(total)

    async def close(self) -> None:
        self._closing = True
        for generation in list(self._running):
            generation.fail(EngineError("the engine was stopped"))
            await generation.aclose()
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, SHUTDOWN_SECONDS)

    def as_engine_error(self, error: Exception) -> EngineError:
        """What the server knows how to answer."""
        if isinstance(error, EngineError):
            return error
        if isinstance(error, touch("EngineDeadError")):
            return EngineError("the engine died: see its log")
        return EngineError(f"the request failed: {error}")

    async def draw(self, request: GenerationRequest, index: int) -> AsyncIterator[Any]:
        """vLLM's outputs of one choice; closing the iterator aborts it."""
        spec = RowSpec(
            plan=request.plan,
            ends=self._ends(request.plan),
            written_from=len(request.contexts[0]) + request.num_prompt_forced,
            drawn_from=len(request.contexts[0]) + len(request.forced),
            draw=request.sampling,
            key=f"{request.sampling.seed}/{index}",
        )
        sampling = request.sampling
        ends = () if sampling.ignore_eos else spec.ends
        params = self._params(
            spec,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[*ends, *sampling.stop_token_ids],
            logprobs=sampling.top_logprobs,
        )
        async for answer in self._answers(request, (*request.contexts[0], *request.forced), params):
            yield answer

    async def probe(self, request: GenerationRequest, known: Sequence[int], skip: int = 0) -> list[Probed]:
        """What is to be reported about the `known` tokens behind the context, but for the first `skip`."""
        context = request.contexts[0]
        spec = RowSpec(
            plan=request.plan,
            ends=self._ends(request.plan),
            written_from=len(context) + request.num_prompt_forced,
            drawn_from=len(context) + len(request.forced),
            draw=request.sampling,
            probe=_probe(request, len(context) + skip),
        )
        assert spec.probe is not None
        size = payload_size(spec.probe, len(request.plan.streams))
        params = self._params(spec, max_tokens=1, prompt_logprobs=size)
        rows: list[Any] = []
        # the last of the known tokens is scored, so nothing behind it is needed: vLLM draws one token all the same
        async for answer in self._answers(request, (*context, *known), params):
            rows = answer.prompt_logprobs or rows
        return [_read(row, spec.probe, len(request.plan.streams)) for row in rows[spec.probe.start :]]

    def _params(self, spec: RowSpec, **fields: Any) -> Any:
        return touch("SamplingParams")(
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=touch("RequestOutputKind").DELTA,
            extra_args={KEY: plain(spec)},
            **fields,
        )

    async def _answers(self, request: GenerationRequest, prompt: Sequence[int], params: Any) -> AsyncIterator[Any]:
        name = f"{request.request_id}#{next(self._names)}"
        if self._llm is None:
            raise EngineError("the engine is closed")
        async for answer in self._llm.generate({"prompt_token_ids": list(prompt)}, params, name):
            yield answer

    def _ends(self, plan: Plan) -> tuple[int, ...]:
        """End-of-sequence ids of the base and of every stream that the composition is drawn to."""
        drawn = [stream.model for k, stream in enumerate(plan.streams) if k == 0 or stream.weight > 0]
        return tuple(dict.fromkeys(token for model in drawn for token in self._infos[model].eos_token_ids))


def views_of(request: GenerationRequest) -> list[tuple[int, ...]]:
    """The distinct contexts, the base's first."""
    return list(dict.fromkeys(request.contexts))


def _probe(request: GenerationRequest, start: int) -> Probe:
    return Probe(start, request.sampling.top_logprobs, request.sampling.trace_top or 0)


def _read(row: Mapping[int, Any], probe: Probe, num_streams: int) -> Probed:
    return read_payload(lambda token: row[token].logprob, probe, num_streams)
