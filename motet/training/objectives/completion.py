"""Supervised training: cross-entropy over the tokens that count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict

from motet.training.batch import StepData
from motet.training.objectives.objective import Loss, RecordKind
from motet.training.policy import Policies


class Completion(BaseModel):
    """`Σ w·NLL / Σ w` over the batch's targets. Answers alone or whole texts: what counts is the data's matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}
    needs_reference: ClassVar[bool] = False

    type: Literal["sft"] = "sft"

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        nll = F.cross_entropy(policies.trained(batch), batch.targets, reduction="none")
        total = batch.weights.sum()
        return Loss((nll * batch.weights).sum() / total, weight=total)
