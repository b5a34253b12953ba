"""Pre-training with a weight per token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from motet.training.objectives.logprobs import weighted_mean


def weighted_nll(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ w·NLL / Σ w over logits (B, T, V), targets (B, T) and weights (B, T) ≥ 0; scalar."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return weighted_mean(nll, weights.flatten())
