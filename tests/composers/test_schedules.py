"""What a schedule, a temperature of a stream and a budget make of every strategy, against formulas in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.composers.errors import CompositionError
from motet.composers.rows import reference_logprobs
from motet.composers.schedule import ThoughtSpelling
from motet.composers.timeline import Timeline
from tests.composers.test_laws import (
    CASES,
    EOS,
    PAST,
    Array,
    Case,
    World,
    assert_same,
    composed,
    every_case,
    example,
    masked,
    normalised,
    plan_of,
    rank_or_ratio,
    ratio,
    shares,
    spoken,
    weights,
    worlds,
)


def name_of(value: object) -> str:
    return str(cast("dict[str, object]", value)["strategy"]) if isinstance(value, dict) else "z"


@every_case
@settings(deadline=None, max_examples=25)
@given(world=worlds, w=weights, s=shares, scale=st.floats(0.1, 3).map(lambda value: round(value, 2)))
def test_scale_of_a_schedule_multiplies_what_is_added(
    case: Case, world: World, w: float, s: float, scale: float
) -> None:
    """Before it begins there is the base alone, without masks."""
    points = [{"token": 0, "scale": 0}, {"token": len(PAST), "scale": scale}]
    value = {**case.value(w, s), "schedule": {"points": points}}
    base, z = world.L("base"), case.z(world, w, s)
    expected = np.where(np.isneginf(z), z, base + scale * (np.where(np.isneginf(z), 0.0, z) - base))
    assert_same(composed(value, world, past=PAST, eos=EOS), normalised(expected), tolerance=1e-8)
    assert_same(composed(value, world, past=PAST[:-1], eos=EOS), base, tolerance=1e-8)


@pytest.mark.parametrize(("tokens", "scale"), [(0, 1.0), (2, 1.5), (4, 2.0), (7, 1.4), (10, 0.8), (99, 0.8)])
def test_scale_moves_in_a_straight_line(tokens: int, scale: float) -> None:
    points = [{"token": 0, "scale": 1}, {"token": 4, "scale": 2}, {"token": 10, "scale": 0.8}]
    value = {**example("proxy_tuning"), "schedule": {"points": points, "linear": True}}
    world = World(5)
    expected = world.L("base") + 0.5 * scale * (world.L("expert") - world.L("anti"))
    assert_same(composed(value, world, past=(7,) * tokens), normalised(expected))


@pytest.mark.parametrize("masks", [True, False])
def test_masks_may_hold_apart_from_the_scale(masks: bool) -> None:
    point = {"token": 0, "scale": 0 if masks else 1, "masks": masks}
    value = {"strategy": "contrastive", "amateur": "anti", "schedule": {"points": [point]}}
    world = World(6)
    base = world.L("base")
    expected = masked(base, ratio(base, 0.1)) if masks else 1.5 * base - 0.5 * world.L("anti")
    assert_same(composed(value, world), normalised(expected))


def test_parts_of_a_stack_have_schedules_of_their_own() -> None:
    unlearn = {"strategy": "unlearn", "assistant": "anti", "filter": None}
    steered = {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "anti"}
    value = {"compose": [unlearn, {**steered, "schedule": {"warmup": 2}}], "schedule": {"warmup": 5}}
    world = World(7)
    base, shift = world.L("base"), world.L("expert") - world.L("anti")
    assert_same(composed(value, world, past=(3,)), base)
    assert_same(composed(value, world, past=(3, 3)), normalised(base + shift))
    assert_same(composed(value, world, past=(3,) * 5), normalised(base + shift - 0.8 * world.L("anti")))


END = ((4, "</"), (5, "think"), (6, ">\n"), (7, " "))  # of a vocabulary whose other tokens spell no tag


@pytest.mark.parametrize(
    ("begin", "past", "phase"),
    [
        ("", (), "thought"),
        ("", (9, 4, 5), "thought"),
        ("", (9, 4, 9, 5, 6), "thought"),  # no tag
        ("", (9, 4, 5, 6), "answer"),
        ("", (9, 4, 5, 6, 9), "answer"),
        ("<think>", (), "thought"),
        ("<think>", (7, 2, 5), "thought"),
        ("<think>", (2, 5, 3, 9), "thought"),
        ("<think>", (2, 5, 3, 9, 4, 5, 6), "answer"),
        ("<think>", (9, 2, 5, 3), "answer"),  # said, not thought
        ("<think>", (2, 9), "answer"),
    ],
)
def test_phases_of_an_answer(begin: str, past: tuple[int, ...], phase: str) -> None:
    """Tags as models spell them; masks hold where their shift counts, and tokens are counted from the phase's begin."""
    thought = ThoughtSpelling(begin, "</think>", (*END, (2, "<"), (3, ">")))
    steered = {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "anti", "schedule": {"phase": "thought"}}
    unlearn = {"strategy": "unlearn", "assistant": "anti", "schedule": {"phase": "answer", "warmup": 2}}
    timeline = Timeline(replace(plan_of({"compose": [steered, unlearn]}), thought=thought))
    now = timeline.at(lambda: past)
    weights = {stream.role: stream.weight for stream in now.streams}
    in_answer = 0 if phase == "thought" else len(past) - (0 if 6 not in past else past.index(6) + 1)
    forgets = phase == "answer" and in_answer >= 2
    assert weights["expert"] == (phase == "thought")
    assert bool(now.masks) == forgets
    for other in (past[:1], past, (*past, 6), (*past[:-1], 8), past):  # guessed, and taken back
        written = partial(tuple, other)
        assert timeline.at(written).streams == Timeline(timeline.plan).at(written).streams


