"""What every strategy is: fields that a client writes, and the shift they stand for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from motet.composers.exits import Depth
from motet.composers.plan import Plan
from motet.composers.roles import Base, Spec, Timing, Voice
from motet.composers.shift import Shift, shifted_plan


@dataclass(frozen=True, slots=True)
class Request:
    """What a strategy may know of the request that it shifts.

    `chat`: the request has messages, not text. `token_id`: the id of a text that is exactly one token, else None.
    `vocab_size`: the shared width where it is known. `depth`: the base's layers, where they are known. `threshold`: of
    the base's own head, if it routes. `path`: where the strategy's object stands, for errors.
    """

    base: Voice
    token_id: Callable[[str], int | None]
    chat: bool = False
    vocab_size: int | None = None
    depth: Depth | None = None
    path: str = "composition"
    threshold: float | None = None


class Strategy(Spec, frozen=True):
    """One way to compose. `base` is the model that is shifted; without it, the request's `model` is.

    Attributes:
        partners: the roles of an expert and of the model before its training, where a strategy sets one against the
            other: an expert's bundle is then held to its partner.
        strength: the field, as a request names it, that a bundle's recommended weight is for.
    """

    partners: ClassVar[tuple[str, str] | None] = None
    strength: ClassVar[str | None] = None
    strategy: str
    base: Base | None = None
    """The model that is steered; left out, the request's `model`."""
    schedule: Timing | None = None
    """When the strategy counts; left out, always."""

    def own_base(self, model: str | None) -> Voice | None:
        """The base that the fields themselves name (`model`: the request's), None if they leave it open."""
        if self.base is None:
            return None
        name = self.base.model or model
        return None if name is None else Voice(name, self.base.as_prompt(), self.base.temperature)

    def plan(self, request: Request) -> Plan:
        """The plan of this strategy alone."""
        return shifted_plan(request.base, self.scheduled_shift(request), self.strategy)

    def scheduled_shift(self, request: Request) -> Shift:
        """The shift, which counts when `schedule` says."""
        shift = self.shift(request)
        return shift if self.schedule is None else shift.scheduled(self.schedule.as_schedule())

    @abstractmethod
    def shift(self, request: Request) -> Shift:
        """The terms, masks and rules that are added to the base."""
