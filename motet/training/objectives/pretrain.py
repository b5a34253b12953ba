"""Pre-training with a weight per token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_nll(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ w·NLL / Σ w over logits (B, T, V), targets (B, T) and weights (B, T) ≥ 0 with a positive sum; scalar."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    flat = weights.flatten()
    return (nll * flat).sum() / flat.sum()
