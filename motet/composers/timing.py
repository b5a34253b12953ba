"""When a strategy counts, as a client writes it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from motet.composers.plan import Schedule, SchedulePoint
from motet.composers.roles import MAX_WEIGHT, Spec

MAX_TOKENS = 1_000_000  # longer than any answer
MAX_POINTS = 64


class TimedPoint(Spec, frozen=True):
    """What holds from one token of the answer on."""

    token: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    """How many tokens of the answer come before; the first point's is 0."""
    scale: Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]
    """Multiplies the strength of the strategy: 0 is the base, 1 what the strategy says."""
    masks: bool | None = None
    """Whether the strategy's masks hold; left out, where the scale is not 0."""


class Timing(Spec, frozen=True):
    """When a strategy counts: the base's score moves by `scale` times what the strategy adds to it.

    Counted are the tokens of the answer, scored ones too, not those of the prompt. Of strategies that are no sums the
    strength is scaled: `alpha` of `generic`, `omega` of `discriminator`, the weights of the members beside the base of
    `mixture`, what each pair adds in `dynamic`, what is added at most in `budget`.
    """

    warmup: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    """The base alone writes so many tokens first (ThinkLogit's warm-up). Excludes `points`."""
    points: Annotated[list[TimedPoint], Field(min_length=1, max_length=MAX_POINTS)] | None = None
    """What holds from which token on, in order; the first point is at token 0."""
    linear: bool = False
    """Between two points the scale moves in a straight line, instead of all at once."""

    @model_validator(mode="after")
    def _one_order(self) -> Self:
        if (self.warmup is None) == (self.points is None):
            raise ValueError("needs one of warmup, points")
        tokens = [point.token for point in self.points or ()]
        if tokens and tokens[0] != 0:
            raise ValueError(f"the first of points must be at token 0, got {tokens[0]}")
        if any(before >= after for before, after in pairwise(tokens)):
            raise ValueError(f"points must ascend, got tokens {tokens}")
        if self.linear and len(tokens) < 2:
            raise ValueError("linear needs two points at least")
        return self

    def as_schedule(self) -> Schedule:
        """The plan's form."""
        if self.warmup is not None:
            return Schedule((SchedulePoint(0, 0.0), SchedulePoint(self.warmup, 1.0)))
        points = tuple(SchedulePoint(point.token, point.scale, point.masks) for point in self.points or ())
        return Schedule(points, self.linear)
