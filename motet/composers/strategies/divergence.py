"""Divergence decoding: unlearn by the difference of two small models, one without what shall be forgotten."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan
from motet.composers.roles import Role, Weight
from motet.composers.rules import DivergenceRule
from motet.composers.shift import Shift, Term
from motet.composers.strategies.rule_strategy import rule_plan
from motet.composers.strategies.strategy import Request, Strategy

_ALPHA, _COUNT = 1.5, 20


class Divergence(Strategy, frozen=True):
    """`z = L_base + α (L_without − L_with)`

    Divergence Decoding: Inference-Time Unlearning via Auxiliary Models (Merchant and Levy 2026, arXiv:2605.31293).
    Roles: the base knows what shall be forgotten; `with` is a small model that was trained on it too, `without` the
    same model trained on all but that. The `rank` form leaves the base's distribution as it is, without the `count`
    tokens of which `L_without − L_with` is lowest (and below 0): it cannot be stacked.
    """

    partners = ("with", "without")
    strength = "alpha"
    strategy: Literal["divergence"] = "divergence"
    without: Role
    """A small model that never saw what shall be forgotten."""
    with_: Role = Field(alias="with")
    """The same model trained on it as well."""
    form: Literal["linear", "rank"] = "linear"
    """`linear` adds the difference, `rank` makes the tokens that it disfavours most impossible."""
    alpha: Weight | None = None
    """Strength, 1.5 unless given; only in form `linear`."""
    count: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many tokens are impossible, 20 unless given; only in form `rank`."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.form == "rank" and self.alpha is not None:
            raise ValueError("alpha belongs to form 'linear': form 'rank' has a count")
        if self.form == "linear" and self.count is not None:
            raise ValueError("count belongs to form 'rank': form 'linear' has an alpha")
        return self

    def shift(self, request: Request) -> Shift:
        if self.form == "rank":
            raise CompositionError(
                f"{request.path}: form 'rank' of 'divergence' cannot be stacked: it is no sum of shifts", request.path
            )
        alpha = _ALPHA if self.alpha is None else self.alpha
        return Shift((Term("without", self.without.voice, alpha), Term("with", self.with_.voice, -alpha)))

    def plan(self, request: Request) -> Plan:
        if self.form == "linear":
            return super().plan(request)
        parts = (("base", request.base, 1.0), ("without", self.without.voice, 0.0), ("with", self.with_.voice, 0.0))
        return rule_plan(self, parts, DivergenceRule(_COUNT if self.count is None else self.count))
