"""Collaborative decoding: a learned gate decides per token whether the base or an assistant speaks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from motet.composers.roles import Role
from motet.composers.rules import RoutedRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request

Threshold = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class Routed(RuleStrategy, frozen=True):
    """`z = L_assistant where d > threshold, else L_base`; without a threshold `z = log((1 − d) p_base + d p_assistant)`

    Learning to Decode Collaboratively with Multiple Language Models (Shen et al. 2024, arXiv:2403.03870). d is the
    sigmoid of a linear head on the base's last hidden state, which the objective `gate` trains and the base's folder
    brings with it; the base is the model that it was trained on. `threshold: null` mixes. The trace reports d as
    `head`. A `schedule` multiplies d, which is 1 at most.
    """

    partners = ("base", "assistant")
    strategy: Literal["routed"] = "routed"
    assistant: Role
    """The model that is asked where the gate opens: the one that the gate was trained with."""
    threshold: Threshold | None = 0.5
    """The assistant speaks where d is larger; null: both speak, by their shares."""

    def rule(self) -> Rule:
        return RoutedRule(self.threshold)

    def parts(self, request: Request) -> tuple[Part, ...]:
        return ("base", request.base, 1.0), ("assistant", self.assistant.voice, 1.0)
