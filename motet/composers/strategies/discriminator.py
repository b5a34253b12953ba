"""GeDi: two class-conditional streams judge every next token at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from motet.composers.roles import MAX_WEIGHT, Role, Share
from motet.composers.rules import DiscriminatorRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request


class Discriminator(RuleStrategy, frozen=True):
    """`z = L_base + ω log σ(s)`, s the mean over the tokens so far and v of `L_wanted − L_unwanted`

    GeDi: Generative Discriminator Guided Sequence Generation (Krause et al. 2020, arXiv:2009.06367). `wanted` and
    `unwanted` are usually one small model under two prompts, each a class and then the same text. The tokens so far
    are those of that text, the longest ending that both prompts share, and all that followed it. Kept are the tokens
    of the highest σ(s) until they hold `mass` of softmax(z) (1 − filter_p of the authors' code), and all with
    σ(s) ≥ `posterior`; `mass` 1 keeps all.
    """

    partners = ("wanted", "unwanted")  # one model may stand in both, under two prompts
    strength = "omega"
    strategy: Literal["discriminator"] = "discriminator"
    wanted: Role
    """The model of texts as they should be."""
    unwanted: Role
    """The model of texts as they should not be."""
    omega: Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)] = 30.0
    """Strength ω of the judgement."""
    mass: Share = 0.2
    """Tokens are kept, best judged first, until they hold this probability under the composition; 1 keeps all."""
    posterior: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.8
    """Tokens judged to be wanted with at least this probability are kept besides."""

    def rule(self) -> Rule:
        return DiscriminatorRule(self.omega, self.mass, self.posterior)

    def parts(self, request: Request) -> tuple[Part, ...]:
        wanted, unwanted = ("wanted", self.wanted.voice, 0.0), ("unwanted", self.unwanted.voice, 0.0)
        return ("base", request.base, 1.0), wanted, unwanted
