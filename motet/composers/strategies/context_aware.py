"""Context-aware decoding: how much a context counts against what the model knows by itself."""

from __future__ import annotations

from typing import Literal

from motet.composers.roles import Context, Voice, Weight
from motet.composers.shift import Shift, Term
from motet.composers.strategies.strategy import Request, Strategy


class ContextAware(Strategy, frozen=True):
    """`z = (1 + α) L(· | context, query) − α L(· | query)`

    Trusting Your Evidence: Hallucinate Less with Context-aware Decoding (Shi et al. 2023, arXiv:2305.14739). One
    model, two contexts: the base reads the request's prompt, context included, and the same model reads `without`.
    α = 0.5 for summaries, 1 for conflicts with what the model knows; α < 0 trusts the model's prior.
    """

    strength = "alpha"
    strategy: Literal["context_aware"] = "context_aware"
    without: Context
    """What the base reads in place of the prompt: the question without the context."""
    alpha: Weight = 0.5
    """How much the context counts beyond reading it."""

    def shift(self, request: Request) -> Shift:
        template = request.base.prompt.template if request.base.prompt else None
        without = Voice(request.base.model, self.without.as_prompt(template), self.without.temperature)
        return Shift((Term("base", request.base, self.alpha), Term("without", without, -self.alpha)))
