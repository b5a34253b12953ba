"""What is minimised: objectives by what they are for, all of them in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from motet.training.objectives.assistant import Assistant
from motet.training.objectives.completion import Completion
from motet.training.objectives.counterfactual import Counterfactual
from motet.training.objectives.discriminator import GenerativeDiscriminator
from motet.training.objectives.distillation import Distillation
from motet.training.objectives.gate import Gate
from motet.training.objectives.kahneman_tversky import KahnemanTversky
from motet.training.objectives.objective import Objective, ObjectiveSetting
from motet.training.objectives.preference import Preference, SelfPlay
from motet.training.objectives.router import Router
from motet.training.objectives.similarity import Similarity
from motet.training.objectives.temperature import Temperature
from motet.training.objectives.unlearning import (
    GradientAscent,
    GradientAscentKl,
    GradientDifference,
    NegativePreference,
    Refusal,
    SoftUnlearning,
)

OBJECTIVES: dict[str, type[ObjectiveSetting]] = {
    "sft": Completion,
    "dpo": Preference,
    "kto": KahnemanTversky,
    "spin": SelfPlay,
    "distill": Distillation,
    "assistant": Assistant,
    "counterfactual": Counterfactual,
    "npo": NegativePreference,
    "ga": GradientAscent,
    "ga_gd": GradientDifference,
    "ga_kl": GradientAscentKl,
    "idk": Refusal,
    "spul": SoftUnlearning,
    "gate": Gate,
    "router": Router,
    "gedi": GenerativeDiscriminator,
    "temperature_head": Temperature,
    "similarity_head": Similarity,
}

if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = Annotated[Union[tuple(OBJECTIVES.values())], Field(discriminator="type")]  # noqa: UP007
