"""A plan: what one request composes, as frozen data.

A request is a composition over *streams*; a stream is a model with a context of its own. Every new token is
appended to all streams. For one token position, with `L_k = log_softmax(logits_k / temperature_k)` the
distribution of stream k over the shared vocabulary, a plan's composed score of token v is

    z[v] = Σ_k weight_k · L_k[v] · [v ∈ inside_k]  +  rules[v]        for v in every mask,  −inf elsewhere

and the composed distribution is `softmax(z)`. Other rules than this weighted sum stand in `rules`. This module
imports nothing but the standard library, rules, schedules, exits and token maps, so that engines and kernels can be
used without the server.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from motet.composers.exits import Exit
from motet.composers.rules import (
    LINEAR,
    MIN_STREAMS,
    AdaptersRule,
    AdaptiveRule,
    BudgetRule,
    DiscriminatorRule,
    DynamicRule,
    EscalationRule,
    LinearRule,
    MixtureRule,
    RoutedRule,
    Rule,
    Scalable,
    SparseRule,
)
from motet.composers.schedule import Schedule, ThoughtSpelling
from motet.composers.token_map import TokenMap

SetKind = Literal["ratio", "rank_or_ratio", "nucleus"]
HeadKind = Literal["gate", "router", "temperature", "strength", "similarity"]  # as `models.info.HeadKind`
ROUTING: tuple[HeadKind, ...] = ("gate", "router")  # heads that say which model writes a token
ZERO = 1e-12  # weights that cancel up to rounding: no log-prob in float64 is changed visibly by less


@dataclass(frozen=True, slots=True)
class TokenSet:
    """A set of tokens that one stream's distribution `L` (log-probs over V tokens) finds plausible.

    - `ratio`: `L[v] ≥ max L + ln(value)` (contrastive decoding's plausibility constraint).
    - `rank_or_ratio`: `L[v] ≥ min(L_(m), max L + ln(value))` with `L_(m)` the m-th largest,
      `m = max(1, ⌊value·V⌋)` (logit-difference unlearning).
    - `nucleus`: the smallest set of most likely tokens whose mass reaches `value` (top-p; ties at the
      boundary are kept out by sorted order, the arg-max is always in).

    `stream` indexes `Plan.streams`, whose distribution is read at temperature 1. Every kind keeps at least the stream's
    arg-max. A mask may hold by a schedule.
    """

    stream: int
    kind: SetKind
    value: float
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a stream reads instead of the request's own prompt; at most one of `text` and `messages` is set.

    `template` names how messages are rendered ("chat" or "plain"), None means the model's own default.
    `last_tokens` keeps only the last tokens of the rendered prompt (contrastive decoding's blind amateur). `swaps` are
    (word, other) texts that change places in it, whichever prompt that is. `pondered` is the share of its tokens that
    are read once more, those that the stream's model finds least likely: whoever renders it has to score it first.
    """

    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None  # (role, content)
    template: Literal["chat", "plain"] | None = None
    last_tokens: int | None = None
    swaps: tuple[tuple[str, str], ...] = ()
    pondered: float | None = None

    def swapped(self, text: str) -> str:
        """The text with every whole word of `swaps` replaced, all at once, longer ones first."""
        if not self.swaps:
            return text
        other = dict(self.swaps)
        return self._words.sub(lambda found: other[found[0]], text)

    def growth(self, text: str) -> int:
        """By how many characters `swapped` makes the text longer, without making it."""
        if not any(len(other) > len(word) for word, other in self.swaps):
            return 0
        longer = {word: len(other) - len(word) for word, other in self.swaps}
        return sum(longer[found[0]] for found in self._words.finditer(text))

    @property
    def _words(self) -> re.Pattern[str]:
        words = "|".join(re.escape(word) for word in sorted(dict(self.swaps), key=len, reverse=True))
        return re.compile(rf"(?<!\w)(?:{words})(?!\w)")

    @property
    def is_own(self) -> bool:
        """Whether nothing of the request's prompt is read."""
        return self.text is not None or self.messages is not None


@dataclass(frozen=True, slots=True)
class Stream:
    """One voice: a registered model, what it reads, and how its distribution enters the sum.

    `weight` 0 is allowed (a stream that only defines a mask). `temperature` divides the logits before the
    normalisation. `inside` limits the term to a set of tokens: outside of it the term is 0. `scheduled` are the parts
    of the weight that count by a schedule. With an `exit` it is an early layer of the base's own forward. `tokens` are
    what the base's ids are to a model of other tokens.
    """

    role: str
    model: str
    weight: float = 1.0
    prompt: Prompt | None = None  # None: the request's own prompt
    temperature: float = 1.0
    inside: TokenSet | None = None
    scheduled: tuple[tuple[Schedule, float], ...] = ()
    exit: Exit | None = None
    tokens: TokenMap | None = None  # None: the base's ids are its own


@dataclass(frozen=True, slots=True)
class RuleVector:
    """A rule vector added to the base (Instruction Following without Instruction Tuning, Hewitt et al. 2024).

    With t the number of tokens generated so far: the end-of-sequence tokens get
    `eos_ramp_weight · min(1, t / eos_ramp_tokens)`, every token generated before gets `−repetition`, and
    `offsets` are added to single tokens.
    """

    eos_ramp_tokens: int = 0
    eos_ramp_weight: float = 0.0
    repetition: float = 0.0
    offsets: tuple[tuple[int, float], ...] = ()
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Streams, masks and rules of one composition. Stream 0 is the base: the reference of KL and of traces. Early exits
    of it stand behind all other streams.

    `rule` says how streams become one score; where it is not `LinearRule` its streams stand in the order that the rule
    names, without gates. Masks and the rule vector apply to every score. A row whose masks leave no token keeps the
    base's arg-max. Where a request allows nothing that the masks keep they give way to it; with `masks_hold` its answer
    ends there instead. Of what is scheduled, weights, strengths and masks are those at full scale; `Timeline` has those
    of a token, which knows by `thought` where the phases of schedules are.

    Attributes:
        readers: the streams that read a context of their own: all but early exits.
        exits: where the base's forward is left early, by the last streams.
        heads: those of which the base's model must have one: what it reads for a token is part of the composition.
        schedules: those that anything in the plan follows.
        weight_sum: sum of the weights: acts as an inverse temperature on what the streams agree on.

    Raises:
        ValueError: the streams do not fit the rule.
    """

    streams: tuple[Stream, ...]
    masks: tuple[TokenSet, ...] = ()
    rules: RuleVector | None = None
    strategy: str = "plain"  # for metrics and messages only
    rule: Rule = LINEAR
    masks_hold: bool = False
    thought: ThoughtSpelling | None = field(default=None, repr=False)  # of a large vocabulary it is long
    # what follows from the others, found once: engines ask for it with every request, and with every token
    readers: tuple[Stream, ...] = field(init=False, repr=False, compare=False)
    exits: tuple[Exit, ...] = field(init=False, repr=False, compare=False)
    heads: tuple[HeadKind, ...] = field(init=False, repr=False, compare=False)
    schedules: tuple[Schedule, ...] = field(init=False, repr=False, compare=False)
    weight_sum: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        streams = self.streams
        object.__setattr__(self, "readers", tuple(stream for stream in streams if stream.exit is None))
        object.__setattr__(self, "exits", tuple(stream.exit for stream in streams if stream.exit is not None))
        object.__setattr__(self, "heads", _heads(self.rule))
        object.__setattr__(self, "schedules", self._schedules())
        object.__setattr__(self, "weight_sum", math.fsum(stream.weight for stream in streams))
        self._check_exits()
        if isinstance(self.rule, LinearRule):
            return
        name = type(self.rule).__name__.removesuffix("Rule")
        needed = MIN_STREAMS.get(type(self.rule), 1)
        if len(self.streams) < needed or (isinstance(self.rule, DiscriminatorRule) and len(self.streams) > needed):
            raise ValueError(f"{name} needs {needed} streams, got {len(self.streams)}")
        if any(stream.inside is not None for stream in self.streams):
            raise ValueError(f"{name}: streams of this rule have no gate")
        if isinstance(self.rule, DynamicRule):
            experts, antis = ([stream.weight for stream in self.streams[k::2]] for k in (1, 2))
            if experts != [-weight for weight in antis]:
                raise ValueError(f"{name} needs pairs of streams of weights w and −w, got {experts} and {antis}")
        if isinstance(self.rule, MixtureRule | SparseRule):
            weights = [stream.weight for stream in self.streams]
            if min(weights) < 0 or max(weights) == 0:
                raise ValueError(f"{name} needs weights ≥ 0, not all of them 0, got {weights}")

    def _check_exits(self) -> None:
        readers = self.readers
        early = self.streams[len(readers) :]
        if not early:
            return
        base = self.streams[0]
        own = all(s.exit is not None and (s.model, s.prompt) == (base.model, base.prompt) for s in early)
        if self.streams[: len(readers)] != readers or not own:
            raise ValueError("early exits are of the base, and stand behind all other streams")
        if not isinstance(self.rule, LinearRule | BudgetRule):
            raise ValueError(f"{type(self.rule).__name__.removesuffix('Rule')} composes no early exits")

    @property
    def sides(self) -> tuple[Plan, Plan] | None:
        """The plan that answers first and the one that answers anew, where whole answers are judged."""
        if not isinstance(self.rule, EscalationRule):
            return None
        base, first, *_ = (replace(self, streams=(stream,), rule=LINEAR) for stream in self.streams)
        return first, base

    def _schedules(self) -> tuple[Schedule, ...]:
        parts: list[Schedule | None] = [schedule for stream in self.streams for schedule, _ in stream.scheduled]
        parts += [mask.schedule for mask in self.masks]
        parts += [self.rules.schedule] if self.rules is not None else []
        parts += [self.rule.schedule] if isinstance(self.rule, Scalable) else []
        return tuple(dict.fromkeys(schedule for schedule in parts if schedule is not None))


def _heads(rule: Rule) -> tuple[HeadKind, ...]:
    if isinstance(rule, RoutedRule):
        return ROUTING
    if isinstance(rule, AdaptersRule):
        return ("similarity",)
    return (rule.of,) if isinstance(rule, AdaptiveRule) else ()


def single(model: str) -> Plan:
    """The plan of one plain model."""
    return Plan((Stream("base", model),))
