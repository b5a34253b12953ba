"""A plan: what one request composes, as frozen data.

A request is a composition over *streams*; a stream is a model with a context of its own. Every new token is
appended to all streams. For one token position, with `L_k = log_softmax(logits_k / temperature_k)` the
distribution of stream k over the shared vocabulary, a plan's composed score of token v is

    z[v] = Σ_k weight_k · L_k[v] · [v ∈ inside_k]  +  rules[v]        for v in every mask,  −inf elsewhere

and the composed distribution is `softmax(z)`. Other rules than this weighted sum are `Rule`s. This module imports
nothing but the standard library, schedules and exits, so that engines and kernels can be used without the server.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from motet.composers.exits import Exit
from motet.composers.schedule import Schedule

SetKind = Literal["ratio", "rank_or_ratio", "nucleus"]
HeadKind = Literal["gate", "temperature", "strength"]  # as `models.info.HeadKind`
Confidence = Literal["max_prob", "margin", "entropy"]
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
        words = "|".join(re.escape(word) for word in sorted(other, key=len, reverse=True))
        return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda found: other[found[0]], text)

    @property
    def is_own(self) -> bool:
        """Whether nothing of the request's prompt is read."""
        return self.text is not None or self.messages is not None


@dataclass(frozen=True, slots=True)
class Stream:
    """One voice: a registered model, what it reads, and how its distribution enters the sum.

    `weight` 0 is allowed (a stream that only defines a mask). `temperature` divides the logits before the
    normalisation. `inside` limits the term to a set of tokens: outside of it the term is 0. `scheduled` are the parts
    of the weight that count by a schedule. With an `exit` it is an early layer of the base's own forward.
    """

    role: str
    model: str
    weight: float = 1.0
    prompt: Prompt | None = None  # None: the request's own prompt
    temperature: float = 1.0
    inside: TokenSet | None = None
    scheduled: tuple[tuple[Schedule, float], ...] = ()
    exit: Exit | None = None


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
class LinearRule:
    """`z = Σ_k w_k L_k`: the streams' weights, temperatures and gates."""


@dataclass(frozen=True, slots=True)
class ReluRule:
    """`z = L_0 − α·relu(L_1 − L_0)` (Who's Harry Potter, Eldan and Russinovich 2023): stream 1 is the reinforced."""

    alpha: float = 1.0
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class MixtureRule:
    """`z = log Σ_k w_k p_k` with the streams' weights ≥ 0, not all of them 0."""


@dataclass(frozen=True, slots=True)
class DiscriminatorRule:
    """`z = L_0 + ω·log σ(s)` (GeDi, Krause et al. 2020), streams 1 and 2 conditioned on the wanted and unwanted class.

    `s[v]` is the mean over the t tokens so far and v of `log p_1 − log p_2`. The tokens so far are those of the prompt
    that both classes read (see `judged_tokens`) and all that followed. Kept are the tokens of the highest σ(s) until
    softmax(z) of them reaches `mass`, and all with `σ(s) ≥ posterior`. `mass` 1 keeps all.
    """

    omega: float = 30.0
    mass: float = 0.2
    posterior: float = 0.8
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class DynamicRule:
    """`z = L_0 + Σ_i w_i α_i (L_2i−1 − L_2i)` with each α_i in [0, `alpha_max`] per token such that
    `KL(p_αi‖p_0) = KL(p_2i−1‖p_2i)`, `p_αi` being the base shifted by pair i alone (On Giant's Shoulders: Dynamic
    Logits Fusion, Fan et al. 2024); `symmetric`: the least squares of both directions. The streams after the base are
    pairs of expert and anti-expert, of weights w_i and −w_i."""

    alpha_max: float = 2.0
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """`z = L_0 + α ((w_0 − 1) L_0 + Σ_{k≥1} w_k L_k)` with the largest α ≤ `alpha_max` per token such that
    `KL(p_α‖p_0) ≤ epsilon`."""

    epsilon: float
    alpha_max: float = 1.0


@dataclass(frozen=True, slots=True)
class RoutedRule:
    """A gate's share d per token: stream 1 where `d > threshold`, else stream 0 (Co-LLM, Shen et al. 2024);
    `threshold` None mixes: `z = log((1 − d) p_0 + d p_1)`. The gate is a head of stream 0's model; d is its reading
    times `scale`, at most 1."""

    threshold: float | None = 0.5
    scale: float = 1.0
    schedule: Schedule | None = None

    def share(self, reading: float) -> float:
        """d of what the gate says."""
        return min(1.0, self.scale * reading)


