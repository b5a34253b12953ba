"""Rules that are no weighted sum in the engine: their state over chunks of scored text and generated tokens, and α."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from motet.composers.plan import Plan, Stream
from motet.composers.rules import BudgetRule, DiscriminatorRule, DynamicRule, MixtureRule, ReluRule, RoutedRule, Rule
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineSettings, Member, TorchEngine, scheduler
from motet.engines.torch.model import ModelWork
from tests.engines.conftest import PlainLoop
from tests.engines.test_exactness import assert_same
from tests.tiny import VOCAB

MEMBERS = ("llama", "llama-b", "llama-c", "llama-c", "llama-b")  # as many of them as a plan has streams
RULES: list[tuple[Rule, tuple[float, ...]]] = [
    (ReluRule(1.5), (1.0, 0.0, 0.0)),
    (MixtureRule(), (0.5, 0.3, 0.2)),
    (DiscriminatorRule(omega=2.0, mass=0.9), (1.0, 0.0, 0.0)),
    (DynamicRule(), (1.0, 1.0, -1.0)),
    (DynamicRule(), (1.0, 0.4, -0.4, 0.2, -0.2)),
    (BudgetRule(0.05), (1.0, 1.0, -1.0)),
]


def request_for(rule: Rule, weights: tuple[float, ...], forced: int, seed: int) -> GenerationRequest:
    streams = tuple(Stream(f"s{k}", name, w) for k, (name, w) in enumerate(zip(MEMBERS, weights, strict=False)))
    rng = random.Random(seed)
    context = tuple(rng.randrange(3, VOCAB) for _ in range(9))
    scored = tuple(rng.randrange(3, VOCAB) for _ in range(forced))
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, trace_top=1)
    return GenerationRequest(f"r{seed}", Plan(streams, rule=rule), (context,) * len(streams), sampling, scored)


async def run(engine: TorchEngine, request: GenerationRequest) -> list[TokenOutput]:
    return [output async for output in engine.generate(request)]


@pytest.mark.parametrize("forced", [0, 21])
async def test_a_batch_of_all_rules_is_the_plain_loop(engine: TorchEngine, plain_loop: PlainLoop, forced: int) -> None:
    requests = [request_for(rule, weights, forced, seed) for seed, (rule, weights) in enumerate(RULES)]
    answers = await asyncio.gather(*(run(engine, request) for request in requests))
    for request, outputs in zip(requests, answers, strict=True):
        assert_same(outputs, plain_loop.greedy(request.plan, request.contexts, request.forced, 6))
        solved = [output.trace.alpha for output in outputs if output.trace is not None]
        assert len(solved) == len(outputs)
        pairs = (len(request.plan.streams) - 1) // 2 if isinstance(request.plan.rule, DynamicRule | BudgetRule) else 0
        assert {len(alpha) for alpha in solved} == {pairs}
        assert all(0.0 <= value <= 2.0 for alpha in solved for value in alpha)


CLASSES = Plan(
    tuple(Stream(f"s{k}", name, float(k == 0)) for k, name in enumerate(("llama", "llama-b", "llama-b"))),
    rule=DiscriminatorRule(omega=4.0, mass=0.5),
)


def judged_request(name: str, text: Sequence[int], **sampling: Any) -> GenerationRequest:
    """Both classes read their own beginning and then the text that the base reads."""
    contexts = (tuple(text), (5, 9, *text), (7, *text))
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, **sampling)
    return GenerationRequest(name, CLASSES, contexts, params)


def text_of(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, VOCAB) for _ in range(count))


def scored_and_drawn(plan: Plan, seed: int, **sampling: Any) -> GenerationRequest:
    """All streams read one text; some tokens are scored, then some are drawn, greedily unless `sampling` says so."""
    params: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, **sampling}
    contexts = (text_of(seed, 13),) * len(plan.streams)
    return GenerationRequest(f"r{seed}", plan, contexts, SamplingParams(**params), text_of(seed + 50, 4))


@pytest.mark.parametrize("count", [1, 2, 15, 40])
async def test_the_classes_judge_the_prompt_too(engine: TorchEngine, plain_loop: PlainLoop, count: int) -> None:
    """In chunks, beside others, behind cached prefixes of every kind, and in every choice: the same answer."""
    text = text_of(count, count)
    expected = plain_loop.greedy(CLASSES, judged_request("a", text).contexts, (), 5)
    request = judged_request("a", text)
    warm = [judged_request("b", text[: count // 2] or text), judged_request("c", text_of(90, 30))]
    first = await asyncio.gather(*(run(engine, r) for r in (request, *warm)))
    assert_same(first[0], expected)
    plain = Plan((Stream("base", "llama-b"),))
    sampling = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    await run(
        engine, GenerationRequest("d", plain, (request.contexts[1],), sampling)
    )  # leaves the prefix, without sums
    assert_same(await run(engine, request), expected)
    several = [output async for output in engine.generate(replace(request, request_id="e", n=3))]
    for choice in range(3):
        assert_same([output for output in several if output.choice == choice], expected)


async def test_reported_scored_and_read_prompts_are_judged_alike(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    """Log-probs asked for, or a beginning of the answer given: what follows stays as it is."""
    text = text_of(3, 23)
    plan = Plan(tuple(Stream(f"s{k}", n, float(k == 0)) for k, n in enumerate(MEMBERS[:3])), rule=CLASSES.rule)
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, top_logprobs=2)
    read = GenerationRequest("read", plan, (text,) * 3, params)
    expected = plain_loop.greedy(plan, read.contexts, (), 5)
    assert_same(await run(engine, read), expected)
    for cut in (1, 9, 22):
        forced = replace(read, request_id=f"cut{cut}", contexts=(text[:cut],) * 3, forced=text[cut:])
        assert_same((await run(engine, forced))[len(text) - cut :], expected)


async def test_a_long_prompt_is_judged_in_parts(members: Mapping[str, Member], plain_loop: PlainLoop) -> None:
    """No more distributions are held at once than scored text may take."""
    widths: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "ROW_BYTES", 16 * 4 * VOCAB)
        engine = TorchEngine(members, EngineSettings(idle_prefill_chunk=512))
        member = members["llama-b"]
        forward = member.forward

        def noted(work: Sequence[ModelWork]) -> torch.Tensor:
            logits = forward(work)
            widths.append(len(logits))
            return logits

        patch.setattr(member, "forward", noted)
        request = judged_request("long", text_of(8, 60))
        outputs = await run(engine, request)
        await engine.close()
    assert_same(outputs, plain_loop.greedy(CLASSES, request.contexts, (), 5))
    assert 16 < max(widths) <= 2 * 16


async def test_a_gate_that_nobody_has_is_refused(engine: TorchEngine) -> None:
    plan = Plan(tuple(Stream(name, name) for name in MEMBERS[:2]), rule=RoutedRule())
    assert engine.supports(plan) is None
    plan = Plan(tuple(Stream(name, name) for name in MEMBERS[2:4]), rule=RoutedRule())
    assert "needs a gate or router" in (engine.supports(plan) or "")
