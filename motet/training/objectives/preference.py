"""Direct preference optimisation: chosen answers against rejected ones, in self-play against the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from motet.training.batch import StepData
from motet.training.objectives.completion import Completion
from motet.training.objectives.logprobs import document_weights, log_ratios
from motet.training.objectives.objective import Loss, Objective, ObjectiveSetting, RecordKind
from motet.training.policy import Policies


def sigmoid_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """`−(1 − ε)·log σ(βΔ) − ε·log σ(−βΔ)`, Δ the difference of log-ratios (D,) of answers; scalar mean.

    Rafailov et al., "Direct Preference Optimization", 2023; ε > 0 is the conservative form for labels of which a
    share ε is wrong.
    """
    margin = beta * (chosen - rejected)
    return (-(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)).mean()


def ipo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """`(Δ − 1/(2β))²`, Δ the difference of log-ratios (D,) per token; scalar mean.

    Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, whose τ is β.
    """
    return (chosen - rejected - 1 / (2 * beta)).square().mean()


def preference_parts(chosen: Tensor, rejected: Tensor, beta: float) -> dict[str, Tensor]:
    """Metrics: the share of pairs in the right order, their mean margin in units of reward, the chosen reward."""
    margin = (chosen - rejected).detach()
    return {
        "accuracy": (margin > 0).to(margin.dtype).mean(),
        "margin": beta * margin.mean(),
        "chosen_reward": beta * chosen.detach().mean(),
    }


class Preference(ObjectiveSetting):
    """DPO (`form` sigmoid) or IPO. An answer's log-ratio is the (weighted) sum over its tokens, for IPO their mean."""

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "pairs"}
    needs_reference: ClassVar[bool] = True

    type: Literal["dpo"] = "dpo"
    form: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    def loss(self, policies: Policies, data: StepData) -> Loss:
        better, worse = data["train.chosen"], data["train.rejected"]
        chosen, rejected = log_ratios(policies, better), log_ratios(policies, worse)
        if self.form == "sigmoid":
            total = sigmoid_loss(chosen, rejected, self.beta, self.label_smoothing)
        else:
            total = ipo_loss(chosen / document_weights(better), rejected / document_weights(worse), self.beta)
        return Loss(total, preference_parts(chosen, rejected, self.beta), weight=len(chosen))


class SelfPlay(ObjectiveSetting):
    """One round of SPIN: `−log σ(λ·Δ)`, chosen the data's answer, rejected the one that the round's model gave.

    Chen et al., "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models", 2024. The reference
    is the model that the round begins with. `self_play.run_rounds` writes the pairs and trains round after round.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "pairs"}
    needs_reference: ClassVar[bool] = True
    rounds_begin_as: ClassVar[Objective | None] = Completion()

    type: Literal["spin"] = "spin"
    beta: PositiveFloat = 0.1  # the paper's λ
    rounds: PositiveInt = 3
    max_new_tokens: PositiveInt = 128
    temperature: Annotated[float, Field(ge=0)] = 1.0  # of the model's own answers; 0 is greedy

    def loss(self, policies: Policies, data: StepData) -> Loss:
        chosen, rejected = (log_ratios(policies, data[f"train.{side}"]) for side in ("chosen", "rejected"))
        total = sigmoid_loss(chosen, rejected, self.beta)
        return Loss(total, preference_parts(chosen, rejected, self.beta), weight=len(chosen))
