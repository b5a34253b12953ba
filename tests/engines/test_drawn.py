"""Mixtures whose tokens are drawn from single members are the mixtures that they would be composed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from motet.composers.plan import Plan, single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.drafts import AUTO, OFF, Speculation
from motet.engines.drawn import is_drawn, voice_at
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineCore, EngineSettings, Member, TorchEngine, memory
from motet.engines.torch import choice as choices
from motet.engines.torch.stream import StreamState
from tests.engines.conftest import PlainLoop
from tests.engines.test_exactness import plan_of, request_for
from tests.engines.test_speculation import NEAR, Turns, answered, assert_alike, engine_with
from tests.tiny import VOCAB

MIXED = plan_of(
    "llama",
    {
        "strategy": "mixture",
        "members": [
            {"model": "llama", "weight": 2.0},
            {"model": "qwen", "weight": 0.8, "temperature": 1.5},
            {"model": "mistral", "weight": 0.2},
        ],
    },
)
WARMED = plan_of(
    "llama",
    {
        "strategy": "mixture",
        "members": ["llama", "qwen"],
        "schedule": {"points": [{"token": 0, "scale": 0.0}, {"token": 5, "scale": 3.0}]},
    },
)
FALSE_ALARM = 1e-6  # with fixed seeds: the chance that a change of nothing but the draws fails the test
MOST = 40
Floats = np.ndarray[Any, np.dtype[np.float64]]


def drawn_request(plan: Plan, n: int = 1, length: int = 20, **sampling: Any) -> GenerationRequest:
    """Prompts that differ between the streams."""
    rng = random.Random(length)
    contexts = tuple(tuple(rng.randrange(3, VOCAB) for _ in range(length + k)) for k in range(len(plan.streams)))
    options: dict[str, Any] = {"max_tokens": MOST, "ignore_eos": True, **sampling}
    params = SamplingParams(**options)
    return GenerationRequest("r", plan, contexts, params, n=n, by_member=True)


@torch.no_grad()
def mixtures(loop: PlainLoop, job: GenerationRequest, text: Sequence[int]) -> tuple[Floats, Floats]:
    """(positions, V) of an answer: `Σ_k w_k p_k / Σ w` by whole forwards, in float64, the weights as the schedule of
    `WARMED` has them; and the base's share of that."""
    total = torch.zeros(len(text), VOCAB, dtype=torch.float64)
    base = total
    for k, (stream, context) in enumerate(zip(job.plan.streams, job.contexts, strict=True)):
        ids = torch.tensor([[*context, *text]])
        logits = loop.models[stream.model](ids, use_cache=False).logits[0, len(context) - 1 : -1].double()
        scale = [1.0 if not stream.scheduled else 0.0 if t < 5 else 3.0 for t in range(len(text))]
        weights = stream.weight * torch.tensor(scale, dtype=torch.float64)
        total = total + weights[:, None] * (logits / stream.temperature).softmax(-1)
        base = total if k == 0 else base
    return (total / total.sum(-1, keepdim=True)).numpy(), (base / total).numpy()


