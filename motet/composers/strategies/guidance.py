"""Classifier-free guidance: follow the prompt more (or less) than the model would by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import model_validator

from motet.composers.plan import Prompt
from motet.composers.roles import Context, Voice, Weight
from motet.composers.shift import Shift, Term
from motet.composers.strategies.strategy import Request, Strategy


class Guidance(Strategy, frozen=True):
    """`z = γ L(· | prompt) + (1 − γ) L(· | unconditional)`

    Stay on topic with Classifier-Free Guidance (Sanchez et al. 2023, arXiv:2306.17806). `scale` is γ, 1 is off. The
    unconditional context is `unconditional`, or `negative_prompt` (in a chat: as one user message), or the last
    token of the prompt, as in Hugging Face's `generate`.
    """

    strength = "scale"
    strategy: Literal["guidance"] = "guidance"
    scale: Weight = 1.5
    """Strength γ: 1 changes nothing."""
    negative_prompt: str | None = None
    """What to lead away from; in a chat one user message. Excludes `unconditional`."""
    unconditional: Context | None = None
    """What the base reads in place of the prompt; left out, the prompt's last token alone."""

    @model_validator(mode="after")
    def _one_context(self) -> Self:
        if self.negative_prompt is not None and self.unconditional is not None:
            raise ValueError("negative_prompt and unconditional exclude each other")
        return self

    def shift(self, request: Request) -> Shift:
        temperature = request.base.temperature if self.unconditional is None else self.unconditional.temperature
        unconditional = Voice(request.base.model, self._context(request), temperature)
        return Shift(
            (
                Term("base", request.base, self.scale - 1.0),
                Term("unconditional", unconditional, 1.0 - self.scale),
            )
        )

    def _context(self, request: Request) -> Prompt | None:
        own = request.base.prompt or Prompt()
        if self.unconditional is not None:
            return self.unconditional.as_prompt(own.template)
        if self.negative_prompt is None:
            return replace(own, last_tokens=1)
        if request.chat:
            return Prompt(messages=(("user", self.negative_prompt),), template=own.template)
        return Prompt(text=self.negative_prompt)
