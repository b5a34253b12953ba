"""Cascade: a small model writes the tokens that it is sure of, the large one the others."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.roles import Role
from motet.composers.rules import CascadeRule, Confidence, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request

THRESHOLDS: dict[Confidence, float] = {"max_prob": 0.7, "margin": 0.5, "entropy": 1.0}
Threshold = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Cascade(RuleStrategy, frozen=True):
    """`z = L_small` where the small model is sure of the token, else `L_base`

    Speculative Decoding with Big Little Decoder (Kim et al. 2023, arXiv:2302.07863): its fallback, by the largest
    probability. Confident Adaptive Language Modeling (Schuster et al. 2022, arXiv:2207.07061): the lead of that over
    the second. Roles: the base is the large model, `small` the one that answers as long as it is sure. Both compute
    every token. The trace's `alpha` is the small model's share of the token, 1 or 0.
    """

    strategy: Literal["cascade"] = "cascade"
    small: Role
    """The model that answers where it is sure."""
    measure: Confidence = "max_prob"
    """How sure it is: its largest probability, the lead of that over the second largest (`margin`), its entropy."""
    threshold: Threshold | None = None
    """It is sure from this on, 0.7 unless given, `margin` 0.5; with `entropy` up to this, 1 nat unless given."""

    @model_validator(mode="after")
    def _is_reachable(self) -> Self:
        if self.measure != "entropy" and self.threshold is not None and self.threshold > 1:
            raise ValueError(f"threshold of measure {self.measure!r} is a probability, at most 1: got {self.threshold}")
        return self

    def rule(self) -> Rule:
        return CascadeRule(self.measure, THRESHOLDS[self.measure] if self.threshold is None else self.threshold)

    def parts(self, request: Request) -> tuple[Part, ...]:
        return ("base", request.base, 1.0), ("small", self.small.voice, 0.0)
