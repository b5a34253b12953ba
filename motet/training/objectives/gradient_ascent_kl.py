"""Gradient ascent held by the divergence from the model as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from motet.training.batch import StepData
from motet.training.objectives.logprobs import mean_nll
from motet.training.objectives.objective import Loss, NonNegative, RecordKind, Setting
from motet.training.objectives.retain import retain_term
from motet.training.policy import Policies


class GradientAscentKl(Setting):
    """`−NLL(forget) + λ·KL(reference ‖ trained)` on the retained answers (a baseline of TOFU, Maini et al., 2024)"""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents", "retain": "documents"}
    needs_reference: ClassVar[bool] = True

    type: Literal["ga_kl"] = "ga_kl"
    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        forget = mean_nll(policies.trained, data["forget"])
        retain = retain_term("kl", policies, data["retain"])
        parts = {"forget_nll": forget.detach(), "retain": retain.detach()}
        return Loss(self.retain_weight * retain - forget, parts)
