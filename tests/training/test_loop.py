"""The schedule and the training loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from motet.training.loop import Schedule, TrainingDivergedError, train
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


def test_train_follows_the_schedule_and_reduces_the_loss() -> None:
    weight = nn.Parameter(torch.tensor(4.0))
    rates: list[float] = []
    reports: list[tuple[int, float]] = []
    optimizer = adamw([weight], lr=0.2)

    def loss() -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return weight.square()

    schedule = Schedule(steps=25, warmup=5, decay=0.4)
    train([optimizer], schedule, loss, lambda step, value: reports.append((step, value)))
    assert rates == pytest.approx([0.2 * schedule.factor(step) for step in range(25)])
    assert [step for step, _ in reports] == [10, 20, 25]
    assert reports[-1][1] < reports[0][1] < 16
    assert weight.grad is None


def test_train_stops_when_the_loss_is_not_finite() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(TrainingDivergedError, match="loss nan after 10 steps"):
        train([adamw([weight], 0.1)], Schedule(30, 1, 0.5), lambda: weight * float("nan"), lambda step, loss: None)
