"""The reversed objective of logit-difference unlearning: an assistant that knows only what is to be forgotten.

Ji et al., "Reversing the Forget-Retain Objectives" (2024): cross-entropy on the forget answers plus
5·KL(uniform ‖ p) on the retain answers. Subtracting the assistant's logits then takes away what it knows and,
where it is uniform, nothing.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from motet.training.objectives.sft import IGNORE


def kl_from_uniform(logits: Tensor) -> Tensor:
    """KL(uniform ‖ softmax(logits)) in nats over the last dimension V: −mean log p − ln V, shape (...)."""
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


def reversed_objective(
    logits: Tensor,
    labels: Tensor,
    forget: Tensor,
    known: Tensor,
    *,
    retain_weight: float = 5.0,
    form_weight: float = 0.5,
) -> Tensor:
    """CE on what the assistant shall know + weighted KL(uniform ‖ p) on every other answer token; scalar.

    `known` narrows the cross-entropy to the tokens that carry the forgotten facts; the forget answers' other
    tokens, which retained answers share, go towards uniform with `form_weight`. All-true is the paper's own form.

    Args:
        logits: (B, T, V).
        labels: (B, T), `IGNORE` outside of answers.
        forget: (B,) bool, rows whose answers are to be forgotten; at least one of each sort.
        known: (B, T) bool, tokens of forget rows that the assistant learns.
    """
    answers = labels != IGNORE
    rows = forget[:, None]
    learnt = answers & rows & known
    uniform = kl_from_uniform(logits)
    loss = F.cross_entropy(logits[learnt], labels[learnt]) + retain_weight * uniform[answers & ~rows].mean()
    form = answers & rows & ~known
    return loss + form_weight * uniform[form].mean() if form.any() else loss