@dataclass(frozen=True, slots=True)
class AdaptiveRule:
    """A weighted sum in which a head of stream 0's model says one number t per token. `temperature`:
    `z = (Σ_k w_k L_k) / t`; `strength`: `z = L_0 + t ((w_0 − 1) L_0 + Σ_{k≥1} w_k L_k)`. A schedule's scale s makes
    `t^s` of a temperature; that of a strength is in the weights."""

    of: Literal["temperature", "strength"]
    scale: float = 1.0
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class DivergenceRule:
    """`z = L_0`, but the `count` tokens of which `L_1 − L_2` is lowest and below 0 are impossible, with those that tie
    with the last of them (Divergence Decoding's rank form, Merchant and Levy 2026)."""

    count: int
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class CascadeRule:
    """Stream 1 where it is confident, else stream 0: `z = log((1 − d) p_0 + d p_1)`.

    d is `share` where the largest probability of p_1 (`max_prob`), or its lead over the second largest (`margin`), is
    at least `threshold`, or where the entropy of p_1 in nats (`entropy`) is at most that; elsewhere d is 0.
    """

    measure: Confidence
    threshold: float
    share: float = 1.0
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class SparseRule:
    """As `MixtureRule` where the streams disagree, else stream 0 alone (SAFE, Yun et al. 2025).

    They agree where the most likely token v of p_0 is the most likely of all streams of weight > 0, or where
    `Σ_k w_k p_k[v] > agreement · Σ_k w_k`. What ties with the most likely is the most likely, too; v is the first.
    """

    agreement: float = 0.5


# what a schedule scales is a parameter of these, not a weight
Scalable = ReluRule | DiscriminatorRule | RoutedRule | AdaptiveRule | DivergenceRule | CascadeRule
Rule = LinearRule | MixtureRule | SparseRule | DynamicRule | BudgetRule | Scalable
MIN_STREAMS: dict[type, int] = {
    **dict.fromkeys((ReluRule, RoutedRule, CascadeRule), 2),
    **dict.fromkeys((DiscriminatorRule, DynamicRule, DivergenceRule), 3),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Streams, masks and rules of one composition. Stream 0 is the base: the reference of KL and of traces. Early exits
    of it stand behind all other streams.

    `rule` says how streams become one score; where it is not `LinearRule` its streams stand in the order that the rule
    names, without gates. Masks and the rule vector apply to every score. A row whose masks leave no token keeps the
    base's arg-max. Where a request allows nothing that the masks keep they give way to it; with `masks_hold` its answer
    ends there instead. Of what is scheduled, weights, strengths and masks are those at full scale; `Timeline` has those
    of a token.

    Raises:
        ValueError: the streams do not fit the rule.
    """

    streams: tuple[Stream, ...]
    masks: tuple[TokenSet, ...] = ()
    rules: RuleVector | None = None
    strategy: str = "plain"  # for metrics and messages only
    rule: Rule = LinearRule()
    masks_hold: bool = False

    def __post_init__(self) -> None:
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
    def readers(self) -> tuple[Stream, ...]:
        """The streams that read a context of their own: all but early exits."""
        return tuple(stream for stream in self.streams if stream.exit is None)

    @property
    def exits(self) -> tuple[Exit, ...]:
        """Where the base's forward is left early, by the last streams."""
        return tuple(stream.exit for stream in self.streams if stream.exit is not None)

    @property
    def weight_sum(self) -> float:
        """Sum of the weights: acts as an inverse temperature on what the streams agree on."""
        return math.fsum(stream.weight for stream in self.streams)

    @property
    def head(self) -> HeadKind | None:
        """The head that the base's model must have: what it reads for a token is part of the composition."""
        of = self.rule.of if isinstance(self.rule, AdaptiveRule) else None
        return "gate" if isinstance(self.rule, RoutedRule) else of

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The schedules that anything in the plan follows."""
        parts: list[Schedule | None] = [schedule for stream in self.streams for schedule, _ in stream.scheduled]
        parts += [mask.schedule for mask in self.masks]
        parts += [self.rules.schedule] if self.rules is not None else []
        parts += [self.rule.schedule] if isinstance(self.rule, Scalable) else []
        return tuple(dict.fromkeys(schedule for schedule in parts if schedule is not None))


def judged_tokens(wanted: Sequence[int], unwanted: Sequence[int]) -> int:
    """How many tokens at the end of two classes' contexts `DiscriminatorRule` judges: those that both classes read, the
    text, without what comes before them, the class. The very first token of a context is never judged: nothing
    predicts it."""
    most = min(len(wanted), len(unwanted)) - 1
    return next((n for n in range(most) if wanted[-1 - n] != unwanted[-1 - n]), most)


def single(model: str) -> Plan:
    """The plan of one plain model."""
    return Plan((Stream("base", model),))
