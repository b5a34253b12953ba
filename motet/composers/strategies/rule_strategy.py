"""Strategies whose score is no sum of shifts: they name streams and a rule, and cannot be stacked."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from motet.composers.errors import CompositionError
from motet.composers.plan import DiscriminatorRule, Plan, ReluRule, Rule, Schedule, Stream
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
        schedule = None if self.schedule is None else self.schedule.as_schedule()
        base, *others = self.parts(request)
        streams = (_stream(*base, None), *(_stream(*part, schedule) for part in others))
        rule = self.rule()
        if isinstance(rule, ReluRule | DiscriminatorRule):
            rule = replace(rule, schedule=schedule)
        return Plan(streams, strategy=self.strategy, rule=rule)

    def shift(self, request: Request) -> Shift:
        raise CompositionError(
            f"{request.path}: strategy {self.strategy!r} cannot be stacked: its score is no sum of shifts", request.path
        )


def _stream(role: str, voice: Voice, weight: float, schedule: Schedule | None) -> Stream:
    scheduled = () if schedule is None or weight == 0 else ((schedule, weight),)
    return Stream(role, voice.model, weight, voice.prompt, voice.temperature, scheduled=scheduled)
