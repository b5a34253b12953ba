"""Supervised fine-tuning on completions alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORE = -100  # label of a position that carries no loss: prompts and padding


def completion_nll(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits (B, T, V) over the labels (B, T) that are not `IGNORE`; scalar.

    With `weights` (B, T) ≥ 0 it is the weighted mean; some label that counts must have a positive weight.
    """
    if weights is None:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    counted = (weights * (labels != IGNORE)).flatten()
    return (nll * counted).sum() / counted.sum()
