"""The engine's tokens and log-probs are those of the plain loop: every strategy, alone and in mixed batches."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from typing import Any

import pytest

from motet.composers.exits import Depth
from motet.composers.plan import Plan, single
from motet.composers.schedule import ThoughtSpelling
from motet.composers.spec import build_plan, parse_composition, strategy_names
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.outputs import TokenOutput
from motet.engines.torch import TorchEngine
from tests.composers.test_laws import example
from tests.engines.conftest import PlainLoop
from tests.tiny import MAKERS, SHAPE, VOCAB

TOLERANCE = 1e-4
DEPTH = Depth(SHAPE["num_hidden_layers"])
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
        {
            "strategy": "contrastive",
            "form": "original",
            "amateur": {"model": "gemma", "last_tokens": 1},
            "amateur_temperature": 0.5,
        },
    ),
    ("llama", {"strategy": "novelty", "untuned": "llama-b", "lambda": 0.7}),
    ("qwen", {"strategy": "unlearn", "assistant": "gpt2"}),
    ("mistral", {"strategy": "context_aware", "without": {"prompt": ""}, "alpha": 0.5}),
    ("llama", {"strategy": "guidance", "scale": 1.7}),
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
    ("qwen", {"strategy": "divergence", "without": "llama-b", "with": "gpt2", "schedule": {"warmup": 2}}),
    ("gemma", {"strategy": "causal", "names": "x", "others": ["y", "z"]}),
    ("llama", {"strategy": "cascade", "small": "llama-b", "measure": "max_prob", "threshold": 0.05}),
    ("qwen", {"strategy": "cascade", "small": {"model": "gpt2", "temperature": 0.5}, "measure": "margin"}),
    (
        "gemma",
        {
            "strategy": "cascade",
            "small": "mistral",
            "measure": "entropy",
            "threshold": 4.5,
            "schedule": {"points": [{"token": 0, "scale": 0.5}, {"token": 6, "scale": 1}]},
        },
    ),
    ("llama", {"strategy": "sparse", "members": ["llama", {"model": "qwen", "weight": 0.5}], "agreement": 0.02}),
    ("qwen", {"strategy": "sparse", "members": ["gpt2", "qwen", "llama"], "schedule": {"warmup": 3}}),
    ("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"}),
    ("llama", {"strategy": "routed", "assistant": "qwen"}),
    ("llama-b", {"strategy": "routed", "assistant": "mistral"}),
    ("gemma", {"strategy": "routed", "assistant": {"model": "gpt2", "temperature": 0.7}, "threshold": None}),
    ("llama", {"strategy": "routed", "assistant": "llama-b", "threshold": 0.3, "schedule": {"warmup": 3}}),
    ("mistral", {"strategy": "adaptive_temperature"}),
    ("mistral", {"strategy": "adaptive_temperature", "schedule": {"warmup": 3}}),
    ("qwen", {"strategy": "adaptive_temperature", "expert": "llama-b", "antiexpert": "gpt2"}),
    ("llama-c", {"strategy": "adapters", "adapters": ["llama", "qwen", {"model": "gpt2", "temperature": 0.8}]}),
    (
        "llama-c",
        {
            "strategy": "adapters",
            "adapters": ["llama-b", "mistral", "gemma"],
            "share": 0.2,
            "schedule": {"points": [{"token": 0, "scale": 0}, {"token": 9, "scale": 2}], "linear": True},
        },
    ),
    ("llama", {"strategy": "budget", "expert": "llama-b", "antiexpert": "llama-c", "epsilon": 0.2}),
    ("gemma", {"strategy": "discriminator", "wanted": "llama-b", "unwanted": "llama-c", "omega": 3, "mass": 1}),
    (
        "llama",
        {
            "strategy": "proxy_tuning",
            "expert": {"model": "llama-b", "temperature": 0.7},
            "antiexpert": "llama-c",
            "schedule": {"warmup": 5},
        },
    ),
    (
        "qwen",
        {
            "compose": [
                {"strategy": "unlearn", "assistant": {"model": "gpt2", "temperature": 1.5}, "schedule": {"warmup": 3}},
                {"strategy": "guidance", "scale": 2.0},
            ],
            "budget": {"epsilon": 0.3},
        },
    ),
    (
        "gemma",
        {
            "strategy": "discriminator",
            "wanted": {"model": "llama-b", "temperature": 0.8},
            "unwanted": "llama-c",
            "omega": 3,
            "mass": 0.5,
            "schedule": {"points": [{"token": 0, "scale": 0}, {"token": 9, "scale": 2}], "linear": True},
        },
    ),
    (
        "llama",
        {
            "strategy": "mixture",
            "members": [{"model": "llama", "temperature": 1.3}, "mistral"],
            "schedule": {"warmup": 4},
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
    ("llama", {"strategy": "layer_contrast", "layers": [0, 1]}),
    ("gemma", {"strategy": "layer_contrast", "layers": [0, 1, 2], "select": "entropy", "form": "extrapolation"}),
    ("gpt2", {"strategy": "layer_contrast", "layers": [1, 0], "alpha": 0.6, "mask": None}),
    ("mistral", {"strategy": "layer_contrast", "bucket": "high", "schedule": {"warmup": 3}}),
    (
        "llama",
        {
            "compose": [
                {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
                {"strategy": "layer_contrast", "layers": [0, 1], "alpha": 0.5, "mask": 0.01},
            ]
        },
    ),
]


def plan_of(base: str, composition: dict[str, Any]) -> Plan:
    known = list(MAKERS)
    return build_plan(parse_composition(composition), base, known=known, token_id=lambda _: None, depth=DEPTH)


# a strategy that is not written above: as its case in test_laws writes it
ROLES = {"base": "llama", "expert": "llama-b", "anti": "llama-c", "other": "qwen"}
WRITTEN = {composition.get("strategy", "compose") for _, composition in COMPOSITIONS}
FURTHER = [("llama", example(name, **ROLES)) for name in strategy_names() if name not in WRITTEN]
PHASES = plan_of(
    "llama",
    {
        "compose": [
            {"strategy": "unlearn", "assistant": "gpt2", "schedule": {"phase": "thought"}},
            {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c", "schedule": {"phase": "answer"}},
        ]
    },
)
ENDS = tuple((token, "end") for token in range(0, 64, 5))  # of the thought
PLANS = [single(name) for name in MAKERS] + [plan_of(*composition) for composition in (*COMPOSITIONS, *FURTHER)]
PHASED = replace(PHASES, thought=ThoughtSpelling("", "end", ENDS))


def test_every_strategy_is_covered() -> None:
    assert {plan.strategy for plan in PLANS} >= set(strategy_names())


def request_for(plan: Plan, rng: random.Random, name: str = "r", **sampling: Any) -> GenerationRequest:
    """Contexts of unlike lengths, sometimes text to score first; equal `prompt`s read the same context."""
    contexts: dict[object, tuple[int, ...]] = {}
    for stream in plan.readers:
        length = rng.randrange(1, 60)
        contexts.setdefault((stream.prompt, stream.role), tuple(rng.randrange(3, VOCAB) for _ in range(length)))
    forced = tuple(rng.randrange(3, VOCAB) for _ in range(rng.choice([0, 0, 3, 21])))
    max_tokens = rng.randrange(0 if forced else 1, 16)
    defaults: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, "top_logprobs": 3}
    chosen = tuple(contexts[stream.prompt, stream.role] for stream in plan.readers)
    chosen += chosen[:1] * len(plan.exits)
    return GenerationRequest(name, plan, chosen, SamplingParams(**{**defaults, **sampling}), forced)


def assert_same(outputs: list[TokenOutput], expected: list[tuple[int, float]]) -> None:
    assert [output.token for output in outputs] == [token for token, _ in expected]
    for output, (_, logprob) in zip(outputs, expected, strict=True):
        assert output.logprob == logprob or abs(output.logprob - logprob) <= TOLERANCE
        assert output.top == tuple(sorted(output.top, key=lambda pair: -pair[1]))
        for token, value in output.top:
            if token == output.token:
                assert value == output.logprob, "chosen and top values must be the same float"


@pytest.mark.parametrize("plan", [*PLANS, PHASED], ids=lambda plan: f"{plan.streams[0].model}-{plan.strategy}")
async def test_alone(plan: Plan, engine: TorchEngine, plain_loop: PlainLoop) -> None:
    request = request_for(plan, random.Random(str(plan)))
    outputs = [output async for output in engine.generate(request)]
    assert_same(outputs, plain_loop.greedy(plan, request.contexts, request.forced, request.sampling.max_tokens))
    assert [output.forced for output in outputs] == [True] * len(request.forced) + [False] * request.sampling.max_tokens
    assert outputs[-1].finish == "length"


async def test_mixed_batch_that_joins_and_leaves(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    """42 requests over all strategies and architectures, arriving while others run, of unlike lengths."""
    rng = random.Random(0)
    requests = [request_for(plan, rng) for plan in PLANS * 2]
    rng.shuffle(requests)
    most = 0

    async def run(index: int, request: GenerationRequest) -> list[TokenOutput]:
        nonlocal most
        await asyncio.sleep(0.01 * index)
        outputs: list[TokenOutput] = []
        async for output in engine.generate(request):
            outputs.append(output)
            most = max(most, engine.stats().running)
        return outputs

    answers = await asyncio.gather(*(run(index, request) for index, request in enumerate(requests)))
    for request, outputs in zip(requests, answers, strict=True):
        expected = plain_loop.greedy(request.plan, request.contexts, request.forced, request.sampling.max_tokens)
        assert_same(outputs, expected)
    assert len(requests) >= 16
    assert most >= 8, "the batch never mixed"


async def test_trace_tells_what_each_voice_did(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    plan = PLANS[len(MAKERS)]
    request = request_for(plan, random.Random(5), trace_top=4, max_tokens=6)
    shared: list[int] = []
    async for output in engine.generate(request):
        trace = output.trace
        assert trace is not None
        alone = [
            plain_loop.distribution(single(stream.model), (context,), shared)
            for stream, context in zip(plan.streams, request.contexts, strict=True)
        ]
        composed = plain_loop.distribution(plan, request.contexts, shared)
        for k, value in enumerate(trace.member_logprobs):
            assert value == pytest.approx(float(alone[k][output.token]), abs=TOLERANCE)
        base = alone[0]
        assert trace.kl == pytest.approx(float((composed.exp() * (composed - base)).sum()), abs=1e-3)
        assert trace.base_rank == int((base > base[output.token]).sum())
        assert trace.argmax_moved == bool(base.argmax() != composed.argmax())
        assert [token for token, _ in trace.base_top] == base.topk(4).indices.tolist()
        assert [token for token, _ in trace.composed_top] == composed.topk(4).indices.tolist()
        shared.append(output.token)


async def test_score_of_a_masked_token_is_minus_infinity(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    plan = plan_of("llama", {"strategy": "contrastive", "amateur": "qwen", "alpha": 0.9})
    context = (5, 6, 7)
    composed = plain_loop.distribution(plan, (context, context), [])
    masked = int((composed == -math.inf).nonzero()[0])
    request = GenerationRequest("m", plan, (context, context), SamplingParams(max_tokens=0), forced=(masked, 9))
    outputs = [output async for output in engine.generate(request)]
    assert outputs[0].logprob == -math.inf
    assert len(outputs) == 2
