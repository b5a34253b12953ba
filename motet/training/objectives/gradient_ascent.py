"""Gradient ascent: the plainest unlearning baseline, which destroys a model if it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from motet.training.batch import StepData
from motet.training.objectives.logprobs import mean_nll
from motet.training.objectives.objective import Loss, RecordKind, Setting
from motet.training.policy import Policies


class GradientAscent(Setting):
    """`−NLL(forget)`"""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents"}

    type: Literal["ga"] = "ga"

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["forget"]
        return Loss(-mean_nll(policies.trained, batch), weight=batch.weights.sum())
