"""Strategies whose score is no sum of shifts: they name streams and a rule, and cannot be stacked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan, Stream
from motet.composers.roles import Voice
from motet.composers.rules import Rule, Scalable
from motet.composers.schedule import Schedule
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
        return rule_plan(self, self.parts(request), self.rule())

    def shift(self, request: Request) -> Shift:
        raise CompositionError(
            f"{request.path}: strategy {self.strategy!r} cannot be stacked: its score is no sum of shifts", request.path
        )


def rule_plan(strategy: Strategy, parts: Sequence[Part], rule: Rule) -> Plan:
    """A rule over its streams, the base first. The strategy's schedule scales the other streams' weights, or the rule's
    own strength."""
    schedule = None if strategy.schedule is None else strategy.schedule.as_schedule()
    base, *others = parts
    streams = (_stream(*base, None), *(_stream(*part, schedule) for part in others))
    if isinstance(rule, Scalable):
        rule = replace(rule, schedule=schedule)
    return Plan(streams, strategy=strategy.strategy, rule=rule)


def _stream(role: str, voice: Voice, weight: float, schedule: Schedule | None) -> Stream:
    scheduled = () if schedule is None or weight == 0 else ((schedule, weight),)
    return Stream(role, voice.model, weight, voice.prompt, voice.temperature, scheduled=scheduled)
