"""A plan with schedules → the plan of each token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from motet.composers.plan import ZERO, Plan, RuleVector, Stream
from motet.composers.rules import (
    AdaptiveRule,
    CascadeRule,
    DiscriminatorRule,
    DivergenceRule,
    LinearRule,
    MixtureRule,
    ReluRule,
    RoutedRule,
    Rule,
    Scalable,
)
from motet.composers.schedule import AnswerBegin, Moment, Schedule

# what a head says of a position: a number, or a share for each stream but the first
HeadReading = float | tuple[float, ...]


class Timeline:
    """The plan of each token of an answer. It keeps the last one: of scales in steps it holds for many tokens."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._schedules = plan.schedules
        self._answer = None if plan.thought is None else AnswerBegin(plan.thought)
        self._last: tuple[dict[Schedule, Moment], Plan] | None = None

    def at(self, written: Callable[[], Sequence[int]]) -> Plan:
        """For the token behind those that the composition has written; they are asked for where a schedule is."""
        if not self._schedules:
            return self.plan
        tokens = written()
        answer = 0 if self._answer is None else self._answer.of(tokens)
        moments = {schedule: schedule.at(len(tokens), answer) for schedule in self._schedules}
        if self._last is None or self._last[0] != moments:
            self._last = moments, _plan_at(self.plan, moments)
        return self._last[1]


def adapted(plan: Plan, reading: HeadReading) -> Plan:
    """The plan of one token for which the base's head says `reading`: a sum with weights of its own where the rule is
    adaptive or of adapters, any other plan as it is."""
    rule = plan.rule
    if isinstance(reading, tuple):
        base, *others = plan.streams
        shared = (replace(s, weight=share * s.weight) for s, share in zip(others, reading, strict=True))
        return replace(plan, streams=(base, *shared), rule=LinearRule())
    if not isinstance(rule, AdaptiveRule):
        return plan
    if rule.of == "temperature":
        temperature = reading**rule.scale
        streams = tuple(replace(stream, weight=stream.weight / temperature) for stream in plan.streams)
    else:
        base, *others = plan.streams
        base = replace(base, weight=1.0 + reading * (base.weight - 1.0))
        streams = (base, *(replace(stream, weight=reading * stream.weight) for stream in others))
    return replace(plan, streams=streams, rule=LinearRule())


def _plan_at(plan: Plan, moments: Mapping[Schedule, Moment]) -> Plan:
    """The plan of one token: the same streams, nothing scheduled; `moments` has each of the plan's schedules."""
    streams = tuple(_stream_at(stream, moments) for stream in plan.streams)
    if isinstance(plan.rule, MixtureRule):  # what a scale above 1 leaves of a base that fills up is nothing
        streams = tuple(replace(stream, weight=max(0.0, stream.weight)) for stream in streams)
    return replace(
        plan,
        streams=streams,
        masks=tuple(
            replace(mask, schedule=None) for mask in plan.masks if mask.schedule is None or moments[mask.schedule].masks
        ),
        rules=None if plan.rules is None else _rules_at(plan.rules, moments),
        rule=_rule_at(plan.rule, moments),
    )


def _stream_at(stream: Stream, moments: Mapping[Schedule, Moment]) -> Stream:
    if not stream.scheduled:
        return stream
    weight = math.fsum([stream.weight, *((moments[schedule].scale - 1) * part for schedule, part in stream.scheduled)])
    return replace(stream, weight=weight if abs(weight) > ZERO else 0.0, scheduled=())


def _rules_at(rules: RuleVector, moments: Mapping[Schedule, Moment]) -> RuleVector:
    if rules.schedule is None:
        return rules
    scale = moments[rules.schedule].scale
    offsets = tuple((token, scale * offset) for token, offset in rules.offsets)
    return RuleVector(rules.eos_ramp_tokens, scale * rules.eos_ramp_weight, scale * rules.repetition, offsets)


def _rule_at(rule: Rule, moments: Mapping[Schedule, Moment]) -> Rule:
    """Of rules whose strength is not in the weights."""
    if not isinstance(rule, Scalable) or rule.schedule is None:
        return rule
    moment = moments[rule.schedule]
    if isinstance(rule, DivergenceRule):
        return DivergenceRule(rule.count if moment.masks else 0)
    if isinstance(rule, AdaptiveRule):
        return AdaptiveRule(rule.of, moment.scale)
    if isinstance(rule, RoutedRule):
        return RoutedRule(rule.threshold, moment.scale * rule.scale)
    if isinstance(rule, CascadeRule):  # no more than the whole answer can be the small model's
        return CascadeRule(rule.measure, rule.threshold, min(1.0, moment.scale * rule.share))
    if isinstance(rule, ReluRule):
        return ReluRule(moment.scale * rule.alpha)
    return DiscriminatorRule(moment.scale * rule.omega, rule.mass if moment.masks else 1.0, rule.posterior)