def p_value(loop: PlainLoop, jobs: Sequence[GenerationRequest], answers: Sequence[Sequence[TokenOutput]]) -> float:
    """Of the hypothesis that every token was drawn from the mixture behind those before it: its randomised place in
    the cumulated distribution is uniform then, and independent of all others (Rosenblatt 1952), in whatever order
    tokens stand. Chi-square, 20 bins, in two orders: by their probability, where what comes from elsewhere stands
    first, and by the base's share of it, where wrong shares show; the smaller of both p-values, twice (Bonferroni)."""
    rng = np.random.default_rng(0)
    places: list[list[float]] = [[], []]
    for job, outputs in zip(jobs, answers, strict=True):
        for index in range(job.n):
            text = [output.token for output in outputs if output.choice == index]
            probs, shares = mixtures(loop, job, text)
            for found, order in zip(places, (probs, shares), strict=True):
                for t, token in enumerate(text):
                    before = float(probs[t][order[t] < order[t, token]].sum())
                    found.append(before + rng.random() * float(probs[t][order[t] == order[t, token]].sum()))
    assert len(places[0]) > 5000
    chi_square: Any = scipy_stats.chisquare  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return 2 * min(float(chi_square(np.histogram(found, bins=20, range=(0.0, 1.0))[0])[1]) for found in places)


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("plan", [MIXED, WARMED], ids=["shares", "schedule"])
async def test_every_token_is_drawn_from_the_mixture(
    members: Mapping[str, Member], plain_loop: PlainLoop, plan: Plan
) -> None:
    """Beside rows of other compositions, which are what they are without; choices join and leave.
    False-alarm rate: `FALSE_ALARM`."""
    rng = random.Random(3)
    others = [request_for(NEAR, rng, max_tokens=30), request_for(single("gemma"), rng, temperature=0.7, seed=1)]
    jobs = [drawn_request(plan, n=30, length=11 + 5 * i) for i in range(5)]
    expected = await answered(engine_with(members), others)
    engine = engine_with(members, tokens=3)
    found = await answered(engine, [*jobs, *others], pause=0.01)
    for ours, theirs in zip(found[len(jobs) :], expected, strict=True):
        assert_alike(ours, theirs)
    assert p_value(plain_loop, jobs, found[: len(jobs)]) > FALSE_ALARM


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("fault", ["share", "context"])
async def test_another_distribution_would_be_seen(
    members: Mapping[str, Member], plain_loop: PlainLoop, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The test is sharp enough for shares that are wrong by a fifth, and for members that miss what others wrote."""
    missing = StreamState.missing

    def wrong_share(plan: Plan, uniform: float) -> int:
        return voice_at(plan, 0.8 * uniform)

    def wrong_missing(stream: StreamState, position: int) -> int:
        return min(2, missing(stream, position))

    if fault == "share":
        monkeypatch.setattr(choices, "voice_at", wrong_share)
    else:
        monkeypatch.setattr(StreamState, "missing", wrong_missing)
    jobs = [drawn_request(MIXED, n=30, length=11 + 5 * i) for i in range(5)]
    found = await answered(engine_with(members), jobs)
    assert p_value(plain_loop, jobs, found) < FALSE_ALARM


async def test_only_the_drawn_member_runs(members: Mapping[str, Member]) -> None:
    names = [stream.model for stream in MIXED.streams]

    async def forwards(job: GenerationRequest) -> int:
        before = sum(members[name].num_forwards for name in names)
        await answered(engine_with(members), [job])
        return sum(members[name].num_forwards for name in names) - before

    job = drawn_request(MIXED, length=8, max_tokens=160)
    assert await forwards(replace(job, by_member=False)) >= 3 * 160
    assert await forwards(job) < 1.3 * 160, "one forward per token, and one now and then of who is far behind"


@pytest.mark.usefixtures("repeatable")
async def test_choices_that_outgrow_and_lose_their_slots_go_on(
    members: Mapping[str, Member], plain_loop: PlainLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for a fifth of the choices, in slots that begin short: they grow while some streams are behind, and who is
    preempted reads again what was written. False-alarm rate: `FALSE_ALARM`."""
    monkeypatch.setattr(memory, "SHORTEST", 4)
    monkeypatch.setattr(memory, "FIRST_LENGTH", 8)
    jobs = [drawn_request(MIXED, n=30, length=11 + 5 * i) for i in range(5)]
    budget = 30 * EngineCore(members).scheduler.check(jobs[-1])
    engine = TorchEngine(members, EngineSettings(kv_cache_bytes=budget, prefill_chunk=32))
    found = await answered(engine, jobs)
    assert engine.stats().preemptions > 5
    assert engine.stats().kv_bytes_used == 0
    assert p_value(plain_loop, jobs, found) > FALSE_ALARM


async def test_seeds_draw_from_the_composed_distribution(members: Mapping[str, Member]) -> None:
    jobs = [drawn_request(MIXED, n=2, seed=5), drawn_request(MIXED, temperature=0.0)]
    expected = await answered(engine_with(members), [replace(job, by_member=False) for job in jobs])
    for ours, theirs in zip(await answered(engine_with(members), jobs), expected, strict=True):
        assert_alike(ours, theirs)


SHAPED: list[dict[str, Any]] = [
    {"seed": 1},
    {"temperature": 0.9},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"presence_penalty": 0.1},
    {"frequency_penalty": 0.1},
    {"repetition_penalty": 1.1},
    {"logit_bias": ((3, 1.0),)},
    {"allowed_token_ids": (3, 4)},
    {"grammar": Turns()},
    {"bad_words": ((5,),)},
    {"min_tokens": 1},
    {"top_logprobs": 1},
    {"logprob_token_ids": (3,), "top_logprobs": 1},
    {"trace_top": 0},
]


@pytest.mark.parametrize("sampling", SHAPED, ids=lambda sampling: next(iter(sampling)))
def test_what_shapes_or_reports_the_distribution_is_composed(sampling: dict[str, Any]) -> None:
    assert not is_drawn(drawn_request(MIXED, **sampling))


def test_where_members_are_drawn() -> None:
    job = drawn_request(MIXED, stop_token_ids=(3,))
    assert is_drawn(job)
    assert is_drawn(replace(job, speculation=OFF))
    assert is_drawn(replace(job, speculation=AUTO))
    assert not is_drawn(replace(job, speculation=Speculation("base")))
    assert not is_drawn(replace(job, by_member=False))
    assert not is_drawn(drawn_request(NEAR))
    assert not is_drawn(replace(job, sampling=replace(job.sampling, max_tokens=0), forced=(3,)))


def test_shares() -> None:
    count = 3000
    found = Counter(voice_at(MIXED, (i + 1) / count) for i in range(count))
    assert [found[k] / count for k in range(3)] == pytest.approx([2 / 3, 0.8 / 3, 0.2 / 3], abs=2 / count)
    assert voice_at(WARMED, 1.0) == 1
