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
from motet.composers.plan import Plan, RuleVector, SetKind, Stream, TokenSet
from motet.composers.roles import Voice

MAX_STREAMS = 32
_ZERO = 1e-12  # weights that cancel up to rounding: no log-prob in float64 is changed visibly by less


@dataclass(frozen=True, slots=True)
class VoiceSet:
    """A `plan.TokenSet` that names the voice instead of the stream."""

    voice: Voice
    kind: SetKind
    value: float


@dataclass(frozen=True, slots=True)
class Term:
    """`weight` · log-probs of a voice at `temperature`, only for the tokens `inside` where that is given."""

    role: str
    voice: Voice
    weight: float
    temperature: float = 1.0
    inside: VoiceSet | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """What is added to the base's log-probs; every term on the base's own voice changes the base's weight."""

    terms: tuple[Term, ...] = ()
    masks: tuple[VoiceSet, ...] = ()
    rules: RuleVector | None = None


def nucleus(voice: Voice, top_p: float | None) -> VoiceSet | None:
    """The voice's top-p set; None where it is off. 1 is off too: a cumulative sum that rounds to 1 before the last
    token would cut the tail."""
    return None if top_p is None or top_p >= 1 else VoiceSet(voice, "nucleus", top_p)


def add_shifts(shifts: Sequence[Shift], path: str) -> Shift:
    """The sum of shifts: all terms, all masks, rules added.

    Raises:
        CompositionError: two end-of-sequence ramps of different lengths (their sum is not a ramp).
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
    offsets: dict[int, float] = {}
    for rule in rules:
        for token, offset in rule.offsets:
            offsets[token] = offsets.get(token, 0.0) + offset
    return RuleVector(
        eos_ramp_tokens=max(lengths, default=0),
        eos_ramp_weight=math.fsum(rule.eos_ramp_weight for rule in rules),
        repetition=math.fsum(rule.repetition for rule in rules),
        offsets=tuple(offsets.items()),
    )


def shifted_plan(base: Voice, shift: Shift, strategy: str) -> Plan:
    """The plan of a base and a shift. Stream 0 is the base.

    Equal terms (voice, temperature and gate) are one stream with their weights summed; a stream whose sum is 0 is
    dropped, unless it is the base or a mask or gate needs its distribution.

    Raises:
        CompositionError: more than 32 streams.
    """
    merged = _merged([Term("base", base, 1.0), *shift.terms])
    kept = [merged[0], *(term for term in merged[1:] if term.weight != 0.0)]
    sets = [*shift.masks, *(term.inside for term in kept if term.inside is not None)]
    streams = _unique_roles([*kept, *_set_only_terms(sets, kept, merged)])
    if len(streams) > MAX_STREAMS:
        raise CompositionError(f"composition: {len(streams)} streams, at most {MAX_STREAMS} are allowed")
    number = {term.voice: k for k, term in reversed(list(enumerate(streams))) if term.temperature == 1.0}
    return Plan(
        tuple(_stream(term, number) for term in streams),
        tuple(_token_set(mask, number) for mask in dict.fromkeys(shift.masks)),
        shift.rules,
        strategy,
    )


def _merged(terms: Iterable[Term]) -> list[Term]:
    weights: dict[tuple[Voice, float, VoiceSet | None], list[float]] = {}
    first: dict[tuple[Voice, float, VoiceSet | None], Term] = {}
    for term in terms:
        key = (term.voice, term.temperature, term.inside)
        first.setdefault(key, term)
        weights.setdefault(key, []).append(term.weight)
    sums = {key: math.fsum(values) for key, values in weights.items()}
    return [replace(term, weight=sums[key] if abs(sums[key]) > _ZERO else 0.0) for key, term in first.items()]


def _set_only_terms(sets: Sequence[VoiceSet], kept: Sequence[Term], merged: Sequence[Term]) -> list[Term]:
    """Weight-0 terms for voices that only a mask or gate reads; sets are defined at temperature 1."""
    used = {term.voice for term in kept if term.temperature == 1.0}
    roles = {term.voice: term.role for term in reversed(merged) if term.temperature == 1.0}
    missing = [voice for voice in dict.fromkeys(s.voice for s in sets) if voice not in used]
    return [Term(roles.get(voice, "mask"), voice, 0.0) for voice in missing]


def _unique_roles(terms: Sequence[Term]) -> list[Term]:
    """Roles with a number from the second of a name on (expert, expert_2), so that traces can be told apart."""
    seen: Counter[str] = Counter()
    unique: list[Term] = []
    for term in terms:
        seen[term.role] += 1
        unique.append(replace(term, role=f"{term.role}_{seen[term.role]}") if seen[term.role] > 1 else term)
    return unique


def _stream(term: Term, number: dict[Voice, int]) -> Stream:
    inside = None if term.inside is None else _token_set(term.inside, number)
    return Stream(term.role, term.voice.model, term.weight, term.voice.prompt, term.temperature, inside)


def _token_set(voice_set: VoiceSet, number: dict[Voice, int]) -> TokenSet:
    return TokenSet(number[voice_set.voice], voice_set.kind, voice_set.value)
