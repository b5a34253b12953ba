"""Heads that are trained beside a model: gate, temperature, the scale of a generative discriminator.

Each is a plain module whose state is saved as `head.safetensors` beside the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from motet.training.batch import StepData
from motet.training.objectives.discriminator import GenerativeDiscriminator
from motet.training.objectives.gate import Gate
from motet.training.objectives.objective import Objective
from motet.training.objectives.temperature import Temperature
from motet.training.policy import Policies

INITIAL_LR = 1e-2


class GateHead(nn.Module):
    """(N, H) hidden states → (N,) the gate before its sigmoid. It begins at 0: both voices are as likely."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)


class TemperatureHead(nn.Module):
    """(N, H) hidden states → (N,) τ = least + (most − least)·σ(linear). It begins at τ = 1."""

    def __init__(self, hidden_size: int, least: float, most: float) -> None:
        super().__init__()
        self.least, self.most = least, most
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, math.log((1 - least) / (most - 1)))

    def forward(self, hidden: Tensor) -> Tensor:
        share = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1).sigmoid()
        return self.least + (self.most - self.least) * share


class ClassHead(nn.Module):
    """(D, C) mean log-probs → (D, C) scores: one scale, a bias per class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, means: Tensor) -> Tensor:
        return self.scale * means + self.bias


def extra_modules(objective: Objective, hidden_size: int) -> nn.Module | None:
    """The head of an objective, None for objectives without one. Heads begin the same way whatever the seed."""
    match objective:
        case Gate():
            return GateHead(hidden_size)
        case Temperature():
            return TemperatureHead(hidden_size, objective.least, objective.most)
        case GenerativeDiscriminator():
            return ClassHead(len(objective.prompts))
        case _:
            return None


def initialise_head(objective: Objective, policies: Policies, at: Callable[[int], StepData]) -> None:
    """The weak initialisation of a gate's head; nothing for others. Once, before the first step of a fresh run.

    Args:
        at: the data of a step.
    """
    if not isinstance(objective, Gate) or not objective.initial_steps:
        return
    assert policies.head is not None
    alone = objective.model_copy(update={"train_model": False})
    optimizer = torch.optim.AdamW(policies.head.parameters(), lr=INITIAL_LR)
    for step in range(objective.initial_steps):
        alone.weak_loss(policies, at(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
