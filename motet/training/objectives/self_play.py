"""Self-play fine-tuning: given answers against the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from motet.training.batch import StepData
from motet.training.objectives.logprobs import log_ratios
from motet.training.objectives.objective import Loss, RecordKind, Setting
from motet.training.objectives.preference import preference_parts, sigmoid_loss
from motet.training.policy import Policies


class SelfPlay(Setting):
    """One round of SPIN: `−log σ(λ·Δ)`, chosen the data's answer, rejected the one that the round's model gave.

    Chen et al., "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models", 2024. The reference
    is the model that the round begins with. `self_play.run_rounds` writes the pairs and trains round after round.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "pairs"}
    needs_reference: ClassVar[bool] = True

    type: Literal["spin"] = "spin"
    beta: PositiveFloat = 0.1  # the paper's λ
    rounds: PositiveInt = 3
    max_new_tokens: PositiveInt = 128
    temperature: Annotated[float, Field(ge=0)] = 1.0  # of the model's own answers; 0 is greedy

    def loss(self, policies: Policies, data: StepData) -> Loss:
        chosen, rejected = (log_ratios(policies, data[f"train.{side}"]) for side in ("chosen", "rejected"))
        total = sigmoid_loss(chosen, rejected, self.beta)
        return Loss(total, preference_parts(chosen, rejected, self.beta), weight=len(chosen))
