"""Cascade: a small model writes the tokens, or the answers, that it is sure of, the large one the others."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.confidence import Aggregate, Confidence, Judge
from motet.composers.roles import Role
from motet.composers.rules import CascadeRule, EscalationRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request

THRESHOLDS: dict[Confidence, float] = {"max_prob": 0.7, "margin": 0.5, "entropy": 1.0}
Threshold = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Quantile = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Cascade(RuleStrategy, frozen=True):
    """`z = L_small` where the small model is sure, of the token or of its whole answer, else `L_base`

    Speculative Decoding with Big Little Decoder (Kim et al. 2023, arXiv:2302.07863): its fallback, by the largest
    probability. Confident Adaptive Language Modeling (Schuster et al. 2022, arXiv:2207.07061): the lead of that over
    the second. Roles: the base is the large model, `small` the one that answers as long as it is sure. Per token both
    compute every token, and the trace's `alpha` is the small model's share of the token, 1 or 0.

    Per request the small model writes the whole answer alone, and the large one another where that was not sure:
    Language Model Cascades: Token-level uncertainty and beyond (Gupta et al. 2024, arXiv:2404.10136). How sure it was
    of each token is read after the request's masks, before biases, penalties and the request's temperature, up to the
    answer's end, which counts. `aggregate` makes one number of them: of `max_prob` the `mean` is the geometric one, the
    `sum` the product, which is the probability of a greedy answer. Every choice is judged by itself.
    """

    strategy: Literal["cascade"] = "cascade"
    small: Role
    """The model that answers where it is sure."""
    measure: Confidence = "max_prob"
    """How sure it is: its largest probability, the lead of that over the second largest (`margin`), its entropy."""
    threshold: Threshold | None = None
    """It is sure from this on, 0.7 unless given, `margin` 0.5; with `entropy` up to this, 1 nat unless given."""
    per: Literal["token", "request"] = "token"
    """What it must be sure of: of each token that it writes, or of its whole answer."""
    aggregate: Aggregate | None = None
    """What the tokens make of the answer, per request: their mean unless given, sum, quantile, or the first alone."""
    quantile: Quantile | None = None
    """Which quantile, 0 unless given: 0 is the least sure token, 1 the surest."""

    @model_validator(mode="after")
    def _is_reachable(self) -> Self:
        if self.measure != "entropy" and self.threshold is not None and self.threshold > 1:
            raise ValueError(f"threshold of measure {self.measure!r} is a probability, at most 1: got {self.threshold}")
        return self

    @model_validator(mode="after")
    def _judges_answers(self) -> Self:
        if self.per == "token" and self.aggregate is not None:
            raise ValueError("aggregate is of whole answers: add per 'request'")
        if self.quantile is not None and self.aggregate != "quantile":
            raise ValueError("quantile needs aggregate 'quantile'")
        if self.aggregate == "sum" and self.measure == "margin":
            raise ValueError("leads have no sum that says anything: take aggregate 'mean', or measure 'max_prob'")
        if self.per == "request" and self.schedule is not None:
            raise ValueError("schedule counts tokens, and whole answers are judged: leave it out, or take per 'token'")
        return self

    def rule(self) -> Rule:
        threshold = THRESHOLDS[self.measure] if self.threshold is None else self.threshold
        if self.per == "token":
            return CascadeRule(self.measure, threshold)
        return EscalationRule(Judge(self.measure, self.aggregate or "mean", threshold, self.quantile or 0.0))

    def parts(self, request: Request) -> tuple[Part, ...]:
        return ("base", request.base, 1.0), ("small", self.small.voice, 0.0 if self.per == "token" else 1.0)
