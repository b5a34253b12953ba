"""The training loop: a schedule, a loss to call, optimisers to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from motet.training.objectives.objective import Loss


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


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did; tensors are detached scalars, so that reading them is what waits for a GPU."""

    done: int  # steps so far, this one included
    loss: Tensor
    parts: Mapping[str, Tensor]
    rate: float  # the first group's learning rate
    norm: Tensor | None  # of the gradient before clipping, where it was asked for


@dataclass(slots=True)
class Loop:
    """Steps over a schedule. Everything that a step changes lies in parameters and optimisers.

    `loss` gets a step (from 0) and a micro-batch's number, `micro_batches` says how many a step has.
    Clipping bounds the norm of the whole gradient; `enter` is told every step before it begins.
    """

    optimizers: Sequence[torch.optim.Optimizer]
    schedule: Schedule
    loss: Callable[[int, int], Loss]
    micro_batches: Callable[[int], int] = lambda step: 1
    clip: float | None = None
    enter: Callable[[int], None] = field(default=lambda step: None)

    def __post_init__(self) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("peak", float(group["lr"]))  # saved with the optimiser, which `lr` may not be

    def steps(self, start: int = 0, norms: Callable[[int], bool] = lambda step: False) -> Iterator[Step]:
        """Does the steps from `start` on, one per item. `norms` says whose gradient's norm is wanted."""
        for step in range(start, self.schedule.steps):
            yield self.step(step, with_norm=norms(step))

    def step(self, step: int, *, with_norm: bool = False) -> Step:
        """One step: all micro-batches, clipping, update."""
        self.enter(step)
        for group in self._groups():
            group["lr"] = group["peak"] * self.schedule.factor(step)
        loss, parts = self._backward(step)
        norm = self._clipped() if with_norm or self.clip is not None else None
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return Step(step + 1, loss, parts, float(next(self._groups())["lr"]), norm)

    def _groups(self) -> Iterator[dict[str, float]]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)

    def _parameters(self) -> Iterable[nn.Parameter]:
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        return (parameter for group in groups for parameter in group["params"])

    def _backward(self, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Gradients of the micro-batches' weighted mean."""
        micro_batches = self.micro_batches(step)
        if micro_batches == 1:
            loss = self.loss(step, 0)
            loss.total.backward()
            return loss.total.detach(), loss.parts
        done: list[Loss] = []
        for micro in range(micro_batches):
            loss = self.loss(step, micro)
            (loss.total * loss.weight).backward()
            done.append(Loss(loss.total.detach(), loss.parts, torch.as_tensor(loss.weight).to(loss.total)))
        weight = torch.stack([torch.as_tensor(loss.weight) for loss in done]).sum()
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad /= weight
        names = done[0].parts
        return _mean([loss.total for loss in done], done), {
            name: _mean([loss.parts[name] for loss in done], done) for name in names
        }

    def _clipped(self) -> Tensor:
        limit = math.inf if self.clip is None else self.clip
        return nn.utils.clip_grad_norm_(list(self._parameters()), limit)


def _mean(values: Sequence[Tensor], losses: Sequence[Loss]) -> Tensor:
    weights = torch.stack([torch.as_tensor(loss.weight) for loss in losses])
    return (torch.stack(list(values)) * weights).sum() / weights.sum()


def finite(loss: float, done: int) -> float:
    """The loss.

    Raises:
        TrainingDivergedError: it is not finite.
    """
    if not math.isfinite(loss):
        raise TrainingDivergedError(f"loss {loss} after {done} steps")
    return loss
