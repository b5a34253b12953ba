"""Distillation: the distribution of another model, or of a composition, is put into the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from motet.training.batch import StepData
from motet.training.objectives.logprobs import token_logprobs, weighted_mean
from motet.training.objectives.objective import Loss, RecordKind, Setting, Share
from motet.training.policy import Policies, TopTokens


def truncated_divergence(teacher: TopTokens, logits: Tensor) -> Tensor:
    """(N,) KL(teacher ‖ student) in nats over the teacher's top k tokens, all others counted as one.

    It is at most the full divergence (data processing), and that for k = V.

    Args:
        logits: (N, V) of the student.
    """
    logprobs = logits.log_softmax(-1)
    divergence = (teacher.logprobs.exp() * (teacher.logprobs - logprobs.gather(-1, teacher.ids))).sum(-1)
    if teacher.ids.shape[-1] == logits.shape[-1]:
        return divergence
    rest = logprobs.scatter(-1, teacher.ids, -math.inf).logsumexp(-1)
    remainder = teacher.rest.exp() * (teacher.rest - rest)
    return divergence + torch.where(teacher.rest == -math.inf, 0.0, remainder)


class Distillation(Setting):
    """`Σ w·KL(teacher ‖ student) / Σ w` over the targets' positions, plus `nll_weight` times their NLL.

    The teacher is a member, or a composition of members (by which a composition is baked into one model's weights).
    Its `top_k` most likely tokens are stored on disk before training, the mass of all others as one.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}

    type: Literal["distill"] = "distill"
    teacher: str | dict[str, Any] = Field(description="a member's name, or a composition of members")
    top_k: PositiveInt = 64
    nll_weight: Share = 0.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        assert policies.teacher is not None, "a distillation has a teacher"
        logits = policies.trained(batch)
        divergence = weighted_mean(truncated_divergence(policies.teacher(batch), logits), batch.weights)
        nll = weighted_mean(-token_logprobs(logits, batch), batch.weights)
        parts = {"kl": divergence.detach(), "nll": nll.detach()}
        return Loss(divergence + self.nll_weight * nll, parts, weight=batch.weights.sum())
