"""What the other tests do not ask of Model Runner V2; run by `test_runner_v2` in a process where that runner works."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from motet.composers.plan import single
from motet.engines.torch import TorchEngine
from motet.engines.vllm.engine import VllmEngine
from motet.engines.vllm.internals import touch
from motet.models.info import ModelInfo
from tests.vllm.conftest import SMALL, start_engine
from tests.vllm.models import EOS
from tests.vllm.requests import (
    COMPOSITIONS,
    PLANS,
    SPLIT_PLANS,
    answer,
    answers,
    assert_alike,
    plan_of,
    request_for,
    tokens,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")
RULED = ("gemma", {"strategy": "rules", "repetition": 1.5, "eos_ramp": {"tokens": 8, "weight": 2.0}})
MALFORMED: list[dict[str, Any]] = [
    {"composition": "no JSON"},
    {"composition": 7},
    {"composition": json.dumps({"strategy": "contrastive", "amateur": "nobody"})},
    {"motet": 3},
    {"motet": {"type": "RowSpec"}},
    {"motet": {"type": "RowSpec", "plan": "none"}},
    {"motet": {"type": "RowSpec", "plan": None, "link": {"type": "Link", "group": "g"}}},
]


def llm_of(engine: VllmEngine) -> Any:
    return engine._client._llm  # pyright: ignore[reportPrivateUsage]


async def ask(engine: VllmEngine, name: str, context: tuple[int, ...], extra: dict[str, Any], count: int = 10) -> Any:
    """The answer of vLLM itself, whose own sampler draws."""
    params = touch("SamplingParams")(
        temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False, logprobs=2, extra_args=extra
    )
    last = None
    async for out in llm_of(engine).generate({"prompt_token_ids": list(context)}, params, name):
        last = out
    assert last is not None
    return last.outputs[0]


async def test_it_is_the_second_runner(engine: VllmEngine) -> None:
    assert llm_of(engine).vllm_config.use_v2_model_runner


async def test_vllm_draws_where_a_client_of_its_own_asks(engine: VllmEngine, embedded: TorchEngine) -> None:
    """Beside requests whose drawing is ours; rules know what vLLM has drawn."""
    rng = random.Random(1)
    compositions = [*COMPOSITIONS[:3], RULED]
    contexts = [tokens(rng, 40 + 30 * number) for number in range(len(compositions))]
    wanted = [
        request_for(plan_of(*composition), rng, context=context, max_tokens=10)
        for composition, context in zip(compositions, contexts, strict=True)
    ]
    ours = [request_for(plan, rng, temperature=0.9, seed=3, top_p=0.9) for plan in PLANS[7:11]]
    texts = [json.dumps({"base": base, **composition}) for base, composition in compositions]
    theirs = asyncio.gather(
        *(
            ask(engine, f"own{number}", context, {"composition": text})
            for number, (context, text) in enumerate(zip(contexts, texts, strict=True))
        )
    )
    for one, other in zip(await answers(engine, ours), await answers(embedded, ours), strict=True):
        assert_alike(one, other)
    for drawn, request in zip(await theirs, wanted, strict=True):
        known = await answer(embedded, request)
        assert list(drawn.token_ids) == [output.token for output in known]
        told = [entries[token].logprob for entries, token in zip(drawn.logprobs, drawn.token_ids, strict=True)]
        assert told == pytest.approx([output.logprob for output in known], abs=1e-4)


async def test_what_nobody_has_checked_ends_alone(engine: VllmEngine, embedded: TorchEngine) -> None:
    rng = random.Random(2)
    good = [request_for(plan, rng) for plan in PLANS[7:10]]
    bad = asyncio.gather(*(ask(engine, f"bad{number}", (5, 6, 7), extra) for number, extra in enumerate(MALFORMED * 3)))
    for one, other in zip(await answers(engine, good), await answers(embedded, good), strict=True):
        assert_alike(one, other)
    assert all(output.token_ids[0] == EOS for output in await bad)
    assert engine.is_alive


@pytest.mark.timeout(500)
async def test_preempted_requests_groups_and_drafts_come_back(
    paths: dict[str, Path], infos: dict[str, ModelInfo], cache: Path, embedded: TorchEngine
) -> None:
    """Far more than fit at once: slots are lost and given again, with what was drawn before, while a model drafts."""
    rng = random.Random(3)
    few = {name: infos[name] for name in ("llama", "llama-b", "llama-c", "mistral")}
    plans = [plan for plan in PLANS if {stream.model for stream in plan.streams} <= set(few)][1::2]
    small = SMALL | {
        "num_gpu_blocks_override": 19,
        "speculative_config": {"model": "llama-b", "num_speculative_tokens": 2},
    }
    wishes: dict[str, Any] = {"max_tokens": 36, "temperature": 0.9, "seed": 4}
    requests = [request_for(plan, rng, context=tokens(rng, 30), **wishes) for plan in plans]
    requests += [request_for(plan, rng, context=tokens(rng, 40), max_tokens=24) for plan in SPLIT_PLANS]
    requests += [request_for(single("llama-b"), rng, context=tokens(rng, 20), max_tokens=40) for _ in range(4)]
    engine = await asyncio.to_thread(start_engine, paths, few, cache, **small)
    try:
        ours = await asyncio.wait_for(answers(engine, requests), 300)
        preempted, accepted = engine.tally.preemptions, engine.stats().accepted_tokens
    finally:
        await engine.close()
    for one, other in zip(ours, await answers(embedded, requests), strict=True):
        assert_alike(one, other)
    assert preempted > 0
    assert accepted > 0
