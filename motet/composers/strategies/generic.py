"""Generic prediction: take away what a model reinforced on the forget set likes more than the base does."""

from __future__ import annotations

from typing import Literal

from motet.composers.roles import Role
from motet.composers.rules import ReluRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy, Strength
from motet.composers.strategies.strategy import Request


class Generic(RuleStrategy, frozen=True):
    """`z = L_base − α relu(L_reinforced − L_base)`

    Who's Harry Potter? Approximate Unlearning in LLMs (Eldan and Russinovich 2023, arXiv:2310.02238), on log-probs:
    on raw logits the answer would depend on the members' arbitrary offsets. Roles: the base is the target,
    `reinforced` the same model trained further on what shall be forgotten.
    """

    partners = ("reinforced", "base")
    strength = "alpha"
    strategy: Literal["generic"] = "generic"
    reinforced: Role
    """The base, trained further on what shall be forgotten."""
    alpha: Strength = 1.0
    """Strength."""

    def rule(self) -> Rule:
        return ReluRule(self.alpha)

    def parts(self, request: Request) -> tuple[Part, ...]:
        return ("base", request.base, 1.0), ("reinforced", self.reinforced.voice, 0.0)
