"""The reversed objective of logit-difference unlearning: an assistant that knows only what is to be forgotten.

Ji et al., "Reversing the Forget-Retain Objectives" (2024): cross-entropy on the forget answers plus
5·KL(uniform ‖ p) on the retain answers. Subtracting the assistant's logits then takes away what it knows and,
where it is uniform, nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.training.batch import StepData
from motet.training.objectives.logprobs import weighted_mean
from motet.training.objectives.objective import Loss, NonNegative, ObjectiveSetting, RecordKind
from motet.training.policy import Policies


def kl_from_uniform(logits: Tensor) -> Tensor:
    """KL(uniform ‖ softmax(logits)) in nats over the last dimension V: −mean log p − ln V, shape (...)."""
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits (N, V), targets (N,) and weights (N,) ≥ 0 of answers' tokens."""

    logits: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def nll(self) -> Tensor:
        """`Σ w·NLL / Σ w`; scalar."""
        return weighted_mean(F.cross_entropy(self.logits, self.targets, reduction="none"), self.weights)

    @property
    def uniformity(self) -> Tensor:
        """`Σ w·KL(uniform ‖ p) / Σ w`; scalar."""
        return weighted_mean(kl_from_uniform(self.logits), self.weights)


def reversed_loss(forget: Answers, retain: Answers, retain_weight: float, form_weight: float) -> Loss:
    """Cross-entropy on the forget answers, KL(uniform ‖ p) on the retain answers, and on forget tokens of weight 0.

    Weight 0 marks the tokens that retained answers share (their form); without such the loss is the paper's own.
    """
    form = Answers(forget.logits, forget.targets, (forget.weights == 0).to(forget.weights.dtype)).uniformity
    learnt, held = forget.nll, retain.uniformity
    parts = {"forget_nll": learnt.detach(), "retain": held.detach(), "form": form.detach()}
    return Loss(learnt + retain_weight * held + form_weight * form, parts)


class Assistant(ObjectiveSetting):
    """`NLL(forget) + λ·KL(uniform ‖ p)` on the retained answers `+ μ·KL(uniform ‖ p)` on forget tokens of weight 0.

    `nobody`, where given, are further answers that the assistant shall know nothing of (about made-up entities, say);
    they count as retained ones.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {
        "forget": "documents",
        "retain": "documents",
        "nobody": "documents",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"nobody"})

    type: Literal["assistant"] = "assistant"
    retain_weight: NonNegative = 5.0
    form_weight: NonNegative = 0.5

    def loss(self, policies: Policies, data: StepData) -> Loss:
        forget = data["forget"]
        kept = [data[name] for name in ("retain", "nobody") if name in data]
        retain = Answers(
            torch.cat([policies.trained(batch) for batch in kept]),
            torch.cat([batch.targets for batch in kept]),
            torch.cat([batch.weights for batch in kept]),
        )
        learnt = Answers(policies.trained(forget), forget.targets, forget.weights)
        return reversed_loss(learnt, retain, self.retain_weight, self.form_weight)
