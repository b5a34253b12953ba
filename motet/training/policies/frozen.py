"""Policies without gradients: members, and the trained policy as it was before training."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from motet.training.batch import Batch
from motet.training.policies.model import ModelPolicy
from motet.training.policy import Policy


class Frozen:
    """A policy whose outputs carry no gradient."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.policy(batch)


class AdaptersOff:
    """A peft model's policy with its adapters switched off: what it was before training, without a second copy."""

    def __init__(self, policy: ModelPolicy) -> None:
        self.policy = policy

    def __call__(self, batch: Batch) -> Tensor:
        model: Any = self.policy.model
        with torch.no_grad(), _evaluating(model), model.disable_adapter():
            return self.policy(batch)


def frozen_model(model: nn.Module, dtype: torch.dtype) -> Frozen:
    """A policy of a model that is not trained: in evaluation mode, its parameters without gradients."""
    return Frozen(ModelPolicy(model.eval().requires_grad_(False), dtype))


def reference_of(policy: ModelPolicy) -> Policy:
    """The policy as it is now, kept while the model is trained. Call it before the first step, or before a
    checkpoint is read: a copy holds what the model held when it was made."""
    if hasattr(policy.model, "disable_adapter"):
        return AdaptersOff(policy)
    return frozen_model(copy.deepcopy(policy.model), policy.dtype)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Without dropout."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
