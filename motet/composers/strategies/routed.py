"""Collaborative decoding: a learned head decides per token whether the base or an assistant speaks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from motet.composers.plan import Plan
from motet.composers.roles import Role
from motet.composers.rules import RoutedRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy, rule_plan
from motet.composers.strategies.strategy import Request

Threshold = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Routed(RuleStrategy, frozen=True):
    """`z = L_assistant where d > threshold, else L_base`; without a threshold `z = log((1 − d) p_base + d p_assistant)`

    Learning to Decode Collaboratively with Multiple Language Models (Shen et al. 2024, arXiv:2403.03870). R2R:
    Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing (Fu et al. 2025,
    arXiv:2505.21600). d is what a head says of the base's next token, which the base's folder brings with it; the base
    is the model that it was trained on. It is a gate, the sigmoid of a linear head on the last hidden state, which the
    objective `gate` trains, or a router, the sigmoid of a feed-forward network on the last hidden state, the
    probabilities of the most likely tokens and the embedding of the first of them, which `router` trains.
    `threshold: null` mixes. The trace reports d as `head`. A `schedule` multiplies d, which is 1 at most.
    """

    partners = ("base", "assistant")
    strategy: Literal["routed"] = "routed"
    assistant: Role
    """The model that is asked where d is large: the one that the head was trained with."""
    threshold: Threshold | Literal["own"] | None = "own"
    """The assistant speaks where d is larger; `own`: than its training chose, than 0.5 of a gate; null: both speak."""

    def plan(self, request: Request) -> Plan:
        rule = self.rule()
        if self.threshold == "own" and request.threshold is not None:
            rule = RoutedRule(request.threshold)
        return rule_plan(self, self.parts(request), rule)

    def rule(self) -> Rule:
        return RoutedRule() if self.threshold == "own" else RoutedRule(self.threshold)

    def parts(self, request: Request) -> tuple[Part, ...]:
        return ("base", request.base, 1.0), ("assistant", self.assistant.voice, 1.0)
