"""The training loop: a schedule, a loss to call, optimisers to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REPORT_EVERY = 10  # steps


class TrainingDivergedError(Exception):
    """The loss is not finite any more."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning rate factor over `steps`: linear warm-up, constant, linear decay over the last `decay` share.

    The decay ends at `floor` of the peak.
    """

    steps: int
    warmup: int
    decay: float
    floor: float = 0.02

    def factor(self, step: int) -> float:
        """Factor in (0, 1] for a step counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = int(self.steps * (1 - self.decay))
        if step < start:
            return 1.0
        return self.floor + (1 - self.floor) * (1 - (step - start) / max(1, self.steps - start))


def train(
    optimizers: Sequence[torch.optim.Optimizer],
    schedule: Schedule,
    loss: Callable[[], Tensor],
    report: Callable[[int, float], None],
) -> None:
    """Runs the schedule. `loss` draws its own batch and returns a scalar; `report` gets steps done and the loss.

    Raises:
        TrainingDivergedError: the loss was not finite at a report (every 10 steps and at the end).
    """
    groups = [(group, float(group["lr"])) for optimizer in optimizers for group in optimizer.param_groups]
    for step in range(schedule.steps):
        for group, peak in groups:
            group["lr"] = peak * schedule.factor(step)
        value = loss()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == schedule.steps:
            _report(step + 1, value.item(), report)


def _report(done: int, loss: float, report: Callable[[int, float], None]) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(f"loss {loss} after {done} steps")
    report(done, loss)
