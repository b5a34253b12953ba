"""What a trace tells of each voice: pushes add up to the composed score, numbers are those of models asked alone."""

from __future__ import annotations

import math
import random
from typing import cast

import pytest
import torch

from motet.composers.plan import Plan, single
from motet.composers.rows import compose_rows, rule_places
from motet.composers.rules import (
    AdaptersRule,
    CascadeRule,
    DiscriminatorRule,
    MixtureRule,
    RoutedRule,
    SparseRule,
)
from motet.composers.timeline import Timeline, adapted
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import TorchEngine
from motet.engines.voices import pushes
from motet.kernels.layout import edits_or_none
from motet.kernels.reference import composed as compose
from tests.engines.conftest import PlainLoop
from tests.engines.test_exactness import PLANS, TOLERANCE, plan_of, request_for
from tests.tiny import EOS, VOCAB

NO_SUMS = (CascadeRule, DiscriminatorRule, MixtureRule, RoutedRule, SparseRule)
WRITTEN = [5, 9, 5]
EACH = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.streams[0].model}-{plan.strategy}")


def score_of(plan: Plan, members: torch.Tensor) -> tuple[torch.Tensor, tuple[float, ...]]:
    """The oracle's composed log-probs (V,) of members (K, V), behind the tokens `WRITTEN`, and the α that it solved."""
    edits = None if plan.rules is None else edits_or_none(rule_places(0, plan.rules, WRITTEN, (EOS,)), members)
    state = torch.zeros(1, 3, dtype=members.dtype)
    composed = compose(members, compose_rows([plan], [range(len(plan.streams))], members), edits, state)
    alpha = tuple(value for value in cast("list[float]", composed.alpha[0].tolist()) if not math.isnan(value))
    return composed.logprobs[0], alpha


@EACH
def test_pushes_add_up_to_the_composed_score(plan: Plan) -> None:
    """Over all tokens that the masks leave, base + pushes + rules is the composed log-prob up to one constant."""
    torch.manual_seed(0)
    plan = adapted(plan, (0.5, 0.3, 0.2) if isinstance(plan.rule, AdaptersRule) else 1.3)
    members = (3 * torch.randn(len(plan.streams), 60, dtype=torch.float64)).log_softmax(-1)
    composed, alpha = score_of(plan, members)
    added = torch.zeros(60, dtype=torch.float64)
    if plan.rules is not None:
        for _, token, offset in rule_places(0, plan.rules, WRITTEN, (EOS,)):
            added[token] += offset
    if isinstance(plan.rule, NO_SUMS):
        assert pushes(plan, members, 0, alpha) == ()
        return
    left = [token for token in range(60) if composed[token] > -math.inf]
    constants = [
        math.fsum((*pushes(plan, members, t, alpha), float(members[0, t]), float(added[t] - composed[t]))) for t in left
    ]
    assert len(left) > 1 or plan.masks
    assert constants == pytest.approx([constants[0]] * len(left), abs=1e-9)


def test_a_member_that_agrees_with_the_base_pushes_nothing() -> None:
    plan = next(plan for plan in PLANS if plan.strategy == "proxy_tuning")
    members = torch.randn(1, 60, dtype=torch.float64).log_softmax(-1).expand(3, 60)
    assert pushes(plan, members, 7, ()) == (0.0, 0.0, 0.0)


def test_what_is_impossible_pushes_by_a_number() -> None:
    plan = next(plan for plan in PLANS if plan.strategy == "proxy_tuning")
    members = torch.zeros(3, 4).log_softmax(-1)
    members[:, 2] = -math.inf
    assert pushes(plan, members, 2, ()) == (0.0, 0.0, 0.0)


@EACH
async def test_the_engine_tells_what_models_alone_say(plan: Plan, engine: TorchEngine, plain_loop: PlainLoop) -> None:
    request = request_for(plan, random.Random(11), trace_top=3, trace_members=True, max_tokens=3)
    shared: list[int] = []
    async for output in engine.generate(request):
        assert output.trace is not None
        voices = output.trace.voices
        assert voices is not None
        alone = torch.stack([
            plain_loop.alone(stream, context, shared)
            for stream, context in zip(plan.streams, request.contexts, strict=True)
        ])  # fmt: skip
        composed = plain_loop.distribution(plan, request.contexts, shared)
        assert list(voices.ranks) == [int((own > own[output.token]).sum()) for own in alone]
        assert voices.ranks[0] == output.trace.base_rank
        now = Timeline(plan).at(lambda: shared)  # weights of a schedule, or by a head, are those of the token
        now = adapted(now, output.trace.alpha if isinstance(plan.rule, AdaptersRule) else output.trace.head or 1.0)
        expected = pushes(now, alone, output.token, output.trace.alpha)
        assert voices.pushes == pytest.approx(expected, abs=10 * TOLERANCE)  # weights, and α, multiply the differences
        tops = [token for token, _ in (*output.trace.composed_top, *output.trace.base_top)]
        assert [one.token for one in voices.alternatives] == list(dict.fromkeys(tops))
        for one in voices.alternatives:
            assert one.members == pytest.approx(cast("list[float]", alone[:, one.token].tolist()), abs=TOLERANCE)
            assert one.logprob == float(composed[one.token]) or abs(one.logprob - float(composed[one.token])) < 1e-3
        shared.append(output.token)


async def test_a_trace_without_members_tells_no_voices(engine: TorchEngine) -> None:
    request = request_for(PLANS[0], random.Random(1), trace_top=3, max_tokens=2)
    assert [output.trace.voices async for output in engine.generate(request) if output.trace] == [None] * len(
        [*request.forced, 0, 0]
    )


async def strengths(plan: Plan, engine: TorchEngine, text: tuple[int, ...]) -> list[float]:
    """The α of each token of a scored text."""
    sampling = SamplingParams(max_tokens=0, trace_top=1)
    request = GenerationRequest("s", plan, ((5, 6), (5, 6)), sampling, text)
    return [output.trace.alpha[0] async for output in engine.generate(request) if output.trace]


async def test_the_trace_tells_who_wrote_a_token(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    """The small model of a cascade, where it is sure; all of a sparse ensemble, where they disagree."""
    rng = random.Random(4)
    text = tuple(rng.randrange(3, VOCAB) for _ in range(12))
    p = [
        torch.stack([plain_loop.distribution(single(name), ((5, 6),), list(text[:i])).exp() for i in range(12)])
        for name in ("llama", "llama-b")
    ]
    sure = p[1].amax(-1)
    middle = float(sure.sort().values[5:7].mean())
    cascade = plan_of("llama", {"strategy": "cascade", "small": "llama-b", "threshold": middle})
    assert await strengths(cascade, engine, text) == (sure >= middle).double().tolist()

    token = p[0].argmax(-1, keepdim=True)
    mean = (p[0] + p[1]).gather(-1, token).squeeze(-1) / 2
    middle = float(mean.sort().values[5:7].mean())
    sparse = plan_of("llama", {"strategy": "sparse", "members": ["llama", "llama-b"], "agreement": middle})
    alike = token.squeeze(-1) == p[1].argmax(-1)
    assert await strengths(sparse, engine, text) == (~(alike | (mean > middle))).double().tolist()
