"""Dynamic logits fusion: the strength of the shift is chosen anew for every token."""

from __future__ import annotations

from typing import Literal

from motet.composers.plan import Dynamic as DynamicRule
from motet.composers.plan import Rule
from motet.composers.roles import Role
from motet.composers.strategies.rule_strategy import Part, RuleStrategy, Strength
from motet.composers.strategies.strategy import Request


class Dynamic(RuleStrategy, frozen=True):
    """`z = L_base + α (L_expert − L_antiexpert)`, α ≤ `alpha_max` such that `KL(p_α‖p_base) = KL(p_expert‖p_anti)`

    On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion (Fan et al. 2024, arXiv:2406.15480).
    `symmetric` minimises the squares of the differences in both directions of the divergence. The trace reports α.
    """

    strategy: Literal["dynamic"] = "dynamic"
    expert: Role
    antiexpert: Role
    alpha_max: Strength = 2.0
    symmetric: bool = False

    def rule(self) -> Rule:
        return DynamicRule(self.alpha_max, self.symmetric)

    def parts(self, request: Request) -> tuple[Part, ...]:
        expert, antiexpert = ("expert", self.expert.voice, 1.0), ("antiexpert", self.antiexpert.voice, -1.0)
        return ("base", request.base, 1.0), expert, antiexpert
