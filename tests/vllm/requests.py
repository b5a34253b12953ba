"""Requests over the tiny members, and what it means that two engines answer alike."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from motet.composers.plan import Plan, single
from motet.composers.schedule import ThoughtSpelling
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import Engine, GenerationRequest, SamplingParams
from motet.engines.outputs import TokenOutput, Voices
from tests.vllm.models import MAKERS, VOCAB

TOLERANCE = 1e-4
# every strategy that reads one prompt, over members of one family and of several
COMPOSITIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"}),
    ("qwen", {"strategy": "proxy_tuning", "expert": "mistral", "antiexpert": "gpt2", "alpha": 0.6}),
    ("gemma", {"strategy": "eft", "tuned": "qwen", "reference": "llama", "beta": 1.4}),
    (
        "llama",
        {
            "strategy": "eft",
            "traits": [
                {"tuned": "llama-b", "reference": "llama-c", "beta": 0.5},
                {"tuned": "mistral", "reference": "qwen", "beta": 0.8, "top_p": 0.8},
            ],
        },
    ),
    ("mistral", {"strategy": "contrastive", "amateur": "llama"}),
    (
        "gpt2",
        {"strategy": "contrastive", "form": "original", "amateur": "gemma", "amateur_temperature": 0.5},
    ),
    ("llama", {"strategy": "novelty", "untuned": "llama-b", "lambda": 0.7}),
    ("qwen", {"strategy": "unlearn", "assistant": "gpt2"}),
    ("gpt2", {"strategy": "experts", "expert": ["llama", "qwen"], "antiexpert": "gemma", "alpha": 0.4}),
    (
        "llama",
        {"strategy": "product", "members": [{"model": "llama", "weight": 0.5}, {"model": "qwen", "weight": 0.7}]},
    ),
    (
        "gemma",
        {
            "strategy": "rules",
            "eos_ramp": {"tokens": 8, "weight": 2.0},
            "repetition": 1.5,
            "token_offsets": {"id:7": 2.0},
        },
    ),
    ("llama", {"strategy": "mixture", "members": ["llama", {"model": "qwen", "weight": 0.5}]}),
    ("qwen", {"strategy": "generic", "reinforced": "gpt2"}),
    ("llama", {"strategy": "divergence", "without": "llama-b", "with": "llama-c", "form": "rank"}),
    ("qwen", {"strategy": "divergence", "without": "llama-b", "with": "gpt2"}),
    ("llama", {"strategy": "sparse", "members": ["llama", "qwen"], "agreement": 0.02}),
    ("llama", {"strategy": "cascade", "small": "llama-b", "threshold": 0.05}),
    ("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"}),
    ("llama", {"strategy": "budget", "expert": "llama-b", "antiexpert": "llama-c", "epsilon": 0.2}),
    (
        "llama",
        {
            "strategy": "proxy_tuning",
            "expert": {"model": "llama-b", "temperature": 0.7},
            "antiexpert": "llama-c",
            "schedule": {"warmup": 3},
        },
    ),
    (
        "gemma",
        {
            "compose": [
                {"strategy": "unlearn", "assistant": "gpt2", "schedule": {"warmup": 3}},
                {"strategy": "contrastive", "amateur": {"model": "llama", "temperature": 1.5}},
            ],
            "budget": {"epsilon": 0.3},
        },
    ),
    (
        "qwen",
        {
            "strategy": "generic",
            "reinforced": "gpt2",
            "schedule": {"points": [{"token": 0, "scale": 0}, {"token": 8, "scale": 2}], "linear": True},
        },
    ),
    (
        "llama",
        {
            "compose": [
                {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
                {"strategy": "unlearn", "assistant": "gpt2", "weight": 0.4},
                {"strategy": "rules", "repetition": 0.7},
            ]
        },
    ),
]
# strategies whose point is that streams read different prompts
SPLIT: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"strategy": "context_aware", "without": {"prompt": ""}, "alpha": 0.5}),
    ("llama", {"strategy": "guidance", "scale": 1.7}),
    ("llama", {"strategy": "causal", "names": "x", "others": ["y", "z"]}),
    ("llama", {"strategy": "hesitation", "alpha": 0.6}),
    (
        "llama",
        {
            "strategy": "proxy_tuning",
            "base": {"model": "llama", "prompt": ""},
            "expert": "llama-b",
            "antiexpert": {"model": "llama-c", "prompt": "x"},
        },
    ),
]


def plan_of(base: str, composition: dict[str, Any]) -> Plan:
    own = None if "base" in composition else base
    return build_plan(parse_composition(composition), own, known=list(MAKERS), token_id=lambda text: None)


PLANS = [single(name) for name in MAKERS] + [plan_of(*composition) for composition in COMPOSITIONS]
PHASED = replace(
    plan_of(
        "llama",
        {
            "compose": [
                {"strategy": "unlearn", "assistant": "gpt2", "schedule": {"phase": "thought"}},
                {
                    "strategy": "proxy_tuning",
                    "expert": "llama-b",
                    "antiexpert": "llama-c",
                    "schedule": {"phase": "answer", "warmup": 2},
                },
            ]
        },
    ),
    thought=ThoughtSpelling("", "end", tuple((token, "end") for token in range(0, VOCAB, 5))),
)
SPLIT_PLANS = [plan_of(*composition) for composition in SPLIT]


def rng_of(plan: Plan) -> random.Random:
    """The texts of a plan, by the names and fields that it had when these texts were chosen: another text may hold a
    near tie, which two engines round differently, or end where the masks of a test leave no token."""
    written = str(plan).replace("RuleVector(", "Rules(").replace("Rule(", "(")
    written = written.replace(", scheduled=()", "").replace(", schedule=None", "").replace(", pondered=None", "")
    written = written.replace(", exit=None", "").replace(", phase=None", "")
    return random.Random(written.replace("(schedule=None)", "()"))


def tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCAB) for _ in range(count))


def request_for(
    plan: Plan,
    rng: random.Random,
    *,
    context: tuple[int, ...] | None = None,
    forced: tuple[int, ...] = (),
    prompt_forced: int = 0,
    n: int = 1,
    **sampling: Any,
) -> GenerationRequest:
    """Streams with the same prompt read the same context."""
    contexts: dict[object, tuple[int, ...]] = {None: context or tokens(rng, rng.randrange(1, 150))}
    for stream in plan.streams:
        contexts.setdefault(stream.prompt, tokens(rng, rng.randrange(1, 40)))
    defaults: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True, "top_logprobs": 3}
    chosen = tuple(contexts[stream.prompt] for stream in plan.streams)
    params = SamplingParams(**{**defaults, **sampling})
    return GenerationRequest(f"r{rng.randrange(1 << 30)}", plan, chosen, params, forced, prompt_forced, n)


async def answer(engine: Engine, request: GenerationRequest) -> list[TokenOutput]:
    """All outputs, choice by choice."""
    engine.check(request)
    outputs = [output async for output in engine.generate(request)]
    return sorted(outputs, key=lambda output: output.choice)


async def answers(engine: Engine, requests: Sequence[GenerationRequest]) -> list[list[TokenOutput]]:
    return list(await asyncio.gather(*(answer(engine, request) for request in requests)))


def assert_alike(ours: Sequence[TokenOutput], theirs: Sequence[TokenOutput]) -> None:
    """The same tokens, and the same numbers about them."""
    assert [(o.choice, o.token, o.forced, o.finish) for o in ours] == [
        (o.choice, o.token, o.forced, o.finish) for o in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert close(one.logprob, other.logprob)
        assert len(one.top) == len(other.top)
        assert all(close(a, b) for (_, a), (_, b) in zip(one.top, other.top, strict=True))
        assert [value for token, value in one.top if token == one.token] in ([], [one.logprob])
        assert (one.trace is None) == (other.trace is None)
        if one.trace is not None and other.trace is not None:
            assert all(map(close, one.trace.member_logprobs, other.trace.member_logprobs))
            assert abs(one.trace.kl - other.trace.kl) <= 1e-3
            assert (one.trace.base_rank, one.trace.argmax_moved) == (other.trace.base_rank, other.trace.argmax_moved)
            assert one.trace.alpha == pytest.approx(other.trace.alpha, abs=1e-3)
            assert_same_voices(one.trace.voices, other.trace.voices)
            for name in ("base_top", "composed_top"):
                pairs = zip(getattr(one.trace, name), getattr(other.trace, name), strict=True)
                assert all(close(a, b) for (_, a), (_, b) in pairs)


def assert_same_voices(ours: Voices | None, theirs: Voices | None) -> None:
    """Alternatives of equal log-prob may stand in another order, or one of them be left out."""
    assert (ours is None) == (theirs is None)
    if ours is None or theirs is None:
        return
    assert ours.ranks == theirs.ranks
    assert ours.pushes == pytest.approx(theirs.pushes, abs=1e-3)
    known = {one.token: one for one in theirs.alternatives}
    for one in ours.alternatives:
        if one.token in known:
            assert close(one.logprob, known[one.token].logprob)
            assert all(map(close, one.members, known[one.token].members))
    assert sum(one.token in known for one in ours.alternatives) > len(known) / 2 or not known


def close(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= TOLERANCE or (math.isnan(a) and math.isnan(b))
