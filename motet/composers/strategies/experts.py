"""DExperts: steer a base with experts (towards) and anti-experts (away)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from motet.composers.roles import MAX_PARTS, Roles, Share, Weight, listed
from motet.composers.shift import Shift, Term, nucleus
from motet.composers.strategies.strategy import Request, Strategy

Alphas = Annotated[
    list[Weight],
    Field(min_length=1, max_length=MAX_PARTS),
    BeforeValidator(listed, json_schema_input_type=Weight | list[Weight]),
]


class Experts(Strategy, frozen=True):
    """`z = L_base + Σ_i α_i L_expert_i − Σ_j α_j L_antiexpert_j` inside the base's top-p set, else −inf

    DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts (Liu et al. 2021,
    arXiv:2105.03023). Either side is one role, a list or missing; `alpha` is one number for all, or a list whose i-th
    entry weighs the i-th of both sides. `top_p` None and 1 mean no mask.
    """

    strategy: Literal["experts"] = "experts"
    expert: Roles | None = None
    antiexpert: Roles | None = None
    alpha: Alphas = Field(default_factory=lambda: [1.0])
    top_p: Share | None = 0.9

    @model_validator(mode="after")
    def _sides(self) -> Self:
        if self.expert is None and self.antiexpert is None:
            raise ValueError("needs expert or antiexpert")
        for side, roles in (("expert", self.expert), ("antiexpert", self.antiexpert)):
            if len(self.alpha) > 1 and roles is not None and len(roles) != len(self.alpha):
                raise ValueError(f"alpha has {len(self.alpha)} entries, {side} {len(roles)}: give one for each, or one")
        return self

    def shift(self, request: Request) -> Shift:
        sides = (("expert", self.expert or [], 1.0), ("antiexpert", self.antiexpert or [], -1.0))
        terms = tuple(
            Term(name, role.voice, sign * self._alpha(i)) for name, roles, sign in sides for i, role in enumerate(roles)
        )
        mask = nucleus(request.base, self.top_p)
        return Shift(terms, () if mask is None else (mask,))

    def _alpha(self, i: int) -> float:
        return self.alpha[i] if len(self.alpha) > 1 else self.alpha[0]
