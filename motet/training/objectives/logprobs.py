"""Log-probs of a batch's targets, per token and per document."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from motet.training.batch import Batch
from motet.training.policy import Policies, Policy


def token_logprobs(logits: Tensor, batch: Batch) -> Tensor:
    """(N,) `log p(target)` in nats from logits (N, V)."""
    return -F.cross_entropy(logits, batch.targets, reduction="none")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """`Σ w·x / Σ w` of (N,) and (N,); 0 where no weight is positive. Scalar."""
    total = weights.sum()
    return (values * weights).sum() / total.masked_fill(total == 0, 1.0)


def mean_nll(policy: Policy, batch: Batch) -> Tensor:
    """`Σ w·NLL / Σ w` over the batch's targets; scalar."""
    return weighted_mean(-token_logprobs(policy(batch), batch), batch.weights)


def document_sums(values: Tensor, batch: Batch) -> Tensor:
    """(D,) `Σ w·x` over each document's targets, from (N,)."""
    return values.new_zeros(batch.num_documents).index_add(0, batch.owners, values * batch.weights)


def document_weights(batch: Batch) -> Tensor:
    """(D,) `Σ w` over each document's targets: their number where no weights are given."""
    return batch.weights.new_zeros(batch.num_documents).index_add(0, batch.owners, batch.weights)


def log_ratios(policies: Policies, batch: Batch) -> Tensor:
    """(D,) `Σ w·log(π / π_ref)` over each document's targets; gradients to π."""
    assert policies.reference is not None, "this objective has a reference"
    before = token_logprobs(policies.reference(batch), batch)
    return document_sums(token_logprobs(policies.trained(batch), batch) - before, batch)
