"""Proxy-tuning: tune a large model by the difference between a small tuned and a small untuned one."""

from __future__ import annotations

from typing import Literal

from motet.composers.roles import Role, Weight
from motet.composers.shift import Shift, Term
from motet.composers.strategies.strategy import Request, Strategy


class ProxyTuning(Strategy, frozen=True):
    """`z = L_base + α (L_expert − L_antiexpert)`

    Tuning Language Models by Proxy (Liu et al. 2024, arXiv:2401.08565). Roles: `expert` is the tuned small model,
    `antiexpert` the same model untuned.
    """

    partners = ("expert", "antiexpert")
    strength = "alpha"
    strategy: Literal["proxy_tuning"] = "proxy_tuning"
    expert: Role
    """The model that shows the behaviour."""
    antiexpert: Role
    """The same model without it."""
    alpha: Weight = 1.0
    """Strength; negative steers away."""

    def shift(self, request: Request) -> Shift:
        return Shift(
            (
                Term("expert", self.expert.voice, self.alpha),
                Term("antiexpert", self.antiexpert.voice, -self.alpha),
            )
        )
