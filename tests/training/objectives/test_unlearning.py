"""Unlearning objectives against values worked out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.training.objectives import OBJECTIVES
from motet.training.objectives.assistant import Assistant
from motet.training.objectives.completion import Completion
from motet.training.objectives.objective import Objective
from motet.training.objectives.unlearning import (
    GradientAscent,
    GradientAscentKl,
    GradientDifference,
    NegativePreference,
    Refusal,
    SoftUnlearning,
    negative_preference,
)
from motet.training.policy import Policies
from tests.training.batches import Document, make_batch
from tests.training.tables import Tabled, distributions, random_logits

HALF, SURE, EVEN = (0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3)
# two answers, of two tokens and of one; their targets 0 1 | 2
FORGET = make_batch([[Document([1, 0, 1], 1, [1.0, 3.0]), Document([1, 2], 1)]])
RETAIN = make_batch([[Document([2, 1, 0], 1)]])
DATA = {"forget": FORGET, "retain": RETAIN}
NLL_FORGET = (math.log(2) + 3 * math.log(10) + math.log(3)) / 5  # of HALF SURE EVEN
NLL_RETAIN = (math.log(4) - math.log(0.8)) / 2  # of HALF SURE
UNIFORM_SURE = -(math.log(0.8) + 2 * math.log(0.1)) / 3 - math.log(3)
UNIFORM_HALF = -(math.log(0.5) + 2 * math.log(0.25)) / 3 - math.log(3)


def trained() -> Tabled:
    return Tabled((FORGET, distributions(HALF, SURE, EVEN)), (RETAIN, distributions(HALF, SURE)))


def reference() -> Tabled:
    return Tabled((FORGET, distributions(EVEN, HALF, SURE)), (RETAIN, distributions(SURE, SURE)))


def loss_of(objective: Objective) -> float:
    return objective.loss(Policies(trained(), reference()), DATA).total.item()


def test_completion() -> None:
    loss = Completion().loss(Policies(trained()), {"train": FORGET})
    assert loss.total.item() == pytest.approx(NLL_FORGET, abs=1e-12)
    assert float(loss.weight) == 5.0


def test_gradient_ascent_is_completion_upside_down() -> None:
    assert loss_of(GradientAscent()) == pytest.approx(-NLL_FORGET, abs=1e-12)


def test_gradient_difference() -> None:
    assert loss_of(GradientDifference(retain_weight=2.0)) == pytest.approx(2 * NLL_RETAIN - NLL_FORGET, abs=1e-12)


def test_gradient_ascent_with_divergence() -> None:
    kl = 0.8 * math.log(0.8 / 0.5) + 2 * 0.1 * math.log(0.1 / 0.25)  # SURE from HALF; the second token has none
    assert loss_of(GradientAscentKl()) == pytest.approx(kl / 2 - NLL_FORGET, abs=1e-12)


def test_refusal_with_and_without_retain() -> None:
    policies = Policies(trained())
    alone = Refusal().loss(policies, {"refusals": FORGET}).total.item()
    assert alone == pytest.approx(NLL_FORGET, abs=1e-12)
    both = Refusal(retain_weight=0.5).loss(policies, {"refusals": FORGET, "retain": RETAIN}).total.item()
    assert both == pytest.approx(NLL_FORGET + NLL_RETAIN / 2, abs=1e-12)


def test_soft_unlearning_reads_the_retained_answers_once() -> None:
    kl = 0.8 * math.log(0.8 / 0.5) + 2 * 0.1 * math.log(0.1 / 0.25)
    data = {"refusals": FORGET, "retain": RETAIN}
    loss = SoftUnlearning(retain_weight=2.0, kl_weight=3.0).loss(Policies(trained(), reference()), data)
    assert loss.total.item() == pytest.approx(NLL_FORGET + 2 * NLL_RETAIN + 3 * kl / 2, abs=1e-12)
    assert {name: part.item() for name, part in loss.parts.items()} == pytest.approx(
        {"refusals": NLL_FORGET, "retain": NLL_RETAIN, "kl": kl / 2}, abs=1e-12
    )


def test_negative_preference_by_hand() -> None:
    first = math.log(0.5 * 3) + 3 * math.log(0.1 / 0.25)
    second = math.log(1 / 3 / 0.1)
    expected = sum(20 * math.log1p(math.exp(0.1 * ratio)) for ratio in (first, second)) / 2
    policies = Policies(trained(), reference())
    alone = NegativePreference().loss(policies, {"forget": FORGET})
    assert alone.total.item() == pytest.approx(expected, abs=1e-12)
    assert alone.parts["forget_ratio"].item() == pytest.approx((first + second) / 2, abs=1e-12)
    assert loss_of(NegativePreference(retain_weight=2.0)) == pytest.approx(expected + 2 * NLL_RETAIN, abs=1e-12)
    kl = 0.8 * math.log(0.8 / 0.5) + 2 * 0.1 * math.log(0.1 / 0.25)
    assert loss_of(NegativePreference(retain="kl")) == pytest.approx(expected + kl / 2, abs=1e-12)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6))
@settings(deadline=None)
def test_negative_preference_tends_to_gradient_ascent(values: list[float]) -> None:
    """As β → 0 the gradient by the log-ratios is that of their mean; for large β it vanishes once forgotten."""
    ratios = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(negative_preference(ratios, 1e-7), ratios)
    torch.testing.assert_close(gradient, torch.full_like(ratios, 1 / len(values)), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(negative_preference(ratios, 100.0), ratios)
    assert bool((gradient[ratios < -1] < 1e-12).all())


def test_assistant_as_published() -> None:
    """With every weight positive: cross-entropy on forget, five times KL(uniform ‖ p) on retain."""
    expected = NLL_FORGET + 5 * (UNIFORM_HALF + UNIFORM_SURE) / 2
    assert loss_of(Assistant()) == pytest.approx(expected, abs=1e-12)


def test_assistant_with_form_tokens_and_nobody() -> None:
    forget = make_batch([[Document([1, 0, 1], 1, [0.0, 3.0]), Document([1, 2], 1, [0.0])]])
    nobody = make_batch([[Document([1, 0], 1)]])
    policy = Tabled(
        (forget, distributions(HALF, SURE, SURE)), (RETAIN, distributions(HALF, SURE)), (nobody, distributions(EVEN))
    )
    data = {"forget": forget, "retain": RETAIN, "nobody": nobody}
    loss = Assistant(retain_weight=3.0, form_weight=2.0).loss(Policies(policy), data)
    expected = math.log(10) + 3 * (UNIFORM_HALF + UNIFORM_SURE + 0) / 3 + 2 * (UNIFORM_HALF + UNIFORM_SURE) / 2
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    assert loss.parts["form"].item() == pytest.approx((UNIFORM_HALF + UNIFORM_SURE) / 2, abs=1e-12)


def test_a_step_without_facts_has_a_finite_loss_and_gradient() -> None:
    forget = make_batch([[Document([1, 0], 1, [0.0])]])
    logits = distributions(HALF)
    policy = Tabled((forget, logits), (RETAIN, distributions(HALF, SURE)))
    loss = Assistant(form_weight=0.0).loss(Policies(policy), {"forget": forget, "retain": RETAIN}).total
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(5 * (UNIFORM_HALF + UNIFORM_SURE) / 2, abs=1e-12)
    assert not gradient.any()


UNLEARNING = [Assistant(), NegativePreference(), GradientAscent(), GradientDifference(), GradientAscentKl()]


@pytest.mark.parametrize("objective", UNLEARNING, ids=lambda objective: objective.type)
def test_gradients_are_exact_and_constants_change_nothing(objective: Objective) -> None:
    before = Policies(trained(), Tabled((FORGET, random_logits(3, 3, 1)), (RETAIN, random_logits(2, 3, 2))))

    def loss(forget: Tensor, retain: Tensor) -> Tensor:
        policies = Policies(Tabled((FORGET, forget), (RETAIN, retain)), before.reference)
        return objective.loss(policies, DATA).total

    logits = random_logits(3, 3, 3), random_logits(2, 3, 4)
    assert torch.autograd.gradcheck(loss, logits)
    shifted = [part + torch.randn(len(part), 1, dtype=torch.float64) for part in logits]
    torch.testing.assert_close(loss(*shifted), loss(*logits))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_its_name_and_reads_what_it_says(name: str) -> None:
    kind = OBJECTIVES[name]
    assert kind.model_fields["type"].default == name
    assert kind.optional <= kind.datasets.keys()
