"""Strategies that are no sums of shifts, against formulas written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.composers.confidence import Confidence
from motet.composers.plan import Plan, Prompt, Stream
from motet.composers.rows import reference_logprobs
from motet.composers.rules import DivergenceRule
from motet.composers.timeline import Timeline
from tests.composers.test_laws import Array, World, assert_same, composed, masked, normalised, plan_of, worlds

RANK: dict[str, Any] = {"strategy": "divergence", "without": "anti", "with": "expert", "form": "rank"}


def kept(difference: Array, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """All but the `count` most disfavoured of those that are disfavoured at all."""
    keep = np.ones(difference.size, dtype=np.bool_)
    keep[[token for token in np.argsort(difference)[:count] if difference[token] < 0]] = False
    return keep


@settings(deadline=None, max_examples=60)
@given(world=worlds, count=st.integers(1, 70), constant=st.floats(-50, 50), model=st.sampled_from(["anti", "expert"]))
def test_divergence_by_rank(world: World, count: int, constant: float, model: str) -> None:
    """Also where all disfavoured tokens go, and whatever constants the members' logits have."""
    moved = World(world.seed, world.vocab, world.scale, shift=(model, constant))
    keep = kept(world.L("anti") - world.L("expert"), count)
    assert keep.any()
    expected = normalised(masked(world.L("base"), keep))
    assert_same(composed({**RANK, "count": count}, world), expected)
    assert_same(composed({**RANK, "count": count}, moved), expected)


def test_ties_with_the_last_disfavoured_token_go_too() -> None:
    streams = (Stream("base", "m"), Stream("without", "m", 0.0), Stream("with", "m", 0.0))
    logits = torch.tensor([[0.0] * 8, [0.0] * 8, [3.0, 2, 2, 0, 0, 0, 0, 0]], dtype=torch.float64)
    actual = reference_logprobs(Plan(streams, rule=DivergenceRule(2)), logits[:, None])[0]
    assert actual.isfinite().tolist() == [False] * 3 + [True] * 5


def test_a_token_that_only_the_forgetting_model_finds_impossible_stays() -> None:
    world = World(3, ban=(("expert", 4), ("anti", 4), ("expert", 5), ("anti", 6)))
    actual = composed({**RANK, "count": 1}, world)
    assert np.isfinite(actual[[4, 5]]).all()
    assert np.isneginf(actual[6])


def test_rank_form_begins_when_its_schedule_says() -> None:
    value = {**RANK, "schedule": {"warmup": 2}}
    world = World(4)
    assert_same(composed(value, world, past=(1,)), world.L("base"))
    keep = kept(world.L("anti") - world.L("expert"), 20)
    assert_same(composed(value, world, past=(1, 1)), normalised(masked(world.L("base"), keep)))


def logits_by_prompt(plan: Plan, seed: int) -> dict[Prompt | None, Array]:
    rng = np.random.default_rng(seed)
    return {stream.prompt: rng.normal(size=23) * 3 for stream in plan.streams}


@pytest.mark.parametrize(("scale", "others"), [(1.0, 3), (0.0, 3), (0.25, 2), (3.0, 1)])
def test_causal(scale: float, others: int) -> None:
    """The mean of the distributions under other names; a scale below 1 leaves the base its share."""
    value: dict[str, Any] = {"strategy": "causal", "names": "Ada", "others": ["Bob", "Cy", "Di"][:others]}
    if scale != 1.0:
        value["schedule"] = {"points": [{"token": 0, "scale": scale}]}
    plan = plan_of(value)
    logits = logits_by_prompt(plan, 5)
    p = [np.exp(normalised(logits[stream.prompt])) for stream in plan.streams]
    share = min(1.0, scale)
    expected = np.log((1 - share) * p[0] + share * np.mean(p[1:], axis=0))
    rows = np.stack([logits[stream.prompt] for stream in plan.streams])
    resolved = Timeline(plan).at(tuple)
    assert_same(reference_logprobs(resolved, torch.from_numpy(rows[:, None]))[0].numpy(), expected)


def test_names_change_all_at_once_and_as_whole_words() -> None:
    prompt = Prompt(swaps=(("Ada", "Bob"), ("Bob", "Ada"), ("Ada Byron", "Bob Moog")))
    assert prompt.swapped("Ada Byron met Bob, not Adam; Ada's friend.") == "Bob Moog met Ada, not Adam; Bob's friend."
    assert Prompt().swapped("Ada") == "Ada"


CASCADE: dict[str, Any] = {"strategy": "cascade", "small": "expert"}
MEASURES: list[Confidence] = ["max_prob", "margin", "entropy"]


def is_sure(p: Array, measure: Confidence, threshold: float) -> bool:
    """By its largest probability, the lead of that, or its entropy."""
    second, first = np.sort(p)[-2:]
    if measure == "entropy":
        return bool(-np.sum(p * np.log(p)) <= threshold)
    return bool((first if measure == "max_prob" else first - second) >= threshold)


