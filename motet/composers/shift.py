"""What a strategy adds to a base, and the sum of it: shifts → plan.

A shift is written over *voices* (a model and what it reads), not over stream numbers, so that shifts of several
strategies can be added: equal terms merge, masks intersect, rules add.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from motet.composers.errors import CompositionError
from motet.composers.plan import ZERO, Plan, RuleVector, SetKind, Stream, TokenSet
from motet.composers.roles import Voice
from motet.composers.schedule import Schedule

MAX_STREAMS = 32


@dataclass(frozen=True, slots=True)
class VoiceSet:
    """A `plan.TokenSet` that names the voice instead of the stream."""

    voice: Voice
    kind: SetKind
    value: float
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """`weight` · log-probs of a voice, only for the tokens `inside` and only when `schedule` says, where they are
    given."""

    role: str
    voice: Voice
    weight: float
    inside: VoiceSet | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """What is added to the base's log-probs; every term on the base's own voice changes the base's weight."""

    terms: tuple[Term, ...] = ()
    masks: tuple[VoiceSet, ...] = ()
    rules: RuleVector | None = None

    def scheduled(self, schedule: Schedule) -> Shift:
        """The same, where it has no schedule of its own, by this one."""
        return Shift(
            tuple(replace(term, schedule=term.schedule or schedule) for term in self.terms),
            tuple(replace(mask, schedule=mask.schedule or schedule) for mask in self.masks),
            self.rules and replace(self.rules, schedule=self.rules.schedule or schedule),
        )


def nucleus(voice: Voice, top_p: float | None) -> VoiceSet | None:
    """The voice's top-p set; None where it is off. 1 is off too: a cumulative sum that rounds to 1 before the last
    token would cut the tail."""
    return None if top_p is None or top_p >= 1 else VoiceSet(voice, "nucleus", top_p)


def add_shifts(shifts: Sequence[Shift], path: str) -> Shift:
    """The sum of shifts: all terms, all masks, rules added.

    Raises:
        CompositionError: two end-of-sequence ramps of different lengths (their sum is not a ramp), or rules of
            different schedules.
    """
    return Shift(
        tuple(term for shift in shifts for term in shift.terms),
        tuple(mask for shift in shifts for mask in shift.masks),
        _add_rules([shift.rules for shift in shifts if shift.rules is not None], path),
    )


def _add_rules(rules: Sequence[RuleVector], path: str) -> RuleVector | None:
    if not rules:
        return None
    lengths = {rule.eos_ramp_tokens for rule in rules if rule.eos_ramp_tokens}
    if len(lengths) > 1:
        raise CompositionError(f"{path}: eos_ramp of {sorted(lengths)} tokens cannot be added: use one length", path)
    schedules = {rule.schedule for rule in rules}
    if len(schedules) > 1:
        raise CompositionError(f"{path}: rules of different schedules cannot be added: use one schedule", path)
    offsets: dict[int, float] = {}
    for rule in rules:
        for token, offset in rule.offsets:
            offsets[token] = offsets.get(token, 0.0) + offset
    return RuleVector(
        eos_ramp_tokens=max(lengths, default=0),
        eos_ramp_weight=math.fsum(rule.eos_ramp_weight for rule in rules),
        repetition=math.fsum(rule.repetition for rule in rules),
        offsets=tuple(offsets.items()),
        schedule=schedules.pop(),
    )


