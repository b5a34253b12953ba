"""Negative preference optimisation: gradient ascent that lets go of what is already forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from motet.training.batch import StepData
from motet.training.objectives.logprobs import log_ratios
from motet.training.objectives.objective import Loss, NonNegative, RecordKind, Setting
from motet.training.objectives.retain import Retain, retain_term
from motet.training.policy import Policies


def negative_preference(ratios: Tensor, beta: float) -> Tensor:
    """`(2/β)·E softplus(β·log(π / π_ref))` of log-ratios (D,) per answer; scalar.

    Its gradient tends to that of gradient ascent as β → 0.
    """
    return 2 / beta * F.softplus(beta * ratios).mean()


class NegativePreference(Setting):
    """`(2/β)·E softplus(β·log(π / π_ref))` on the forget answers, plus λ times the term on the retained ones.

    Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning", 2024. An
    answer's log-ratio is the (weighted) sum over its tokens. Without `retain` data it is the paper's plain form.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents", "retain": "documents"}
    optional: ClassVar[frozenset[str]] = frozenset({"retain"})
    needs_reference: ClassVar[bool] = True

    type: Literal["npo"] = "npo"
    beta: PositiveFloat = 0.1
    retain: Retain = "nll"
    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        ratios = log_ratios(policies, data["forget"])
        total = negative_preference(ratios, self.beta)
        parts = {"forget": total.detach(), "forget_ratio": ratios.detach().mean()}
        if "retain" in data:
            retain = retain_term(self.retain, policies, data["retain"])
            parts["retain"] = retain.detach()
            total = total + self.retain_weight * retain
        return Loss(total, parts)
