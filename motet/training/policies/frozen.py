"""Policies without gradients: members, and the trained policy as it was before training."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn

from motet.training.batch import Batch
from motet.training.policies.model import ModelPolicy, evaluating
from motet.training.policy import Policy, Scores


class Frozen:
    """A policy whose outputs carry no gradient."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.policy(batch)

    def scores(self, batch: Batch) -> Scores:
        with torch.no_grad():
            return without_gradients(self.policy.scores(batch), torch.no_grad)


class AdaptersOff:
    """A peft model's policy with its adapters switched off: what it was before training, without a second copy."""

    def __init__(self, policy: ModelPolicy) -> None:
        self.policy = policy

    def __call__(self, batch: Batch) -> Tensor:
        with self._off():
            return self.policy(batch)

    def scores(self, batch: Batch) -> Scores:
        with self._off():
            return without_gradients(self.policy.scores(batch), self._off)

    @contextlib.contextmanager
    def _off(self) -> Generator[None]:
        model: Any = self.policy.model
        with torch.no_grad(), evaluating(model), model.disable_adapter():
            yield


def without_gradients(scores: Scores, within: Callable[[], contextlib.AbstractContextManager[Any]]) -> Scores:
    """The same scores, computed `within` a context and without gradients."""

    def logits(rows: slice, *inputs: Tensor) -> Tensor:
        with within():
            return scores.logits(rows, *inputs)

    return Scores(tuple(rows.detach() for rows in scores.inputs), logits, scores.width)


def frozen_model(model: nn.Module, dtype: torch.dtype) -> Frozen:
    """A policy of a model that is not trained: in evaluation mode, its parameters without gradients."""
    return Frozen(ModelPolicy(model.eval().requires_grad_(False), dtype))


def reference_of(policy: ModelPolicy) -> Policy:
    """The policy as it is now, kept while the model is trained. Call it before the first step, or before a
    checkpoint is read: a copy holds what the model held when it was made."""
    if hasattr(policy.model, "disable_adapter"):
        return AdaptersOff(policy)
    return frozen_model(copy.deepcopy(policy.model), policy.dtype)
