"""Self-highlighted hesitation: read once more what is least expected in the prompt, and trust that reading more."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from motet.composers.plan import Prompt
from motet.composers.roles import Share, Weight
from motet.composers.shift import Shift, Term, VoiceSet
from motet.composers.strategies.strategy import Request, Strategy

KeyShare = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Hesitation(Strategy, frozen=True):
    """`z = (1 + α) L_pondered − α L_base` inside `{v: L_pondered[v] ≥ max L_pondered + ln m}`, else −inf

    SH2: Self-Highlighted Hesitation Helps You Decode More Truthfully (Kai et al. 2024, arXiv:2401.05930). One model,
    two contexts: the base reads the prompt, `pondered` the prompt and its key tokens once more. These are the `share`
    of its tokens, rounded down but one at least, that the base finds least likely, the first of equal ones first; they
    are read in the order of the prompt. The engine scores the prompt for it, once, before the answer begins. In a chat
    the last user message is scored, by itself, and the key tokens stand at its end, behind a line break and
    "Pondering: ". A text, or token ids, are scored as they are read, and the key tokens stand in front, between
    "Pondering: " and an empty line with "Context:", so that the answer still continues the text. Special tokens are
    never key tokens; of a prompt of one token there is none, and both contexts are the same.
    """

    strategy: Literal["hesitation"] = "hesitation"
    alpha: Weight = 1.6
    """How much the key tokens count beyond reading them: 0 is the model after pondering, −1 the base."""
    share: KeyShare = 0.04
    """Which share of the prompt's tokens are read once more; 0 is the base, inside of the mask."""
    mask: Share | None = 0.1
    """Tokens less likely than this share of the most likely one, after pondering, are impossible; null: none are."""

    def shift(self, request: Request) -> Shift:
        own = request.base.prompt or Prompt()
        voice = replace(request.base, prompt=replace(own, pondered=self.share)) if self.share else request.base
        weight = 1.0 + self.alpha
        masks = () if self.mask is None else (VoiceSet(voice, "ratio", self.mask),)
        return Shift((Term("pondered", voice, weight), Term("base", request.base, -weight)), masks)
