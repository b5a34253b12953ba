"""Streams that read different prompts: linked requests in lockstep, and whatever can come between them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from motet.composers.plan import Plan, Prompt, single
from motet.engines.base import GenerationRequest, RequestTooLarge, SamplingParams
from motet.engines.torch import TorchEngine
from motet.engines.vllm.engine import VllmEngine
from motet.engines.vllm.internals import touch
from motet.engines.vllm.scheduler import LinkedScheduler
from motet.engines.vllm.wire import KEY
from tests.vllm.models import EOS
from tests.vllm.requests import SPLIT_PLANS, answer, answers, assert_alike, request_for, rng_of, tokens

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("plan", SPLIT_PLANS, ids=lambda plan: plan.strategy)
async def test_different_contexts(plan: Plan, engine: VllmEngine, embedded: TorchEngine) -> None:
    """Greedy and drawn, with text to score first and a trace; one context is long, one is a single token."""
    rng = rng_of(plan)
    requests = [
        request_for(plan, rng, context=tokens(rng, 150), forced=tokens(rng, 5), trace_top=2),
        request_for(plan, rng, context=tokens(rng, 1), temperature=0.9, seed=4, n=2, repetition_penalty=1.2),
        request_for(plan, rng, forced=tokens(rng, 9), max_tokens=0, top_logprobs=1, trace_top=0),
        request_for(plan, rng, bad_words=((5,), (6, 7)), temperature=1.0, seed=6, min_tokens=4, ignore_eos=False),
    ]
    for ours, theirs in zip(await answers(engine, requests), await answers(embedded, requests), strict=True):
        assert_alike(ours, theirs)


async def test_groups_among_others_under_memory_pressure(engine: VllmEngine, embedded: TorchEngine) -> None:
    """18 groups among growing plain requests, more than fit: contexts are preempted, and still move together."""
    rng = random.Random(1)
    requests = [
        request_for(plan, rng, context=tokens(rng, rng.randrange(50, 120)), max_tokens=rng.randrange(40, 90))
        for plan in SPLIT_PLANS * 6
    ]
    requests += [request_for(single("qwen"), rng, context=tokens(rng, 20), max_tokens=150) for _ in range(28)]
    rng.shuffle(requests)
    before = engine.tally.preemptions
    ours = await asyncio.wait_for(answers(engine, requests), 100)
    for one, other in zip(ours, await answers(embedded, requests), strict=True):
        assert_alike(one, other)
    assert engine.tally.preemptions > before


@pytest.mark.parametrize("plan", SPLIT_PLANS[:1], ids=lambda plan: plan.strategy)
async def test_ends_end_the_group(plan: Plan, engine: VllmEngine, embedded: TorchEngine) -> None:
    rng = random.Random(2)
    request = request_for(plan, rng, ignore_eos=False, min_tokens=5, max_tokens=100, logit_bias=((EOS, 60.0),))
    ours = await answer(engine, request)
    assert_alike(ours, await answer(embedded, request))
    assert ours[-1].finish == "stop"
    assert len(ours) == 6


async def test_leaving_ends_the_group(engine: VllmEngine, embedded: TorchEngine) -> None:
    """Closed while running, stopped choice by choice, cancelled while waiting: nothing is left behind."""
    rng = random.Random(3)
    requests = [request_for(plan, rng, max_tokens=200) for plan in SPLIT_PLANS * 6]
    generations = [engine.generate(request) for request in requests]
    for generation in generations[::2]:
        await anext(generation)
        generation.stop_choice(0)
    await asyncio.gather(*(generation.aclose() for generation in generations))
    after = request_for(SPLIT_PLANS[1], rng)
    assert_alike(await asyncio.wait_for(answer(engine, after), 30), await answer(embedded, after))
    assert engine.stats().waiting == 0


async def test_a_group_that_never_fits_is_refused(engine: VllmEngine) -> None:
    rng = random.Random(4)
    plan = SPLIT_PLANS[0]
    with pytest.raises(RequestTooLarge, match="512"):
        engine.check(request_for(plan, rng, context=tokens(rng, 500), max_tokens=100))


async def test_blocks_count_not_tokens(engine: VllmEngine) -> None:
    """Contexts that would fit by their tokens, and never by their blocks: some would wait for the others for ever."""
    rng = random.Random(5)
    prompts = [Prompt(str(number)) for number in range(8)]
    plan = single("llama")
    plan = replace(plan, streams=tuple(replace(plan.streams[0], prompt=prompt) for prompt in prompts))
    contexts = tuple(tokens(rng, 420) for _ in prompts)
    request = GenerationRequest("r", plan, contexts, SamplingParams(max_tokens=40))
    assert 8 * 460 < engine.capacity.tokens < 8 * 480
    with pytest.raises(RequestTooLarge, match="whole blocks of 32"):
        engine.check(request)


async def test_partners_of_running_contexts_go_first() -> None:
    """A long request at the head of the queue could wait for memory that one of them holds."""

    class Request:
        def __init__(self, group: str | None, size: int = 2) -> None:
            link = {"link": {"group": group, "size": size}} if group else {}
            self.group, self.sampling_params = group, SimpleNamespace(extra_args={KEY: link})

    scheduler: Any = object.__new__(LinkedScheduler)
    scheduler.running = [Request("a"), Request("b"), Request("b"), Request("c", 3), Request(None)]
    scheduler.waiting = touch("FCFSRequestQueue")(map(Request, [None, "d", "c", "a", "d", "c"]))
    scheduler._call_partners()
    assert [waiting.group for waiting in scheduler.waiting] == ["c", "a", "c", None, "d", "d"]
