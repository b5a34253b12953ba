"""Adaptive decoding: a learned head gives every token a temperature, or a shift its strength."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from motet.composers.roles import Role
from motet.composers.rules import AdaptiveRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request


class AdaptiveTemperature(RuleStrategy, frozen=True):
    """`z = L_base / t`; with `expert` and `antiexpert` `z = L_base + t (L_expert − L_antiexpert)`

    Adaptive Decoding via Latent Preference Optimization (Dhuliawala et al. 2024, arXiv:2411.09661); To Cool or not to
    Cool? Temperature Network Meets Large Foundation Models via DRO (Qiu et al. 2024, arXiv:2404.04575). t, the token's
    temperature or the strength of the shift, is what a head on the base's last hidden state says, which the objective
    `temperature_head` trains and the base's folder brings with it. Reported log-probs are those at t; the request's
    `temperature` divides once more, so 1 draws from them. The trace reports t as `head`. A `schedule` is the exponent
    of a temperature, and multiplies a strength.
    """

    partners = ("expert", "antiexpert")
    strategy: Literal["adaptive_temperature"] = "adaptive_temperature"
    expert: Role | None = None
    """The model that shows the behaviour whose strength the head gives; left out, the head gives temperatures."""
    antiexpert: Role | None = None
    """The same model without it."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.expert is None) != (self.antiexpert is None):
            raise ValueError("give expert and antiexpert, whose shift the head scales, or neither")
        return self

    def rule(self) -> Rule:
        return AdaptiveRule("temperature" if self.expert is None else "strength")

    def parts(self, request: Request) -> tuple[Part, ...]:
        base: Part = ("base", request.base, 1.0)
        if self.expert is None or self.antiexpert is None:
            return (base,)
        return base, ("expert", self.expert.voice, 1.0), ("antiexpert", self.antiexpert.voice, -1.0)
