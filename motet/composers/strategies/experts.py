"""DExperts: steer a base with experts (towards) and anti-experts (away)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from motet.composers.roles import MAX_PARTS, RoleObject, Roles, Share, Voice, Weight, listed
from motet.composers.shift import Shift, Term, nucleus
from motet.composers.strategies.strategy import Request, Strategy

Alphas = Annotated[
    list[Weight],
    Field(min_length=1, max_length=MAX_PARTS),
    BeforeValidator(listed, json_schema_input_type=Weight | list[Weight]),
]


class Experts(Strategy, frozen=True):
    """`z = L_base + Σ_i α_i (L_expert_i − L_antiexpert_i)` inside the base's top-p set, else −inf

    DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts (Liu et al. 2021,
    arXiv:2105.03023). Either side is one role, a list or missing. Where the i-th of a side is missing, the base stands
    in its place, as in the authors' code: members that agree with the base change nothing, whichever side they are on.
    `alpha` is one number for all, or a list whose i-th entry weighs the i-th of both sides. `top_p` None and 1 mean no
    mask.
    """

    strength = "alpha"
    strategy: Literal["experts"] = "experts"
    expert: Roles | None = None
    """Models to steer towards; the base stands in for one that is missing."""
    antiexpert: Roles | None = None
    """Models to steer away from; the base stands in for one that is missing."""
    alpha: Alphas = Field(default_factory=lambda: [1.0])
    """Strength, one for all pairs or one each."""
    top_p: Share | None = 0.9
    """Only tokens of the base's top-p set are possible; null: all."""

    @model_validator(mode="after")
    def _sides(self) -> Self:
        if self.expert is None and self.antiexpert is None:
            raise ValueError("needs expert or antiexpert")
        for side, roles in (("expert", self.expert), ("antiexpert", self.antiexpert)):
            if len(self.alpha) > 1 and roles is not None and len(roles) != len(self.alpha):
                raise ValueError(f"alpha has {len(self.alpha)} entries, {side} {len(roles)}: give one for each, or one")
        return self

    def shift(self, request: Request) -> Shift:
        pairs = list(zip_longest(self.expert or [], self.antiexpert or []))
        alphas = self.alpha if len(self.alpha) > 1 else self.alpha * len(pairs)
        mask = nucleus(request.base, self.top_p)
        return Shift(
            (
                *_terms("expert", [expert for expert, _ in pairs], alphas, request.base),
                *_terms("antiexpert", [antiexpert for _, antiexpert in pairs], [-a for a in alphas], request.base),
            ),
            () if mask is None else (mask,),
        )


def _terms(name: str, roles: Sequence[RoleObject | None], weights: Sequence[float], base: Voice) -> tuple[Term, ...]:
    voices = [base if role is None else role.voice for role in roles]
    return tuple(Term(name, voice, weight) for voice, weight in zip(voices, weights, strict=True))
