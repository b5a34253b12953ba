"""vLLM's answers are those of the embedded engine: every strategy, feature by feature, alone and mixed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from motet.composers.plan import Plan, single
from motet.engines.base import NoTokenPossible
from motet.engines.torch import TorchEngine
from motet.engines.vllm.engine import VllmEngine
from tests.vllm.models import EOS, VOCAB
from tests.vllm.requests import PHASED, PLANS, answer, answers, assert_alike, plan_of, request_for, rng_of, tokens

pytestmark = pytest.mark.asyncio(loop_scope="session")
PROXY = plan_of("llama", {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"})
CONTRASTIVE = plan_of("mistral", {"strategy": "contrastive", "amateur": "llama"})
DYNAMIC = plan_of("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"})


@pytest.mark.parametrize("plan", [*PLANS, PHASED], ids=lambda plan: f"{plan.streams[0].model}-{plan.strategy}")
async def test_every_strategy(plan: Plan, engine: VllmEngine, embedded: TorchEngine) -> None:
    """Prompts that are cut into chunks, text to score first, and a trace of every token."""
    rng = rng_of(plan)
    request = request_for(plan, rng, context=tokens(rng, 100), forced=tokens(rng, 7), trace_top=2, trace_members=True)
    assert_alike(await answer(engine, request), await answer(embedded, request))


async def test_mixed_batch_under_memory_pressure(engine: VllmEngine, embedded: TorchEngine) -> None:
    """46 requests of all strategies arrive while others run; the cache is too small for all of them at once."""
    rng = random.Random(1)
    requests = [
        request_for(plan, rng, context=tokens(rng, rng.randrange(40, 130)), max_tokens=rng.randrange(20, 140))
        for plan in PLANS * 2
    ]
    rng.shuffle(requests)
    before = engine.tally.preemptions
    most = 0

    async def run(index: int) -> Any:
        nonlocal most
        await asyncio.sleep(0.005 * index)
        outputs: list[Any] = []
        async for output in engine.generate(requests[index]):
            outputs.append(output)
            most = max(most, engine.stats().running)
        return outputs

    ours = await asyncio.gather(*map(run, range(len(requests))))
    for one, other in zip(ours, await answers(embedded, requests), strict=True):
        assert_alike(one, other)
    assert most >= 16
    assert engine.tally.preemptions > before


async def test_a_prefix_is_found_with_its_own_salt_alone(engine: VllmEngine) -> None:
    rng = random.Random(3)
    request = request_for(PROXY, rng, context=tokens(rng, 120), max_tokens=2)
    found: list[int] = []
    for salt in ("one", "two", "one", "two", ""):
        generation = engine.generate(replace(request, cache_salt=salt))
        assert [output async for output in generation]
        found.append(generation.cached_tokens)
    assert [count >= 96 for count in found] == [False, False, True, True, False]
    assert found[0] == found[1] == found[4] == 0


async def test_a_prefix_is_found_by_compositions_of_the_same_members_alone(
    engine: VllmEngine, embedded: TorchEngine
) -> None:
    """A step runs only the members that its requests read: no other one has keys and values of this prefix."""
    rng = random.Random(2)
    context = tokens(rng, 120)
    seen: set[frozenset[str]] = set()
    for request in [request_for(plan, rng, context=context) for plan in [single("llama"), *PLANS]]:
        generation = engine.generate(request)
        ours = [output async for output in generation]
        models = frozenset(stream.model for stream in request.plan.streams)
        assert (generation.cached_tokens >= 96) == (models in seen), request.plan
        assert models in seen or generation.cached_tokens == 0
        seen.add(models)
        assert_alike(ours, await answer(embedded, request))
    assert len(seen) < len(PLANS), "some of them read the same members"


async def test_plain_requests_beside_composed_ones(engine: VllmEngine, embedded: TorchEngine) -> None:
    """Members come and go with the requests of a step."""
    rng = random.Random(13)
    plans = [single("llama"), PROXY, single("mistral"), single("gemma"), CONTRASTIVE] * 3
    requests = [request_for(plan, rng, context=tokens(rng, 60), max_tokens=4 + 3 * i) for i, plan in enumerate(plans)]
    for ours, theirs in zip(await answers(engine, requests), await answers(embedded, requests), strict=True):
        assert_alike(ours, theirs)


@pytest.mark.parametrize("plan", [PROXY, CONTRASTIVE], ids=["proxy", "contrastive"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8, "seed": 11},
        {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.8},
        {"temperature": 1.3, "seed": 5, "min_p": 0.05, "top_p": 0.9},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.3},
        {"logit_bias": ((7, 4.0), (9, -100.0)), "temperature": 0.7, "seed": 1},
        {"allowed_token_ids": (5, 6, 7, 8, 30, 31), "max_tokens": 8},
        {"bad_words": ((5,), (8, 9)), "temperature": 1.0, "seed": 8},
        {"ignore_eos": False, "min_tokens": 6, "logit_bias": ((EOS, 50.0),)},
        {"ignore_eos": False, "stop_token_ids": tuple(range(3, 60)), "temperature": 1.0, "seed": 2},
    ],
    ids=lambda sampling: "-".join(sampling),
)
async def test_drawing(plan: Plan, sampling: dict[str, Any], engine: VllmEngine, embedded: TorchEngine) -> None:
    """The same seeds draw the same tokens; n choices differ and repeat."""
    request = request_for(plan, random.Random(3), n=2, **sampling)
    ours = await answer(engine, request)
    assert_alike(ours, await answer(embedded, request))
    assert_alike(ours, await answer(engine, request))


@pytest.mark.parametrize("plan", [single("gemma"), PROXY, DYNAMIC], ids=["plain", "proxy", "dynamic"])
async def test_scoring(plan: Plan, engine: VllmEngine, embedded: TorchEngine) -> None:
    """As /v1/score and echo ask: nothing is generated, or a prompt is scored that rules do not count as written."""
    rng = random.Random(4)
    requests = [
        request_for(plan, rng, forced=tokens(rng, 90), max_tokens=0, top_logprobs=1, trace_top=0),
        request_for(plan, rng, context=tokens(rng, 1), forced=tokens(rng, 70), prompt_forced=70, top_logprobs=5),
    ]
    for ours, theirs in zip(await answers(engine, requests), await answers(embedded, requests), strict=True):
        assert_alike(ours, theirs)


async def test_masks_that_exclude_each_other_fail_alone(engine: VllmEngine, embedded: TorchEngine) -> None:
    rng = random.Random(5)
    bad = request_for(PROXY, rng, allowed_token_ids=(5,), bad_words=((5,),))
    good = request_for(PROXY, rng)
    failed, fine = await asyncio.gather(answer(engine, bad), answer(engine, good), return_exceptions=True)
    assert isinstance(failed, NoTokenPossible)
    assert not isinstance(fine, BaseException)
    assert_alike(fine, await answer(embedded, good))


async def test_what_is_left_early_frees_its_memory(engine: VllmEngine) -> None:
    rng = random.Random(6)
    generation = engine.generate(request_for(PROXY, rng, n=3, max_tokens=200))
    seen: set[int] = set()
    async for output in generation:
        seen.add(output.choice)
        if output.choice == 1:
            generation.stop_choice(1)
            break
    await generation.aclose()
    for _ in range(200):
        if engine.stats().running == 0 and engine.stats().kv_bytes_used == 0:
            break
        await answer(engine, request_for(single("llama"), rng, max_tokens=1))  # a step, so that stats are fresh
        await asyncio.sleep(0.05)
    assert engine.stats().running == 0


async def test_traces_that_the_vocabulary_cannot_hold_are_refused(engine: VllmEngine) -> None:
    with pytest.raises(Exception, match=f"vocabulary of {VOCAB}"):
        engine.check(request_for(PROXY, random.Random(7), trace_top=80))


async def test_a_request_that_does_not_fit_is_refused_with_numbers(engine: VllmEngine) -> None:
    with pytest.raises(Exception, match=r"600 tokens.*512"):
        engine.check(request_for(PROXY, random.Random(8), context=(5,) * 400, max_tokens=200))


async def test_rules_with_state_are_refused(engine: VllmEngine) -> None:
    for fields in (
        {"strategy": "discriminator", "wanted": "llama-b", "unwanted": "llama-c"},
        {"strategy": "routed", "assistant": "llama-b"},
        {"strategy": "adaptive_temperature"},
        {"strategy": "adapters", "adapters": ["llama-b"]},
        {"strategy": "layer_contrast"},
        {"strategy": "layer_contrast", "layers": [0, 1]},
    ):
        reason = engine.supports(plan_of("gemma", fields))
        assert reason is not None
        assert "embedded engine" in reason
