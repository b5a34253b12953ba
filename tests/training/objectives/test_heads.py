"""Objectives with a head, by hand and in float64: gate, temperature, generative discriminator."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from motet.models.heads import GateHead, ScaleHead
from motet.training.batch import Batch
from motet.training.objectives.completion import Completion
from motet.training.objectives.discriminator import ClassHead, GenerativeDiscriminator
from motet.training.objectives.gate import Gate, gate_losses
from motet.training.objectives.objective import Objective
from motet.training.objectives.temperature import Temperature, robust_losses
from motet.training.policy import ClassPrompts, Policies
from tests.training.batches import Document, make_batch
from tests.training.tables import Tabled, Whole, distributions, random_logits

HIDDEN, VOCAB = 4, 5
BATCH = make_batch([[Document([1, 0, 2], 1, [1.0, 3.0])]])


class Model(Whole):
    """Fixed hidden states and logits of `BATCH`, with gradients."""

    def __init__(self, seed: int = 0) -> None:
        self.states = random_logits(2, HIDDEN, seed)
        self.logits = random_logits(2, VOCAB, seed + 1)

    def __call__(self, batch: Batch) -> Tensor:
        return self.hidden(batch)[1]

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch is BATCH
        return self.states, self.logits


def policies_of(objective: Objective, model: Model) -> Policies:
    head = objective.head(HIDDEN)
    assert head is not None
    head = head.double()
    generator = torch.Generator().manual_seed(5)
    for parameter in head.parameters():
        parameter.data += torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return Policies(model, members={"helper": Tabled((BATCH, random_logits(2, VOCAB, 9).detach()))}, head=head)


def probs_of(logits: Tensor) -> Tensor:
    return logits.softmax(-1).gather(-1, BATCH.targets[:, None]).squeeze(-1)


def test_a_gate_mixes_the_two_likelihoods() -> None:
    objective, model = Gate(assistant="helper"), Model()
    policies = policies_of(objective, model)
    assert policies.head is not None
    d = policies.head(model.states).sigmoid()
    mixed = (1 - d) * probs_of(model.logits) + d * probs_of(policies.members["helper"](BATCH))
    expected = -(mixed[0].log() + 3 * mixed[1].log()) / 4
    loss = objective.loss(policies, {"train": BATCH})
    torch.testing.assert_close(loss.total, expected)
    assert loss.parts["share"].item() == pytest.approx(((d[0] + 3 * d[1]) / 4).item())
    loss.total.backward()
    assert model.states.grad is not None
    assert model.logits.grad is not None


@given(st.floats(-60, 60), st.floats(-20, -0.01), st.floats(-20, -0.01))
@settings(deadline=None)
def test_a_gate_lies_between_its_voices(gate: float, base: float, assistant: float) -> None:
    values = [torch.tensor([x], dtype=torch.float64) for x in (gate, base, assistant)]
    loss = gate_losses(*values).item()  # type: ignore[arg-type]
    assert min(-base, -assistant) - 1e-9 <= loss <= max(-base, -assistant) + 1e-9
    if abs(gate) == 60:
        assert loss == pytest.approx(-(assistant if gate > 0 else base), abs=1e-9)


def test_a_gate_alone_leaves_the_model_as_it_is() -> None:
    objective, model = Gate(assistant="helper", train_model=False), Model()
    policies = policies_of(objective, model)
    objective.loss(policies, {"train": BATCH}).total.backward()
    assert model.logits.grad is None
    assert policies.head is not None
    assert all(parameter.grad is not None for parameter in policies.head.parameters())


def test_the_weak_initialisation_learns_where_the_assistant_is_better() -> None:
    model = Model()
    better = torch.full((2, VOCAB), 0.0, dtype=torch.float64)
    better[0, BATCH.targets[0]], better[1, BATCH.targets[1]] = 9.0, -9.0  # better at the first target alone
    objective = Gate(assistant="helper", initial_steps=300)
    head = GateHead(HIDDEN).double()
    policies = Policies(model, members={"helper": Tabled((BATCH, better))}, head=head)
    assert head(model.states).tolist() == [0.0, 0.0]
    asked: list[int] = []

    def at(step: int) -> dict[str, Batch]:
        asked.append(step)
        return {"train": BATCH}

    objective.initialise(policies, at)
    assert asked == list(range(300))
    first, second = head(model.states).tolist()
    assert first > 0.5 > -0.5 > second
    assert model.logits.grad is None
    assert all(parameter.grad is None for parameter in head.parameters())


def test_other_objectives_have_nothing_to_initialise() -> None:
    def at(step: int) -> dict[str, Batch]:
        raise AssertionError

    Completion().initialise(Policies(Model()), at)
    Gate(assistant="helper", initial_steps=0).initialise(Policies(Model()), at)


def test_heads_begin_neutral_and_objectives_have_their_own() -> None:
    states = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert GateHead(HIDDEN)(states).tolist() == [0.0] * 3
    torch.testing.assert_close(ScaleHead(HIDDEN, 0.3, 2.5)(states), torch.ones(3))
    means = torch.randn(3, 2)
    torch.testing.assert_close(ClassHead(2)(means), means)
    assert Completion().head(HIDDEN) is None
    assert isinstance(GenerativeDiscriminator(prompts=("good", "bad", "ugly")).head(HIDDEN), ClassHead)
    assert GateHead(HIDDEN)(states.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("form", ["cross_entropy", "robust"])
def test_temperature_by_hand(form: Any) -> None:
    objective, model = Temperature(form=form, least=0.2, most=3.0, rho=0.7), Model()
    policies = policies_of(objective, model)
    assert policies.head is not None
    tau = policies.head(model.states)
    assert bool(((tau > 0.2) & (tau < 3.0)).all())
    values: list[float] = []
    for n in range(2):
        logits, t = cast("list[float]", model.logits[n].tolist()), tau[n].item()
        gaps = [(other - logits[int(BATCH.targets[n])]) / t for other in logits]
        if form == "robust":
            values.append(t * math.log(sum(map(math.exp, gaps)) / VOCAB) + (t - 0.2) * 0.7)
        else:
            values.append(math.log(sum(map(math.exp, gaps))))
    loss = objective.loss(policies, {"train": BATCH})
    assert loss.total.item() == pytest.approx((values[0] + 3 * values[1]) / 4, abs=1e-12)
    loss.total.backward()
    assert model.logits.grad is None  # the model is left as it is
    assert all(parameter.grad is not None for parameter in policies.head.parameters())


def test_a_strength_by_hand() -> None:
    objective, model = Temperature(expert="helper", antiexpert="other", least=0.2, most=3.0), Model()
    policies = policies_of(objective, model)
    other = random_logits(2, VOCAB, 11).detach()
    policies = replace(policies, members={**policies.members, "other": Tabled((BATCH, other))})
    assert policies.head is not None
    strength = policies.head(model.states)
    shifted = model.logits + strength[:, None] * (policies.members["helper"](BATCH) - other)
    chosen = probs_of(shifted).log()
    loss = objective.loss(policies, {"train": BATCH})
    torch.testing.assert_close(loss.total, -(chosen[0] + 3 * chosen[1]) / 4)
    loss.total.backward()
    assert model.logits.grad is None
    assert all(parameter.grad is not None for parameter in policies.head.parameters())
    assert objective.head_spec.kind == "strength"
    for wrong in ({"expert": "helper"}, {"expert": "a", "antiexpert": "b", "form": "robust"}):
        with pytest.raises(ValidationError):
            Temperature(**cast("dict[str, Any]", wrong))


@given(st.integers(0, 100), st.floats(0.3, 1.2))
@settings(deadline=None, max_examples=15)
def test_the_robust_loss_is_the_worst_mean_over_a_ball(seed: int, rho: float) -> None:
    """With τ₀ → 0, the least over τ is the largest Σ q·(l_v − l_y) with KL(q ‖ uniform) ≤ ρ: duality."""
    logits = random_logits(1, VOCAB, seed).detach()
    target = torch.tensor([0])
    grid = torch.logspace(-2, 2, 4001, dtype=torch.float64)
    least = robust_losses(logits.expand(4001, -1), target.expand(4001), grid, rho, 0.0).min()
    gaps = logits - logits[:, :1]
    best = -math.inf
    for inverse in torch.logspace(-2, 2, 4001, dtype=torch.float64):  # the maximisers are tilted distributions
        q = (gaps * inverse).softmax(-1)
        if (q * (q * VOCAB).log().nan_to_num(neginf=0.0)).sum() <= rho:
            best = max(best, (q * gaps).sum().item())
    assert least.item() == pytest.approx(best, abs=0.01)


def test_temperatures_must_enclose_one() -> None:
    with pytest.raises(ValidationError, match="enclose 1"):
        Temperature(least=1.0)


class ClassPolicy(Whole):
    """Behind class prompt 7, token 1 has ½ and the others ⅛; behind 8 all have ⅕."""

    def __call__(self, batch: Batch) -> Tensor:
        first = batch.input_ids[:, 1] == 7  # at = 1: behind the BOS
        rows = batch.documents[batch.counted]
        even = distributions([0.2] * 5).detach()
        ones = distributions([0.125, 0.5, 0.125, 0.125, 0.125]).detach()
        return torch.where(first[rows][:, None], ones, even)


def test_gedi_by_hand() -> None:
    batch = make_batch([[Document([0, 1, 1, 2], 2), Document([0, 3, 3], 2)]], labels=[0, 1])
    head = ClassHead(2).double()
    head.scale.data.fill_(2.0)
    head.bias.data[1] = 0.5
    policies = Policies(ClassPolicy(), head=head, classes=ClassPrompts(((7,), (8,)), at=1))
    means = [[math.log(0.5 * 0.125) / 2, math.log(0.2)], [math.log(0.125), math.log(0.2)]]
    generative = -(means[0][0] + means[1][1]) / 2
    scores = [[2 * row[0], 2 * row[1] + 0.5] for row in means]
    discriminative = -sum(
        row[label] - math.log(math.exp(row[0]) + math.exp(row[1])) for row, label in zip(scores, (0, 1), strict=True)
    )
    objective = GenerativeDiscriminator(prompts=("a", "b"), generative=0.6)
    loss = objective.loss(policies, {"train": batch})
    assert loss.total.item() == pytest.approx(0.6 * generative + 0.4 * discriminative / 2, abs=1e-12)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
