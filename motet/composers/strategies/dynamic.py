"""Dynamic logits fusion: the strength of the shift is chosen anew for every token."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.roles import MAX_PARTS, Role, Spec, Weight
from motet.composers.rules import DynamicRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy, Strength
from motet.composers.strategies.strategy import Request


class ExpertPair(Spec, frozen=True):
    """What `expert` learned over `antiexpert`; `weight` multiplies the strength that was solved for."""

    expert: Role
    """The model that shows the behaviour."""
    antiexpert: Role
    """The same model without it."""
    weight: Weight = 1.0
    """Multiplies the strength that was solved for this pair."""


class Dynamic(RuleStrategy, frozen=True):
    """`z = L_base + Σ_i w_i α_i (L_expert_i − L_antiexpert_i)`, α ≤ `alpha_max` and `KL(p_α‖p_base) = KL(p_exp‖p_anti)`

    On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion (Fan et al. 2024, arXiv:2406.15480).
    `symmetric` minimises the squares of the differences in both directions of the divergence. One pair is written flat
    (`expert`, `antiexpert`), several as `pairs` with a `weight` (1) each: every α_i is solved for its pair alone, then
    weighted. The trace reports α.
    """

    partners = ("expert", "antiexpert")
    strategy: Literal["dynamic"] = "dynamic"
    expert: Role | None = None
    """The model that shows the behaviour. Excludes `pairs`."""
    antiexpert: Role | None = None
    """The same model without it."""
    pairs: Annotated[list[ExpertPair], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    """Several pairs, each with a strength of its own."""
    alpha_max: Strength = 2.0
    """The largest strength α that may be chosen."""
    symmetric: bool = False
    """Match both directions of the KL instead of one."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.pairs is not None and (self.expert is not None or self.antiexpert is not None):
            raise ValueError("give either pairs, or expert and antiexpert of one pair, not both")
        if self.pairs is None and (self.expert is None or self.antiexpert is None):
            raise ValueError("needs expert and antiexpert, or pairs")
        return self

    def all_pairs(self) -> list[ExpertPair]:
        if self.pairs is not None:
            return self.pairs
        assert self.expert is not None
        assert self.antiexpert is not None
        return [ExpertPair(expert=self.expert, antiexpert=self.antiexpert)]

    def rule(self) -> Rule:
        return DynamicRule(self.alpha_max, self.symmetric)

    def parts(self, request: Request) -> tuple[Part, ...]:
        parts: list[Part] = [("base", request.base, 1.0)]
        for number, pair in enumerate(self.all_pairs(), 1):
            suffix = "" if number == 1 else f"_{number}"
            parts.append((f"expert{suffix}", pair.expert.voice, pair.weight))
            parts.append((f"antiexpert{suffix}", pair.antiexpert.voice, -pair.weight))
        return tuple(parts)
