"""Interpolation: part of the way from the base to another model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from motet.composers.roles import Role
from motet.composers.shift import Shift, Term
from motet.composers.strategies.strategy import Request, Strategy


class Interpolated(Strategy, frozen=True):
    """`z = (1 − share) L_base + share L_other`

    A geometric mean of two models, for those who think of it as a way between them.
    """

    strategy: Literal["interpolated"] = "interpolated"
    other: Role
    """The model to go to."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How far: 0 is the base, 1 the other model."""

    def shift(self, request: Request) -> Shift:
        return Shift((Term("other", self.other.voice, self.share), Term("base", request.base, -self.share)))
