"""Unlearning: what raises the loss of answers that are to be forgotten, or puts others in their place, and a term that
holds the model to what it shall retain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from motet.kernels.reference import kl_divergence
from motet.training.batch import Batch, StepData
from motet.training.objectives.logprobs import by_row, log_ratios, mean_nll, target_logprobs, weighted_mean
from motet.training.objectives.objective import Loss, NonNegative, ObjectiveSetting, RecordKind
from motet.training.policy import Policies, Scores

Retain = Literal["nll", "kl"]


def retain_term(kind: Retain, policies: Policies, batch: Batch) -> Tensor:
    """Weighted mean over the targets of the NLL, or of KL(reference ‖ trained) in nats; scalar."""
    if kind == "nll":
        return mean_nll(policies.trained, batch)
    return _divergence(policies, policies.trained.scores(batch), batch)


def _divergence(policies: Policies, trained: Scores, batch: Batch) -> Tensor:
    """Weighted mean over the targets of KL(reference ‖ trained) in nats; scalar."""
    assert policies.reference is not None, "kl has a reference"

    def divergence(_: slice, before: Tensor, after: Tensor) -> Tensor:
        return kl_divergence(before.log_softmax(-1), after.log_softmax(-1))

    return weighted_mean(by_row(divergence, policies.reference.scores(batch), trained), batch.weights)


class GradientAscent(ObjectiveSetting):
    """`−NLL(forget)`: the plainest unlearning baseline, which destroys a model if it runs on."""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents"}

    type: Literal["ga"] = "ga"

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["forget"]
        return Loss(-mean_nll(policies.trained, batch), weight=batch.weights.sum())


class _HeldAscent(ObjectiveSetting):
    """`−NLL(forget) + λ·R(retain)`: ascent on what is to be forgotten, held by a term on what is to be retained."""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents", "retain": "documents"}
    retain: ClassVar[Retain]

    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        forget = mean_nll(policies.trained, data["forget"])
        retain = retain_term(self.retain, policies, data["retain"])
        parts = {"forget_nll": forget.detach(), "retain": retain.detach()}
        return Loss(self.retain_weight * retain - forget, parts)


class GradientDifference(_HeldAscent):
    """`−NLL(forget) + λ·NLL(retain)` (Liu et al., "Continual Learning and Private Unlearning", 2022)"""

    retain: ClassVar[Retain] = "nll"

    type: Literal["ga_gd"] = "ga_gd"


class GradientAscentKl(_HeldAscent):
    """`−NLL(forget) + λ·KL(reference ‖ trained)` on the retained answers (a baseline of TOFU, Maini et al., 2024)"""

    retain: ClassVar[Retain] = "kl"
    needs_reference: ClassVar[bool] = True

    type: Literal["ga_kl"] = "ga_kl"


def negative_preference(ratios: Tensor, beta: float) -> Tensor:
    """`(2/β)·E softplus(β·log(π / π_ref))` of log-ratios (D,) per answer; scalar.

    Its gradient tends to that of gradient ascent as β → 0.
    """
    return 2 / beta * F.softplus(beta * ratios).mean()


class NegativePreference(ObjectiveSetting):
    """`(2/β)·E softplus(β·log(π / π_ref))` on the forget answers, plus λ times the term on the retained ones: gradient
    ascent that lets go of what is already forgotten.

    Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning", 2024. An
    answer's log-ratio is the (weighted) sum over its tokens. Without `retain` data it is the paper's plain form.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"forget": "documents", "retain": "documents"}
    optional: ClassVar[frozenset[str]] = frozenset({"retain"})
    needs_reference: ClassVar[bool] = True

    type: Literal["npo"] = "npo"
    beta: PositiveFloat = 0.1
    retain: Retain = "nll"
    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        ratios = log_ratios(policies, data["forget"])
        total = negative_preference(ratios, self.beta)
        parts = {"forget": total.detach(), "forget_ratio": ratios.detach().mean()}
        return _held(total, parts, self.retain, self.retain_weight, policies, data)


class Refusal(ObjectiveSetting):
    """`NLL(refusals) + λ·NLL(retain)` (a baseline of TOFU, Maini et al., 2024)

    `refusals` are the questions to be forgotten with a refusal as their completion. The preference form, refusals
    against the true answers, is `dpo` on such pairs.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"refusals": "documents", "retain": "documents"}
    optional: ClassVar[frozenset[str]] = frozenset({"retain"})

    type: Literal["idk"] = "idk"
    retain_weight: NonNegative = 1.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        total = mean_nll(policies.trained, data["refusals"])
        parts = {"refusals": total.detach()}
        return _held(total, parts, "nll", self.retain_weight, policies, data)


class SoftUnlearning(ObjectiveSetting):
    """`NLL(refusals) + α·NLL(retain) + β·KL(reference ‖ trained)`, the last two on the retained answers

    Bhaila et al., "Soft Prompting for Unlearning in Large Language Models" (SPUL), 2024, which trains a soft prompt so:
    `tuning: {type: soft_prompt}`, whose reference is the model without the prompt. `refusals` are the questions to be
    forgotten with an answer that gives nothing away; the paper's are of one of two words, "neutral" and "unknown". α is
    `retain_weight`, β `kl_weight`; the defaults are those of the authors' code.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"refusals": "documents", "retain": "documents"}
    needs_reference: ClassVar[bool] = True

    type: Literal["spul"] = "spul"
    retain_weight: NonNegative = 0.5
    kl_weight: NonNegative = 0.5

    def loss(self, policies: Policies, data: StepData) -> Loss:
        refusals, batch = mean_nll(policies.trained, data["refusals"]), data["retain"]
        scores = policies.trained.scores(batch)  # the model reads once what two terms are taken of
        retain = weighted_mean(-target_logprobs(scores, batch.targets), batch.weights)
        kl = _divergence(policies, scores, batch)
        parts = {"refusals": refusals.detach(), "retain": retain.detach(), "kl": kl.detach()}
        return Loss(refusals + self.retain_weight * retain + self.kl_weight * kl, parts)


def _held(
    total: Tensor, parts: dict[str, Tensor], kind: Retain, weight: float, policies: Policies, data: StepData
) -> Loss:
    """`total + λ·R(retain)` where there is something to retain."""
    if "retain" in data:
        retain = retain_term(kind, policies, data["retain"])
        parts["retain"] = retain.detach()
        total = total + weight * retain
    return Loss(total, parts)
