"""Supervised training: cross-entropy over the tokens that count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from motet.training.batch import StepData
from motet.training.objectives.logprobs import mean_nll
from motet.training.objectives.objective import Loss, ObjectiveSetting, RecordKind
from motet.training.policy import Policies


class Completion(ObjectiveSetting):
    """`Σ w·NLL / Σ w` over the batch's targets. Answers alone or whole texts: what counts is the data's matter."""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}

    type: Literal["sft"] = "sft"

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        return Loss(mean_nll(policies.trained, batch), weight=batch.weights.sum())
