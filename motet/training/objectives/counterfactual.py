"""Unlearning towards the model's own ignorance: what it says of somebody who does not exist.

What a model that never read the forgotten texts would answer is unknown where no such model can be trained. But the
model itself shows it, asked the same of a made-up entity: it answers in the same form, with the same confidence, and
knows nothing. Every forgotten entity gets one alias, and the forgotten answers are trained towards the answers about
the alias. The alias stays the same: over many aliases the mean answer is far flatter than any single one, and a
measure of forgetting would tell it from true ignorance.

Name swaps as an inference-time mixture are known from "Revisiting Who's Harry Potter" (Liu et al., 2024), the loss
through a composition from "Offset Unlearning for Large Language Models" (Huang et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.kernels.reference import kl_divergence
from motet.training.batch import Batch, StepData
from motet.training.objectives.logprobs import weighted_mean
from motet.training.objectives.objective import Loss, NonNegative, ObjectiveSetting, RecordKind
from motet.training.policy import Policies, Policy

HUBER = 2.0  # nats: beyond it a token's miss counts linearly


class Counterfactual(ObjectiveSetting):
    """`KL(q ‖ p) + μ·huber(log p(y) − log q(y))` on forget answers `+ λ·KL(target ‖ p)` on retained ones.

    p is what is trained (usually the composition of `through`: target minus assistant), q the member `target` that
    reads the counterfactual prompt. KL alone leaves the true answer, which p begins certain of and q finds unlikely,
    too much mass; the second term compares the log-probs of the records' own tokens. `nobody` counts as retained.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {
        "forget": "counterfactuals",
        "retain": "documents",
        "nobody": "documents",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"nobody"})
    member_fields: ClassVar[tuple[str, ...]] = ("target",)

    type: Literal["counterfactual"] = "counterfactual"
    target: str
    retain_weight: NonNegative = 10.0
    match_weight: NonNegative = 0.6

    def loss(self, policies: Policies, data: StepData) -> Loss:
        target = policies.members[self.target]
        forget, alias = data["forget"], data["forget.counterfactual"]
        after = policies.trained(forget).log_softmax(-1)
        wanted = _frozen(target, alias)[:, : after.shape[-1]].log_softmax(-1)
        towards = weighted_mean(kl_divergence(wanted, after), forget.weights)
        missed = weighted_mean(_miss(after, wanted, forget.targets), forget.weights)
        kept = _kept(policies.trained, target, [data[name] for name in ("retain", "nobody") if name in data])
        parts = {"forget_kl": towards.detach(), "forget_miss": missed.detach(), "retain_kl": kept.detach()}
        return Loss(towards + self.match_weight * missed + self.retain_weight * kept, parts)


def _frozen(policy: Policy, batch: Batch) -> Tensor:
    with torch.no_grad():
        return policy(batch).detach()


def _miss(after: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
    """(N,) Huber's loss between the targets' log-probs in (N, V) and (N, V)."""
    index = targets[:, None]
    return F.huber_loss(after.gather(-1, index), wanted.gather(-1, index), reduction="none", delta=HUBER)[:, 0]


def _kept(trained: Policy, target: Policy, batches: list[Batch]) -> Tensor:
    """Mean KL(target ‖ trained) in nats over the targets of all batches; scalar."""
    after = torch.cat([trained(batch) for batch in batches]).log_softmax(-1)
    before = torch.cat([_frozen(target, batch) for batch in batches])[:, : after.shape[-1]].log_softmax(-1)
    return weighted_mean(kl_divergence(before, after), torch.cat([batch.weights for batch in batches]))
