"""Distillation: the distribution of another model, or of a composition, is put into the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from motet.training.batch import StepData
from motet.training.objectives.logprobs import by_row, weighted_mean
from motet.training.objectives.objective import Loss, ObjectiveSetting, RecordKind, Share
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


class Distillation(ObjectiveSetting):
    """`Σ w·KL(teacher ‖ student) / Σ w` over the targets' positions, plus `nll_weight` times their NLL.

    The teacher is a member, or a composition of members (by which a composition is baked into one model's weights).
    Its `top_k` most likely tokens are stored on disk before training, the mass of all others as one.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}
    member_fields: ClassVar[tuple[str, ...]] = ("teacher",)

    type: Literal["distill"] = "distill"
    teacher: str | dict[str, Any] = Field(description="a member's name, or a composition of members")
    top_k: PositiveInt = 64
    nll_weight: Share = 0.0

    @property
    def teacher_tokens(self) -> int:
        return self.top_k

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        assert policies.teacher is not None, "a distillation has a teacher"
        teacher, nll = policies.teacher(batch), torch.zeros_like(batch.weights)

        def losses(rows: slice, logits: Tensor) -> Tensor:
            own = F.cross_entropy(logits, batch.targets[rows], reduction="none")
            nll[rows] = own.detach().to(nll.dtype)
            return truncated_divergence(teacher.rows(rows), logits) + self.nll_weight * own

        total = weighted_mean(by_row(losses, policies.trained.scores(batch)), batch.weights)
        mean = weighted_mean(nll, batch.weights)
        parts = {"kl": total.detach() - self.nll_weight * mean, "nll": mean}
        return Loss(total, parts, weight=batch.weights.sum())
