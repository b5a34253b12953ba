"""Strategies whose score is no sum of shifts: they name streams and a rule, and cannot be stacked."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

from pydantic import Field

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan, Rule, Stream
from motet.composers.roles import Voice
from motet.composers.shift import Shift
from motet.composers.strategies.strategy import Request, Strategy

Strength = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Part = tuple[str, Voice, float]  # role, voice, weight


class RuleStrategy(Strategy, frozen=True):
    """A rule over the base and other streams."""

    @abstractmethod
    def rule(self) -> Rule:
        """The rule with its parameters."""

    @abstractmethod
    def parts(self, request: Request) -> tuple[Part, ...]:
        """All streams in the order that the rule names, the base first."""

    def plan(self, request: Request) -> Plan:
        streams = tuple(Stream(role, voice.model, weight, voice.prompt) for role, voice, weight in self.parts(request))
        return Plan(streams, strategy=self.strategy, rule=self.rule())

    def shift(self, request: Request) -> Shift:
        raise CompositionError(
            f"{request.path}: strategy {self.strategy!r} cannot be stacked: its score is no sum of shifts", request.path
        )
