"""Rules that are no weighted sum in the engine: their state over chunks of scored text and generated tokens, and α."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch

from motet.composers.plan import Budget, Discriminator, Dynamic, Mixture, Plan, Relu, Routed, Rule, Stream
from motet.composers.rows import compose_logits
from motet.server.engines.base import GenerationRequest, SamplingParams, TokenOutput
from motet.server.engines.torch import TorchEngine
from tests.server.torch_engine.conftest import PlainLoop
from tests.server.torch_engine.test_exactness import assert_same
from tests.tiny import VOCAB

MEMBERS = ("llama", "llama-b", "llama-c", "llama-c", "llama-b")  # as many of them as a plan has streams
RULES: list[tuple[Rule, tuple[float, ...]]] = [
    (Relu(1.5), (1.0, 0.0, 0.0)),
    (Mixture(), (0.5, 0.3, 0.2)),
    (Discriminator(omega=2.0, mass=0.9), (1.0, 0.0, 0.0)),
    (Dynamic(), (1.0, 1.0, -1.0)),
    (Dynamic(), (1.0, 0.4, -0.4, 0.2, -0.2)),
    (Budget(0.05), (1.0, 1.0, -1.0)),
]


def request_for(rule: Rule, weights: tuple[float, ...], forced: int, seed: int) -> GenerationRequest:
    streams = tuple(Stream(f"s{k}", name, w) for k, (name, w) in enumerate(zip(MEMBERS, weights, strict=False)))
    rng = random.Random(seed)
    context = tuple(rng.randrange(3, VOCAB) for _ in range(9))
    scored = tuple(rng.randrange(3, VOCAB) for _ in range(forced))
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, trace_top=1)
    return GenerationRequest(f"r{seed}", Plan(streams, rule=rule), (context,) * len(streams), sampling, scored)


def plain(loop: PlainLoop, request: GenerationRequest) -> list[tuple[int, float]]:
    """Token by token, the sums of log-probs written out."""
    out: list[tuple[int, float]] = []
    shared: list[int] = []
    state = torch.zeros(1, 3, dtype=torch.float64)
    with torch.no_grad():
        for position in range(len(request.forced) + request.sampling.max_tokens):
            ids = torch.tensor([[*request.contexts[0], *shared]])
            members = MEMBERS[: len(request.plan.streams)]
            logits = torch.stack([loop.models[m](ids, use_cache=False).logits[0, -1:].double() for m in members])
            composed = compose_logits(request.plan, logits, state=state)[0]
            forced = position < len(request.forced)
            token = request.forced[position] if forced else int(composed.argmax())
            out.append((token, float(composed[token])))
            shared.append(token)
            logprobs = logits.log_softmax(-1)[:, 0, token]
            state = state + torch.tensor([[float(logprobs[1]), float(logprobs[2]), 1.0]], dtype=torch.float64)
    return out


async def run(engine: TorchEngine, request: GenerationRequest) -> list[TokenOutput]:
    return [output async for output in engine.generate(request)]


@pytest.mark.parametrize("forced", [0, 21])
async def test_a_batch_of_all_rules_is_the_plain_loop(engine: TorchEngine, plain_loop: PlainLoop, forced: int) -> None:
    requests = [request_for(rule, weights, forced, seed) for seed, (rule, weights) in enumerate(RULES)]
    answers = await asyncio.gather(*(run(engine, request) for request in requests))
    for request, outputs in zip(requests, answers, strict=True):
        assert_same(outputs, plain(plain_loop, request))
        solved = [output.trace.alpha for output in outputs if output.trace is not None]
        assert len(solved) == len(outputs)
        pairs = (len(request.plan.streams) - 1) // 2 if isinstance(request.plan.rule, Dynamic | Budget) else 0
        assert {len(alpha) for alpha in solved} == {pairs}
        assert all(0.0 <= value <= 2.0 for alpha in solved for value in alpha)


async def test_a_gate_that_nobody_has_is_refused(engine: TorchEngine) -> None:
    plan = Plan(tuple(Stream(name, name) for name in MEMBERS[:2]), rule=Routed())
    assert "learned gate" in (engine.supports(plan) or "")