def shifted_plan(base: Voice, shift: Shift, strategy: str) -> Plan:
    """The plan of a base and a shift. Stream 0 is the base.

    Equal terms (voice and gate) are one stream with their weights summed; a stream whose sum is 0 at all times is
    dropped, unless it is the base or a mask or gate needs its distribution.

    Raises:
        CompositionError: more than 32 streams.
    """
    merged = _merged([Term("base", base, 1.0), *shift.terms])
    kept = [merged[0], *(term for term in merged[1:] if term.weight != 0.0 or term.scheduled)]
    sets = [*shift.masks, *(term.inside for term in kept if term.inside is not None)]
    streams = _unique_roles(_early_last([*kept, *_set_only_streams(sets, kept, merged)]))
    if len(streams) > MAX_STREAMS:
        raise CompositionError(f"composition: {len(streams)} streams, at most {MAX_STREAMS} are allowed")
    number = {_untempered(term.voice): k for k, term in reversed(list(enumerate(streams)))}
    return Plan(
        tuple(_stream(term, number) for term in streams),
        tuple(_token_set(mask, number) for mask in dict.fromkeys(shift.masks)),
        shift.rules,
        strategy,
    )


@dataclass(frozen=True, slots=True)
class _Sum:
    """Equal terms as one: their weights summed, and which parts of the sum count by which schedule."""

    role: str
    voice: Voice
    weight: float
    inside: VoiceSet | None = None
    scheduled: tuple[tuple[Schedule, float], ...] = ()


def _merged(terms: Iterable[Term]) -> list[_Sum]:
    equal: dict[tuple[Voice, VoiceSet | None], list[Term]] = {}
    for term in terms:
        equal.setdefault((term.voice, term.inside), []).append(term)
    return [_sum(terms) for terms in equal.values()]


def _sum(terms: Sequence[Term]) -> _Sum:
    parts: dict[Schedule | None, list[float]] = {}
    for term in terms:
        parts.setdefault(term.schedule, []).append(term.weight)
    sums = {schedule: _without_rounding(math.fsum(weights)) for schedule, weights in parts.items()}
    scheduled = tuple((schedule, weight) for schedule, weight in sums.items() if schedule is not None and weight)
    first = terms[0]
    weight = _without_rounding(math.fsum(term.weight for term in terms))
    return _Sum(first.role, first.voice, weight, first.inside, scheduled)


def _without_rounding(weight: float) -> float:
    return weight if abs(weight) > ZERO else 0.0


def _untempered(voice: Voice) -> Voice:
    """What a set reads: a distribution at temperature 1, which every stream of this model and prompt holds."""
    return replace(voice, temperature=1.0)


def _set_only_streams(sets: Sequence[VoiceSet], kept: Sequence[_Sum], merged: Sequence[_Sum]) -> list[_Sum]:
    """Streams of weight 0 for voices that only a mask or gate reads."""
    used = {_untempered(term.voice) for term in kept}
    roles = {_untempered(term.voice): term.role for term in reversed(merged)}
    voices = dict.fromkeys(_untempered(entry.voice) for entry in sets)
    return [_Sum(roles.get(voice, "mask"), voice, 0.0) for voice in voices if voice not in used]


def _early_last(terms: Sequence[_Sum]) -> list[_Sum]:
    """Early exits behind the streams that read, as a plan has them."""
    return sorted(terms, key=lambda term: term.voice.exit is not None)


def _unique_roles(terms: Sequence[_Sum]) -> list[_Sum]:
    """Roles with a number from the second of a name on (expert, expert_2), so that traces can be told apart."""
    seen: Counter[str] = Counter()
    unique: list[_Sum] = []
    for term in terms:
        seen[term.role] += 1
        unique.append(replace(term, role=f"{term.role}_{seen[term.role]}") if seen[term.role] > 1 else term)
    return unique


def _stream(term: _Sum, number: dict[Voice, int]) -> Stream:
    inside = None if term.inside is None else _token_set(term.inside, number)
    voice = term.voice
    scheduled = term.scheduled
    return Stream(term.role, voice.model, term.weight, voice.prompt, voice.temperature, inside, scheduled, voice.exit)


def _token_set(voice_set: VoiceSet, number: dict[Voice, int]) -> TokenSet:
    return TokenSet(number[_untempered(voice_set.voice)], voice_set.kind, voice_set.value, voice_set.schedule)
