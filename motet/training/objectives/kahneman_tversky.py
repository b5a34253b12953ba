"""Kahneman–Tversky optimisation: answers that are desirable or not, without pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from motet.training.batch import StepData
from motet.training.objectives.logprobs import log_ratios
from motet.training.objectives.objective import Loss, NonNegative, ObjectiveSetting, RecordKind
from motet.training.objectives.pieces import mismatched
from motet.training.policy import Policies


def kto_losses(ratios: Tensor, desirable: Tensor, baseline: Tensor, beta: float) -> Tensor:
    """(D,) `1 − σ(β(r − z))` of desirable answers' log-ratios r, `1 − σ(β(z − r))` of the others; z scalar."""
    sign = torch.where(desirable, 1.0, -1.0).to(ratios.dtype)
    return 1 - (beta * sign * (ratios - baseline)).sigmoid()


class KahnemanTversky(ObjectiveSetting):
    """`mean λ·(1 − σ(±β(r − z)))` with r an answer's log-ratio and z ≥ 0 the divergence from the reference.

    Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024. z is estimated, without a
    gradient, from prompts with the answers of other documents of the batch; it needs two documents at least.

    `negative_margin`, where given, holds the undesirable answers: `negative_weight · mean relu(−margin − r)` is added,
    so that none becomes more than e^margin times less likely than before (left alone, their likelihood falls without
    end and takes that of similar answers with it).
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "labelled"}
    needs_reference: ClassVar[bool] = True
    least_documents: ClassVar[int] = 2

    type: Literal["kto"] = "kto"
    beta: PositiveFloat = 0.1
    desirable_weight: NonNegative = 1.0
    undesirable_weight: NonNegative = 1.0
    negative_margin: NonNegative | None = None  # nats
    negative_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        assert batch.labels is not None, "labelled records"
        desirable = batch.labels == 1
        with torch.no_grad():
            baseline = log_ratios(policies, mismatched(batch)).mean().clamp_min(0)
        ratios = log_ratios(policies, batch)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight).to(ratios.dtype)
        total = (weights * kto_losses(ratios, desirable, baseline, self.beta)).mean()
        held = self._constraint(ratios[~desirable])
        parts = {"kl": baseline, "constraint": held.detach(), "reward": self.beta * ratios.detach().mean()}
        return Loss(total + self.negative_weight * held, parts, weight=batch.num_documents)

    def _constraint(self, negatives: Tensor) -> Tensor:
        """Mean excess (nats) of the undesirable answers below the margin; scalar."""
        if self.negative_margin is None or len(negatives) == 0:
            return negatives.new_zeros(())
        return (-self.negative_margin - negatives).relu().mean()
