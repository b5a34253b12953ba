"""The server's engine interface over vLLM's AsyncLLM: what it takes, and its running requests."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from motet.composers.plan import Plan
from motet.engines.base import EngineStopped, GenerationRequest, RequestTooLarge, UnsupportedRequest, refuse_empty
from motet.engines.drafts import OFF
from motet.engines.outputs import EngineStats
from motet.engines.vllm.client import Client, sizes_of, views_of
from motet.engines.vllm.generation import VllmGeneration
from motet.engines.vllm.memory import Capacity
from motet.engines.vllm.options import unsupported
from motet.engines.vllm.stats import Tally
from motet.models.info import ModelInfo


class VllmEngine:
    """Composed generation by one vLLM engine that holds all members.

    Args:
        llm: vLLM's AsyncLLM over the composite.
        infos: the members by name.
        capacity: what a request may ask for.
        tally: what vLLM reports about its steps.
        linked: whether vLLM runs `scheduler.LinkedScheduler`.
        drafts: whether vLLM guesses ahead, for all requests alike.
    """

    def __init__(
        self,
        llm: Any,
        infos: Mapping[str, ModelInfo],
        capacity: Capacity,
        tally: Tally,
        *,
        linked: bool = True,
        drafts: bool = False,
    ) -> None:
        self._drafts = drafts
        self._client = Client(llm, infos, capacity, linked=linked)
        self.tally = tally
        self._generations: WeakSet[VllmGeneration] = WeakSet()

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._client.infos

    @property
    def capacity(self) -> Capacity:
        return self._client.capacity

    @property
    def is_alive(self) -> bool:
        return self._client.is_alive

    def supports(self, plan: Plan) -> str | None:
        return unsupported(plan, self._client.infos)

    def check(self, request: GenerationRequest) -> int:
        refuse_empty(request)
        self._check_reports(request)
        return self._reserved(request) * self.capacity.bytes_per_token

    def _check_reports(self, request: GenerationRequest) -> None:
        """Raises UnsupportedRequest: a reason that the plan alone does not show."""
        if request.speculation is not None and (self._drafts or request.speculation != OFF):
            raise UnsupportedRequest(
                "'speculation' is the embedded engine's; vLLM drafts for all requests alike, as "
                "engine.engine_args.speculative_config says"
            )
        if request.sampling.logprob_token_ids:
            raise UnsupportedRequest("'logprob_token_ids' is the embedded engine's; 'top_logprobs' is both engines'")
        if len(views_of(request)) > 1 and self._client.gate is None:
            raise UnsupportedRequest(
                "its streams read different prompts, for which this engine needs its own scheduler "
                "(engine_args.scheduler_cls names another)"
            )
        size = self._client.report_size(request)
        width = min(info.vocab_size for info in self.models.values())
        if size > width:
            raise UnsupportedRequest(
                f"a trace of so many alternatives takes {size} numbers per token, the vocabulary of {width} holds fewer"
            )

    def _reserved(self, request: GenerationRequest) -> int:
        """Tokens that the blocks of one choice hold; raises RequestTooLarge."""
        sizes = sizes_of(request)
        limit = self.capacity.max_model_len
        # vLLM always draws a token behind what it has scored
        if max(sizes) + (request.sampling.max_tokens == 0) > limit:
            raise RequestTooLarge(f"the request takes {max(sizes)} tokens, the engine's longest context is {limit}")
        held, room = self._client.held(request), self.capacity.room(len(sizes))
        if held > room:
            raise RequestTooLarge(
                f"the request takes {held:,} tokens in {len(sizes)} contexts, each of whole blocks of "
                f"{self.capacity.block}; the engine's KV cache has room for {room:,}"
            )
        gate = self._client.gate
        if len(sizes) > 1 and gate is not None and not gate.fits(held, len(sizes)):
            raise RequestTooLarge(
                f"the request reads {len(sizes)} contexts at once, the engine runs {gate.rows} (max_running)"
            )
        return held

    def generate(self, request: GenerationRequest) -> VllmGeneration:
        if not self.is_alive:
            raise EngineStopped("the engine is closed")
        if request.sampling.seed is None and request.sampling.temperature:
            # every worker of a tensor-parallel group must draw alike
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        generation = VllmGeneration(self._client, request)
        self._generations.add(generation)
        return generation

    def stats(self) -> EngineStats:
        total = self.capacity.tokens * self.capacity.bytes_per_token * self.capacity.engines
        return self.tally.stats(total)

    async def close(self) -> None:
        self._client.stop()
        for generation in list(self._generations):
            generation.fail(EngineStopped("the engine was stopped"))
        await asyncio.to_thread(self.shutdown)
        gc.collect()  # vLLM's destructor complains where the interpreter has gone before it

    def shutdown(self) -> None:
        """Ends vLLM's processes, also of an engine that no event loop ever ran."""
        self._client.shutdown()
