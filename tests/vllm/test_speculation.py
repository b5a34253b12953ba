"""Drafts change how many steps an answer takes, and nothing of the answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from motet.composers.plan import single
from motet.engines.base import GenerationRequest
from motet.engines.torch import TorchEngine
from motet.models.info import ModelInfo
from tests.vllm.conftest import SMALL, start_engine
from tests.vllm.models import EOS
from tests.vllm.requests import SPLIT_PLANS, answers, assert_alike, plan_of, request_for, tokens
from tests.vllm.test_grammars import of_regex

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
MEMBERS = ("llama", "llama-b", "llama-c")
DRAFTERS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "expert": {"model": "llama-b", "num_speculative_tokens": 3},
}


def requests() -> list[GenerationRequest]:
    """Text that repeats itself, an expert that is nearly alone, and everything that a draft could disturb."""
    rng = random.Random(0)
    near = {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c", "alpha": 0.3}
    plans = [
        single("llama-b"),
        plan_of("llama-b", near),
        plan_of("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"}),
        plan_of("llama-b", {"strategy": "rules", "eos_ramp": {"tokens": 8, "weight": 2.0}, "repetition": 1.5}),
    ]
    repeated = tokens(rng, 12) * 8
    wishes: list[dict[str, Any]] = [
        {"trace_top": 2},
        {"forced": tokens(rng, 5), "top_logprobs": 4},
        {"temperature": 0.3, "seed": 5, "n": 2, "top_logprobs": 0},
        {"temperature": 1.0, "seed": 7, "top_k": 20, "top_p": 0.9},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.2, "bad_words": ((5,), (6, 7))},
        {"ignore_eos": False, "min_tokens": 6, "logit_bias": ((EOS, 4.0),)},
        {"stop_token_ids": tuple(range(3, 40)), "temperature": 0.5, "seed": 2},
        {"grammar": of_regex("([a-f]{2,4}[0-9])+"), "temperature": 0.5, "seed": 4},  # guesses that it forbids
        {"grammar": of_regex("(yes, ){3,9}sir"), "ignore_eos": False, "trace_top": 1},  # guesses that it makes right
    ]
    mixed: list[GenerationRequest] = []
    for plan in plans:
        for wish in wishes:
            options: dict[str, Any] = {"max_tokens": 40, **wish}
            mixed.append(request_for(plan, rng, context=repeated, **options))
    mixed += [request_for(plan, rng, temperature=0.5, seed=3, max_tokens=20) for plan in SPLIT_PLANS[1:]]
    # vLLM pads a new request of one token with guesses, of linked ones too
    return mixed + [request_for(plan, rng, context=tokens(rng, 1), max_tokens=20) for plan in SPLIT_PLANS[1:] * 2]


@pytest.mark.parametrize("drafter", DRAFTERS)
async def test_answers_are_the_same(
    drafter: str, paths: Mapping[str, Path], infos: Mapping[str, ModelInfo], cache: Path, embedded: TorchEngine
) -> None:
    few = {name: infos[name] for name in MEMBERS}
    options = SMALL | {"speculative_config": DRAFTERS[drafter], "num_gpu_blocks_override": 300}
    engine = await asyncio.to_thread(start_engine, paths, few, cache, **options)
    try:
        wanted = requests()
        for ours, theirs in zip(await answers(engine, wanted), await answers(embedded, wanted), strict=True):
            assert_alike(ours, theirs)
        stats = engine.stats()
        assert 0 < stats.accepted_tokens < stats.draft_tokens, "some guesses were right, some wrong"
    finally:
        await engine.close()