def test_without_a_thought_all_is_the_answer() -> None:
    world = World(11)
    for phase, counts in (("thought", False), ("answer", True)):
        value = {**example("proxy_tuning"), "schedule": {"phase": phase}}
        expected = world.L("base") + counts * 0.5 * (world.L("expert") - world.L("anti"))
        assert_same(composed(value, world, past=(1, 2)), normalised(expected))


def relu(values: Array) -> Array:
    return np.maximum(values, 0.0)


SCALED: list[tuple[dict[str, Any], Callable[[World, float], Array]]] = [
    (
        {"strategy": "generic", "reinforced": "expert", "alpha": 1.5},
        lambda m, s: m.L("base") - 1.5 * s * relu(m.L("expert") - m.L("base")),
    ),
    (
        {"strategy": "mixture", "members": [{"model": "base", "weight": 0.5}, {"model": "expert", "weight": 0.25}]},
        lambda m, s: np.log(0.5 * np.exp(m.L("base")) + 0.25 * s * np.exp(m.L("expert"))),
    ),
]


@pytest.mark.parametrize(("value", "z"), SCALED, ids=name_of)
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_scale_of_what_is_no_sum(value: dict[str, Any], z: Callable[[World, float], Array], scale: float) -> None:
    world = World(8)
    scheduled = {**value, "schedule": {"points": [{"token": 0, "scale": scale}]}}
    assert_same(composed(scheduled, world), normalised(z(world, scale)))


def kl(p: Array, q: Array) -> float:
    return float((np.exp(p) * np.where(np.exp(p) > 0, p - q, 0.0)).sum())


CAPPED = ["proxy_tuning", "contrastive reasoning", "context_aware", "guidance", "product", "antiexperts alone"]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CAPPED], ids=lambda case: case.name)
@settings(deadline=None, max_examples=25)
@given(world=worlds, w=weights, epsilon=st.floats(1e-3, 3))
def test_budget_caps_any_sum(case: Case, world: World, w: float, epsilon: float) -> None:
    """α by bisection: the largest up to 1 whose divergence from the base is at most ε, masks left out of it."""
    base, z = world.L("base"), case.z(world, w, 1e-9 if case.name != "antiexperts alone" else 1.0)
    low, high = 0.0, 1.0
    if kl(normalised(z), base) > epsilon:
        for _ in range(60):
            middle = (low + high) / 2
            fits = kl(normalised(base + middle * (z - base)), base) <= epsilon
            low, high = (middle, high) if fits else (low, middle)
    else:
        low = 1.0
    value = {"compose": [case.value(w, 1e-9 if case.name != "antiexperts alone" else 1.0)]}
    actual = composed({**value, "budget": {"epsilon": epsilon}}, world)
    assert kl(actual, base) <= epsilon * (1 + 1e-6)
    assert_same(actual, normalised(base + low * (z - base)), tolerance=1e-4)


def test_budget_refuses_a_gate() -> None:
    part = {"strategy": "eft", "tuned": "expert", "reference": "anti", "top_p": 0.5}
    with pytest.raises(CompositionError, match=r"composition.budget: a shift that `top_p` gates cannot be capped"):
        plan_of({"compose": [part], "budget": {}})


TEMPERED: list[tuple[dict[str, Any], Callable[[World], Array]]] = [
    (
        {"strategy": "proxy_tuning", "expert": {"model": "expert", "temperature": 0.5}, "antiexpert": "anti"},
        lambda m: m.L("base") + m.L("expert", temperature=0.5) - m.L("anti"),
    ),
    (
        {"strategy": "unlearn", "base": {"model": "base", "temperature": 2.0}, "assistant": "anti", "filter": 0.1},
        lambda m: masked(m.L("base", temperature=2.0) - 0.8 * m.L("anti"), rank_or_ratio(m.L("base"), 0.1)),
    ),
    (
        {"strategy": "guidance", "base": {"model": "base", "temperature": 0.5}},
        lambda m: 1.5 * m.L("base", temperature=0.5) - 0.5 * m.L("base", "last 1", temperature=0.5),
    ),
    (
        {"strategy": "context_aware", "without": {"prompt": "Q", "temperature": 2.0}},
        lambda m: 1.5 * m.L("base") - 0.5 * m.L("base", "Q", temperature=2.0),
    ),
    (
        {"strategy": "mixture", "members": ["base", {"model": "expert", "temperature": 0.5}]},
        lambda m: np.log(np.exp(m.L("base")) + np.exp(m.L("expert", temperature=0.5))),
    ),
    (
        {"strategy": "generic", "reinforced": {"model": "expert", "temperature": 0.5}},
        lambda m: m.L("base") - relu(m.L("expert", temperature=0.5) - m.L("base")),
    ),
    (
        {
            "strategy": "discriminator",
            "wanted": {"model": "expert", "temperature": 0.5},
            "unwanted": "anti",
            "omega": 2,
            "mass": 1,
        },
        lambda m: m.L("base") - 2 * np.log1p(np.exp(m.L("anti") - m.L("expert", temperature=0.5))),
    ),
]


@pytest.mark.parametrize(("value", "z"), TEMPERED, ids=name_of)
def test_temperature_of_a_stream(value: dict[str, Any], z: Callable[[World], Array]) -> None:
    world = World(9)
    plan = plan_of(value)
    rows = spoken(plan, world)
    state = torch.zeros(1, 3, dtype=torch.float64)
    actual = reference_logprobs(plan, torch.from_numpy(rows[:, None]), state=state)[0].numpy()
    assert_same(actual, normalised(z(world)))
