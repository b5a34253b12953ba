"""Contrastive generation: what a fine-tune learned that its starting point did not know."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from motet.composers.roles import Role, Share, Weight
from motet.composers.shift import Shift, Term, VoiceSet
from motet.composers.strategies.strategy import Request, Strategy


class Novelty(Strategy, frozen=True):
    """`z = L_base − λ L_untuned` inside `{v: L_base[v] ≥ max L_base + ln α}`, else −inf

    What's New in My Data? Novelty Exploration via Contrastive Generation (Isonuma and Titov 2024,
    arXiv:2410.14765). Roles: the base is the fine-tuned model, `untuned` its starting point; in the iterative form that
    model after it has learned what was sampled so far. λ is written `lambda`; α is contrastive decoding's 0.1 unless
    given, None is no mask.
    """

    partners = ("base", "untuned")
    strength = "lambda"
    strategy: Literal["novelty"] = "novelty"
    untuned: Role
    """The model before it was tuned."""
    lambda_: Weight = Field(default=1.0, alias="lambda")
    """How much of the untuned model is taken away."""
    alpha: Share | None = 0.1
    """Tokens less likely than this share of the base's most likely one are impossible; null: none are."""

    def shift(self, request: Request) -> Shift:
        masks = () if self.alpha is None else (VoiceSet(request.base, "ratio", self.alpha),)
        return Shift((Term("untuned", self.untuned.voice, -self.lambda_),), masks)
