"""Supervised fine-tuning on completions alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # label of a position that carries no loss: prompts and padding


def completion_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, T, V) over the labels (B, T) that are not `IGNORE`; scalar."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
