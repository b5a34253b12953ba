"""Budget: a trust region on how far a proxy may move the base."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from motet.composers.roles import Role
from motet.composers.rules import BudgetRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy, Strength
from motet.composers.strategies.strategy import Request

Epsilon = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class Budget(RuleStrategy, frozen=True):
    """`z = L_base + α (L_expert − L_antiexpert)` with the largest α ≤ `alpha_max` such that `KL(p_α‖p_base) ≤ ε`

    Proxy-tuning whose every token stays within ε nats of the base. The trace reports α. Any other sum of shifts is
    capped by the `budget` of `compose`.
    """

    partners = ("expert", "antiexpert")
    strategy: Literal["budget"] = "budget"
    expert: Role
    """The model that shows the behaviour."""
    antiexpert: Role
    """The same model without it."""
    epsilon: Epsilon = 0.5
    """Most that a token's distribution may move away from the base, as KL in nats."""
    alpha_max: Strength = 1.0
    """The largest strength α that may be chosen."""

    def rule(self) -> Rule:
        return BudgetRule(self.epsilon, self.alpha_max)

    def parts(self, request: Request) -> tuple[Part, ...]:
        expert, antiexpert = ("expert", self.expert.voice, 1.0), ("antiexpert", self.antiexpert.voice, -1.0)
        return ("base", request.base, 1.0), expert, antiexpert
