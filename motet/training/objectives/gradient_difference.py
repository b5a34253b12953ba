"""Gradient difference: ascent on what is to be forgotten, descent on what is to be retained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from motet.training.batch import StepData
from motet.training.objectives.logprobs import mean_nll
from motet.training.objectives.objective import Loss, NonNegative, RecordKind, Setting
from motet.training.objectives.retain import retain_term
from motet.training.policy import Policies


class GradientDifference(Setting):
    """`−NLL(forget) + λ·NLL(retain)` (Liu et al., "Continual Learning and Private Unlearning", 2022)"""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents", "retain": "documents"}

    type: Literal["ga_gd"] = "ga_gd"
    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        forget = mean_nll(policies.trained, data["forget"])
        retain = retain_term("nll", policies, data["retain"])
        parts = {"forget_nll": forget.detach(), "retain": retain.detach()}
        return Loss(self.retain_weight * retain - forget, parts)
