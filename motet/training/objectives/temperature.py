"""A temperature for every token, given by a head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self, cast

import torch.nn.functional as F
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from motet.experts.schema import HeadSpec
from motet.models.heads import ScaleHead
from motet.training.batch import StepData
from motet.training.objectives.logprobs import weighted_mean
from motet.training.objectives.objective import Loss, NonNegative, ObjectiveSetting, RecordKind
from motet.training.policy import HiddenPolicy, Policies


def robust_losses(logits: Tensor, targets: Tensor, temperature: Tensor, rho: float, least: float) -> Tensor:
    """(N,) `τ·log[(1/V)·Σ_v exp((l_v − l_y)/τ)] + (τ − τ₀)·ρ`.

    The dual of the worst mean of `l_v − l_y` over distributions of v within KL ρ of the uniform one, τ₀ times their
    divergence subtracted (Qiu et al., "To Cool or not to Cool? Temperature Network Meets Large Foundation Models via
    DRO", 2024). Its least τ grows with the number of tokens that could stand in y's place.

    Args:
        logits: (N, V).
        targets: (N,).
        temperature: (N,) ≥ `least`, which is τ₀.
    """
    nll = F.cross_entropy(logits / temperature[:, None], targets, reduction="none")
    return temperature * (nll - math.log(logits.shape[-1])) + (temperature - least) * rho


class Temperature(ObjectiveSetting):
    """A head's t in [`least`, `most`] from the last hidden state; the model itself is trained only where asked for.

    `form` cross_entropy is the NLL at temperature t: a calibration that knows the context. `form` robust is
    `robust_losses`. With the members `expert` and `antiexpert` t is the strength of their shift, and the loss the NLL
    of `L_trained + t (L_expert − L_antiexpert)`. The strategy `adaptive_temperature` serves both.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}
    member_fields: ClassVar[tuple[str, ...]] = ("expert", "antiexpert")
    one_model: ClassVar[bool] = True

    type: Literal["temperature_head"] = "temperature_head"
    form: Literal["cross_entropy", "robust"] = "cross_entropy"
    least: PositiveFloat = 0.1
    most: PositiveFloat = 2.0
    rho: NonNegative = 5.0  # nats; below ln V
    expert: str | None = None
    antiexpert: str | None = None
    train_model: bool = False

    @model_validator(mode="after")
    def _holds_one(self) -> Self:
        if not self.least < 1 < self.most:
            raise ValueError(f"least and most must enclose 1, got {self.least} and {self.most}")
        return self

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.expert is None) != (self.antiexpert is None):
            raise ValueError("give expert and antiexpert, whose shift the head scales, or neither")
        if self.expert is not None and self.form == "robust":
            raise ValueError("form robust is a loss of temperatures; with expert and antiexpert it is cross_entropy")
        return self

    @property
    def head_spec(self) -> HeadSpec:
        kind = "temperature" if self.expert is None else "strength"
        return HeadSpec(kind=kind, least=self.least, most=self.most)

    def head(self, hidden_size: int) -> nn.Module:
        return ScaleHead(hidden_size, self.least, self.most)

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        assert policies.head is not None, "temperature_head has a head"
        hidden, logits = cast("HiddenPolicy", policies.trained).hidden(batch)
        if not self.train_model:
            hidden, logits = hidden.detach(), logits.detach()
        scale: Tensor = policies.head(hidden)
        if self.expert is None or self.antiexpert is None:
            composed = logits / scale[:, None]
        else:
            composed = _shifted(logits, scale, *(policies.members[name](batch) for name in self._pair()))
        nll = F.cross_entropy(composed, batch.targets, reduction="none")
        losses = robust_losses(logits, batch.targets, scale, self.rho, self.least) if self.form == "robust" else nll
        parts = {
            "temperature" if self.expert is None else "strength": weighted_mean(scale.detach(), batch.weights),
            "nll": weighted_mean(nll.detach(), batch.weights),
        }
        return Loss(weighted_mean(losses, batch.weights), parts, weight=batch.weights.sum())

    def _pair(self) -> tuple[str, ...]:
        return tuple(name for name in (self.expert, self.antiexpert) if name is not None)


def _shifted(logits: Tensor, strength: Tensor, expert: Tensor, antiexpert: Tensor) -> Tensor:
    """(N, V) `l + t (l_expert − l_antiexpert)` over the tokens that all have; constants per row cancel in the loss."""
    width = min(part.shape[-1] for part in (logits, expert, antiexpert))
    return logits[:, :width] + strength[:, None] * (expert[:, :width] - antiexpert[:, :width])
