"""Unlearning by refusal: the questions are answered with "I don't know"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from motet.training.batch import StepData
from motet.training.objectives.logprobs import mean_nll
from motet.training.objectives.objective import Loss, NonNegative, RecordKind, Setting
from motet.training.objectives.retain import retain_term
from motet.training.policy import Policies


class Refusal(Setting):
    """`NLL(refusals) + λ·NLL(retain)` (a baseline of TOFU, Maini et al., 2024)

    `refusals` are the questions to be forgotten with a refusal as their completion. The preference form, refusals
    against the true answers, is `dpo` on such pairs.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"refusals": "documents", "retain": "documents"}
    optional: ClassVar[frozenset[str]] = frozenset({"retain"})

    type: Literal["idk"] = "idk"
    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        total = mean_nll(policies.trained, data["refusals"])
        parts = {"refusals": total.detach()}
        if "retain" in data:
            retain = retain_term("nll", policies, data["retain"])
            parts["retain"] = retain.detach()
            total = total + self.retain_weight * retain
        return Loss(total, parts)
