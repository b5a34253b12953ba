"""Unlearning by logit difference: subtract an assistant that knows only what shall be forgotten."""

from __future__ import annotations

from typing import Literal

from motet.composers.roles import Role, Share, Weight
from motet.composers.shift import Shift, Term, VoiceSet
from motet.composers.strategies.strategy import Request, Strategy


class Unlearn(Strategy, frozen=True):
    """`z = L_base − w L_assistant` inside `{v: L_base[v] ≥ min(L_(m), max L_base + ln f)}`, else −inf

    `L_(m)` is the m-th largest of the base's log-probs, `m = max(1, ⌊f·V⌋)`. Reversing the Forget-Retain Objectives
    (Ji et al. 2024, arXiv:2406.08607). Roles: the base is the target, `assistant` remembers the forget set and is
    indifferent elsewhere. `filter` is f, None is no mask.
    """

    partners = ("assistant", "base")
    strength = "weight"
    strategy: Literal["unlearn"] = "unlearn"
    assistant: Role
    """The model that knows what shall be forgotten."""
    weight: Weight = 0.8
    """How much of the assistant is taken away."""
    filter: Share | None = 1e-2
    """Share f of the mask: what the base finds too unlikely stays impossible; null: no mask."""

    def shift(self, request: Request) -> Shift:
        masks = () if self.filter is None else (VoiceSet(request.base, "rank_or_ratio", self.filter),)
        return Shift((Term("assistant", self.assistant.voice, -self.weight),), masks)
