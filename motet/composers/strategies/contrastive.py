"""Contrastive decoding: prefer what a strong model likes more than a weak one does."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import model_validator

from motet.composers.roles import Role, Share, Temperature, Weight
from motet.composers.shift import Shift, Term, VoiceSet
from motet.composers.strategies.strategy import Request, Strategy

_BETA = 0.5


class Contrastive(Strategy, frozen=True):
    """`z = (1 + β) L_base − β L_amateur` inside `{v: L_base[v] ≥ max L_base + ln α}`, else −inf

    The `reasoning` form (O'Brien and Lewis 2023, arXiv:2309.09117), β = 0.5 unless given. The `original` form
    (Contrastive Decoding, Li et al. 2022, arXiv:2210.15097) is `L_base − L_amateur` in the same mask. Roles: the
    base is the expert, `amateur` the weak model, which may be blind to all but `last_tokens` of the prompt;
    `amateur_temperature` divides its logits.
    """

    strength = "beta"
    strategy: Literal["contrastive"] = "contrastive"
    amateur: Role
    """The weak model."""
    alpha: Share = 0.1
    """Tokens less likely than this share of the base's most likely one are impossible."""
    beta: Weight | None = None
    """Strength of the contrast, 0.5 unless given; only in form `reasoning`."""
    form: Literal["reasoning", "original"] = "reasoning"
    """`reasoning` is (1 + β) L_base − β L_amateur, `original` is L_base − L_amateur."""
    amateur_temperature: Temperature = 1.0
    """Divides the amateur's logits."""

    @model_validator(mode="after")
    def _beta_has_a_meaning(self) -> Self:
        if self.form == "original" and self.beta is not None:
            raise ValueError("beta belongs to form 'reasoning': form 'original' has weights 1 and −1")
        if self.amateur_temperature != 1.0 and self.amateur.temperature != 1.0:
            raise ValueError("amateur_temperature and the amateur's own temperature are the same: give one of them")
        return self

    def shift(self, request: Request) -> Shift:
        temperature = self.amateur.temperature * self.amateur_temperature  # one of them is 1
        amateur = replace(self.amateur.voice, temperature=temperature)
        mask = VoiceSet(request.base, "ratio", self.alpha)
        if self.form == "original":
            return Shift((Term("amateur", amateur, -1.0),), (mask,))
        beta = _BETA if self.beta is None else self.beta
        terms = (Term("base", request.base, beta), Term("amateur", amateur, -beta))
        return Shift(terms, (mask,))
