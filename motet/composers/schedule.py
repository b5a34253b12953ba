"""How much a part of a composition counts, token by token; imports nothing but the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulePoint:
    """What holds from `token` on, counted in the tokens that the composition has written. `masks` None: the masks hold
    where the scale is not 0."""

    token: int
    scale: float
    masks: bool | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """How often a shift counts for one token, and whether its masks hold."""

    scale: float
    masks: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a shift counts, and how often. `points` ascend from token 0; a scale holds up to the next point, or is drawn
    in a straight line towards it (`is_linear`)."""

    points: tuple[SchedulePoint, ...]
    is_linear: bool = False

    def at(self, written: Sequence[int]) -> Moment:
        """For the token behind those that the composition has written."""
        token = len(written)
        last = max(i for i, point in enumerate(self.points) if point.token <= token)
        point, scale = self.points[last], self.points[last].scale
        if self.is_linear and last + 1 < len(self.points):
            following = self.points[last + 1]
            scale += (following.scale - scale) * (token - point.token) / (following.token - point.token)
        return Moment(scale, scale != 0 if point.masks is None else point.masks)
