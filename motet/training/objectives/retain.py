"""What keeps an unlearning objective from forgetting everything: a term on what shall be retained."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from motet.kernels.reference import kl_divergence
from motet.training.batch import Batch
from motet.training.objectives.logprobs import by_row, mean_nll, weighted_mean
from motet.training.policy import Policies

Retain = Literal["nll", "kl"]


def retain_term(kind: Retain, policies: Policies, batch: Batch) -> Tensor:
    """Weighted mean over the targets of the NLL, or of KL(reference ‖ trained) in nats; scalar."""
    if kind == "nll":
        return mean_nll(policies.trained, batch)
    assert policies.reference is not None, "kl has a reference"

    def divergence(_: slice, before: Tensor, after: Tensor) -> Tensor:
        return kl_divergence(before.log_softmax(-1), after.log_softmax(-1))

    both = policies.reference.scores(batch), policies.trained.scores(batch)
    return weighted_mean(by_row(divergence, *both), batch.weights)
