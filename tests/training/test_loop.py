"""The schedule and the training loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from motet.training.loop import Loop, Schedule, TrainingDivergedError, finite
from motet.training.objectives.objective import Loss
from motet.training.optim import adamw


def test_schedule_by_hand() -> None:
    schedule = Schedule(steps=10, warmup=2, decay=0.5)
    factors = [round(schedule.factor(step), 3) for step in range(10)]
    assert factors == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.804, 0.608, 0.412, 0.216]


@given(steps=st.integers(1, 500), warmup=st.integers(0, 50), decay=st.floats(0, 1))
def test_schedule_stays_within_its_bounds(steps: int, warmup: int, decay: float) -> None:
    schedule = Schedule(steps, warmup, decay)
    factors = [schedule.factor(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    later = factors[min(warmup, steps) :]
    assert later == sorted(later, reverse=True)


def test_steps_follow_the_schedule_and_reduce_the_loss() -> None:
    weight = nn.Parameter(torch.tensor(4.0))
    rates: list[float] = []
    optimizer = adamw([weight], lr=0.2)

    def loss(step: int, micro: int) -> Loss:
        rates.append(optimizer.param_groups[0]["lr"])
        return Loss(weight.square())

    schedule = Schedule(steps=25, warmup=5, decay=0.4)
    steps = list(Loop([optimizer], schedule, loss).steps())
    assert rates == pytest.approx([0.2 * schedule.factor(step) for step in range(25)])
    assert [step.done for step in steps] == list(range(1, 26))
    assert steps[-1].loss < steps[0].loss <= 16
    assert weight.grad is None


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    assert finite(0.5, 10) == 0.5
    with pytest.raises(TrainingDivergedError, match="loss nan after 10 steps"):
        finite(float("nan"), 10)


def test_micro_batches_are_weighted_and_gradients_clipped() -> None:
    """Losses w and 3w with weights 1 and 2: mean (1·w + 2·3w) / 3, gradient 7/3; clipped to 0.5."""
    weight = nn.Parameter(torch.tensor(4.0, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def loss(step: int, micro: int) -> Loss:
        total = weight * (1 + 2 * micro)
        return Loss(total, {"twice": 2 * total.detach()}, weight=1.0 + micro)

    first = Loop([optimizer], Schedule(1, 0, 0), loss, micro_batches=lambda step: 2).step(0)
    assert first.loss.item() == pytest.approx(4 * 7 / 3, abs=1e-12)
    assert first.parts["twice"].item() == pytest.approx(8 * 7 / 3, abs=1e-12)
    assert first.norm is None
    assert weight.item() == pytest.approx(4 - 7 / 3, abs=1e-12)
    second = Loop([optimizer], Schedule(1, 0, 0), loss, micro_batches=lambda step: 2, clip=0.5).step(0)
    assert second.norm is not None
    assert second.norm.item() == pytest.approx(7 / 3, abs=1e-12)
    assert weight.item() == pytest.approx(4 - 7 / 3 - 0.5, abs=1e-5)


def test_the_peak_rate_survives_a_saved_optimiser() -> None:
    """An optimiser's saved state holds the rate of its last step: resuming must not take that for the peak."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [adamw([weight], lr=0.5) for weight in weights]
    schedule = Schedule(steps=10, warmup=0, decay=1.0)
    loops = [
        Loop([optimizer], schedule, lambda step, micro, weight=weight: Loss(weight.square().sum()))
        for optimizer, weight in zip(optimizers, weights, strict=True)
    ]
    rates = [step.rate for step in loops[0].steps()]
    for step in range(6):
        loops[1].step(step)
    saved = optimizers[1].state_dict()
    fresh = adamw([weights[1]], lr=0.5)
    resumed = Loop([fresh], schedule, loops[1].loss)
    fresh.load_state_dict(saved)
    assert [step.rate for step in resumed.steps(6)] == rates[6:]
