"""Log-probs of a batch's targets, per token and per document."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from motet.kernels.composed_loss import block_rows, in_blocks
from motet.training.batch import Batch
from motet.training.policy import Policies, Policy, Scores


def by_row(values: Callable[..., Tensor], *scores: Scores) -> Tensor:
    """(N,) numbers of the rows of logits, without all logits at once where they are many.

    Args:
        values: is given rows as a slice and those rows of each of `scores` (n, V); returns (n,).
        scores: of the same targets.
    """
    ends = [0]
    for one in scores:
        ends.append(ends[-1] + len(one.inputs))

    def of_block(rows: slice, *inputs: Tensor) -> Tensor:
        parts = (inputs[start:end] for start, end in itertools.pairwise(ends))
        return values(rows, *(one.logits(rows, *part) for one, part in zip(scores, parts, strict=True)))

    size = block_rows(sum(one.width for one in scores))
    inputs = [part for one in scores for part in one.inputs]
    return in_blocks(of_block, inputs, size, trains=any(one.trains for one in scores))


def target_logprobs(scores: Scores, targets: Tensor) -> Tensor:
    """(N,) `log p(target)` in nats."""

    def chosen(rows: slice, logits: Tensor) -> Tensor:
        return -F.cross_entropy(logits, targets[rows], reduction="none")

    return by_row(chosen, scores)


def policy_logprobs(policy: Policy, batch: Batch) -> Tensor:
    """(N,) `log p(target)` in nats of a batch's targets."""
    return target_logprobs(policy.scores(batch), batch.targets)


def token_logprobs(logits: Tensor, batch: Batch) -> Tensor:
    """(N,) `log p(target)` in nats from logits (N, V)."""
    return -F.cross_entropy(logits, batch.targets, reduction="none")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """`Σ w·x / Σ w` of (N,) and (N,); 0 where no weight is positive. Scalar."""
    total = weights.sum()
    return (values * weights).sum() / total.masked_fill(total == 0, 1.0)


def mean_nll(policy: Policy, batch: Batch) -> Tensor:
    """`Σ w·NLL / Σ w` over the batch's targets; scalar."""
    return weighted_mean(-policy_logprobs(policy, batch), batch.weights)


def document_sums(values: Tensor, batch: Batch) -> Tensor:
    """(D,) `Σ w·x` over each document's targets, from (N,)."""
    return values.new_zeros(batch.num_documents).index_add(0, batch.owners, values * batch.weights)


def document_weights(batch: Batch) -> Tensor:
    """(D,) `Σ w` over each document's targets: their number where no weights are given."""
    return batch.weights.new_zeros(batch.num_documents).index_add(0, batch.owners, batch.weights)


def log_ratios(policies: Policies, batch: Batch) -> Tensor:
    """(D,) `Σ w·log(π / π_ref)` over each document's targets; gradients to π."""
    assert policies.reference is not None, "this objective has a reference"
    before = policy_logprobs(policies.reference, batch)
    return document_sums(policy_logprobs(policies.trained, batch) - before, batch)
