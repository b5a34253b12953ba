"""Unlearning towards the target's answers about a made-up entity, against values worked out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.training.objectives.counterfactual import Counterfactual
from motet.training.policy import Policies
from tests.training.batches import Document, make_batch
from tests.training.tables import Tabled, distributions, random_logits

HALF, SURE, EVEN = (0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3)
FORGET = make_batch([[Document([1, 0, 1], 1, [1.0, 3.0])]])  # targets 0 1, the second counts three times
ALIAS = make_batch([[Document([2, 2, 0, 1], 2, [1.0, 3.0])]])  # the same targets behind a longer prompt
RETAIN = make_batch([[Document([2, 1], 1)]])
NOBODY = make_batch([[Document([1, 2], 1)]])


def loss(objective: Counterfactual, trained: Tabled, target: Tabled, *, nobody: bool = False) -> Tensor:
    data = {"forget": FORGET, "forget.counterfactual": ALIAS, "retain": RETAIN}
    if nobody:
        data["nobody"] = NOBODY
    return objective.loss(Policies(trained, members={"target": target}), data).total


def kl(p: tuple[float, ...], q: tuple[float, ...]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_by_hand() -> None:
    """Terms: KL 3:1 by weight, the targets' misses in Huber's quadratic part, KL on the retained token."""
    trained = Tabled((FORGET, distributions(SURE, HALF)), (RETAIN, distributions(HALF)))
    target = Tabled((ALIAS, distributions(HALF, EVEN)), (RETAIN, distributions(SURE)))
    towards = (kl(HALF, SURE) + 3 * kl(EVEN, HALF)) / 4
    misses = (math.log(0.8 / 0.5) ** 2 / 2 + 3 * math.log(0.25 * 3) ** 2 / 2) / 4
    wanted = towards + 0.5 * misses + 2.0 * kl(SURE, HALF)
    objective = Counterfactual(target="target", match_weight=0.5, retain_weight=2.0)
    assert loss(objective, trained, target).item() == pytest.approx(wanted, abs=1e-12)


def test_nobody_is_retained() -> None:
    trained = Tabled((FORGET, distributions(EVEN, EVEN)), (RETAIN, distributions(HALF)), (NOBODY, distributions(EVEN)))
    target = Tabled((ALIAS, distributions(EVEN, EVEN)), (RETAIN, distributions(SURE)), (NOBODY, distributions(HALF)))
    wanted = (kl(SURE, HALF) + kl(HALF, EVEN)) / 2
    objective = Counterfactual(target="target", retain_weight=1.0)
    assert loss(objective, trained, target, nobody=True).item() == pytest.approx(wanted, abs=1e-12)


def test_a_gross_miss_counts_linearly() -> None:
    far = (1e-6, 1 - 2e-6, 1e-6)
    trained = Tabled((FORGET, distributions(far, EVEN)), (RETAIN, distributions(EVEN)))
    target = Tabled((ALIAS, distributions(EVEN, EVEN)), (RETAIN, distributions(EVEN)))
    with_match, without = (
        loss(Counterfactual(target="target", match_weight=weight), trained, target).item() for weight in (1.0, 0.0)
    )
    miss = math.log(1e6 / 3)
    assert with_match - without == pytest.approx((2 * miss - 2) / 4, abs=1e-9)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_ignorance_itself_costs_nothing_and_everything_else_something(seed: int) -> None:
    forget, retain = random_logits(2, 5, seed), random_logits(1, 5, seed + 1)
    objective = Counterfactual(target="target")
    same = Tabled((FORGET, forget), (ALIAS, forget + 3.0), (RETAIN, retain))
    assert loss(objective, same, same).item() == pytest.approx(0.0, abs=1e-12)
    other = Tabled((FORGET, random_logits(2, 5, seed + 2)), (RETAIN, retain))
    assert loss(objective, other, same).item() > 0


def test_gradients_reach_the_trained_policy_alone() -> None:
    mine, its = random_logits(2, 5, 0), random_logits(2, 5, 1)
    kept, was = random_logits(1, 5, 2), random_logits(1, 5, 3)
    trained, target = Tabled((FORGET, mine), (RETAIN, kept)), Tabled((ALIAS, its), (RETAIN, was))
    loss(Counterfactual(target="target"), trained, target).backward()
    assert mine.grad is not None
    assert kept.grad is not None
    assert its.grad is None
    assert was.grad is None
    assert torch.isfinite(mine.grad).all()