@settings(deadline=None, max_examples=90)
@given(
    world=worlds,
    measure=st.sampled_from(MEASURES),
    threshold=st.floats(0.001, 0.999).map(lambda x: round(x, 3)),
    constant=st.floats(-50, 50),
    model=st.sampled_from(["base", "expert"]),
)
def test_cascade(world: World, measure: Confidence, threshold: float, constant: float, model: str) -> None:
    """The distribution of the one that answers, whatever constants the members' logits have."""
    value = {**CASCADE, "measure": measure, "threshold": threshold}
    small = world.L("expert")
    expected = small if is_sure(np.exp(small), measure, threshold) else world.L("base")
    assert_same(composed(value, world), expected)
    assert_same(composed(value, World(world.seed, world.vocab, world.scale, shift=(model, constant))), expected)


@pytest.mark.parametrize("measure", MEASURES)
def test_cascade_at_its_ends(measure: Confidence) -> None:
    """The least that can be asked leaves the small model alone, the most leaves the base alone."""
    world, sure, never = World(5), *((100, 0) if measure == "entropy" else (0, 1))
    assert_same(composed({**CASCADE, "measure": measure, "threshold": sure}, world), world.L("expert"))
    assert_same(composed({**CASCADE, "measure": measure, "threshold": never}, world), world.L("base"))
    same = {**CASCADE, "measure": measure, "small": "base"}
    assert_same(composed(same, world), world.L("base"))


@pytest.mark.parametrize(("scale", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (3.0, 1.0)])
def test_a_schedule_gives_the_small_model_its_share(scale: float, share: float) -> None:
    world = World(6)
    value = {**CASCADE, "threshold": 0, "schedule": {"points": [{"token": 0, "scale": scale}]}}
    mixed = (1 - share) * np.exp(world.L("base")) + share * np.exp(world.L("expert"))
    assert_same(composed(value, world), np.log(mixed))


def test_what_only_the_base_finds_impossible_the_small_model_may_write() -> None:
    world = World(7, ban=(("base", 3), ("expert", 4)))
    assert np.flatnonzero(np.isneginf(composed({**CASCADE, "threshold": 0}, world))).tolist() == [4]
    assert np.flatnonzero(np.isneginf(composed({**CASCADE, "threshold": 1}, world))).tolist() == [3]


def sparse(*weights: float, agreement: float = 0.5) -> dict[str, Any]:
    members = [{"model": name, "weight": w} for name, w in zip(("base", "expert", "other"), weights, strict=True)]
    return {"strategy": "sparse", "members": members, "agreement": agreement}


@settings(deadline=None, max_examples=90)
@given(
    world=worlds,
    agreement=st.floats(0.01, 0.99),
    weights=st.tuples(*[st.floats(0.1, 3)] * 3),
    alike=st.booleans(),
    constant=st.floats(-50, 50),
    model=st.sampled_from(["base", "expert", "other"]),
)
def test_sparse(
    world: World, agreement: float, weights: tuple[float, float, float], alike: bool, constant: float, model: str
) -> None:
    """The mean where members disagree, the base where all would say the same or most of the mean is one token's."""
    value = sparse(*weights, agreement=agreement)
    if alike:  # all members' most likely tokens are the base's
        value["members"] = [{**member, "model": "base"} for member in value["members"]]
    members = [world.L(member["model"]) for member in value["members"]]
    mean = np.exp(members).T @ np.array(weights) / sum(weights)
    token = int(members[0].argmax())
    agree = {int(member.argmax()) for member in members} == {token} or mean[token] > agreement
    expected = members[0] if agree else np.log(mean)
    assert_same(composed(value, world), expected)
    assert_same(composed(value, World(world.seed, world.vocab, world.scale, shift=(model, constant))), expected)


@settings(deadline=None, max_examples=60)
@given(world=worlds, weights=st.tuples(*[st.floats(0.1, 3)] * 3), agreement=st.floats(0.5, 1))
def test_sparse_says_greedily_what_the_mixture_says(
    world: World, weights: tuple[float, float, float], agreement: float
) -> None:
    value = sparse(*weights, agreement=agreement)
    mixed = {"strategy": "mixture", "members": value["members"]}
    assert composed(value, world).argmax() == composed(mixed, world).argmax()


def test_identities_of_sparse() -> None:
    world = World(8)
    assert_same(composed({"strategy": "sparse", "members": ["base"], "agreement": 1}, world), world.L("base"))
    assert_same(composed(sparse(1, 1, 1, agreement=0), world), world.L("base"))
    late = {**sparse(1, 2, 3, agreement=1), "schedule": {"warmup": 2}}
    assert_same(composed(late, world, past=(1,)), world.L("base"))
    assert_same(composed(late, world, past=(1, 1)), composed(sparse(1, 2, 3, agreement=1), world))
