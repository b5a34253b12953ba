"""A plan: what one request composes, as frozen data.

A request is a composition over *streams*; a stream is a model with a context of its own. Every new token is
appended to all streams. For one token position, with `L_k = log_softmax(logits_k / temperature_k)` the
distribution of stream k over the shared vocabulary, a plan's composed score of token v is

    z[v] = Σ_k weight_k · L_k[v] · [v ∈ inside_k]  +  rules[v]        for v in every mask,  −inf elsewhere

and the composed distribution is `softmax(z)`. This module imports nothing but the standard library, so that
engines and kernels can be used without the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SetKind = Literal["ratio", "rank_or_ratio", "nucleus"]


@dataclass(frozen=True, slots=True)
class TokenSet:
    """A set of tokens that one stream's distribution `L` (log-probs over V tokens) finds plausible.

    - `ratio`: `L[v] ≥ max L + ln(value)` (contrastive decoding's plausibility constraint).
    - `rank_or_ratio`: `L[v] ≥ min(L_(m), max L + ln(value))` with `L_(m)` the m-th largest,
      `m = max(1, ⌊value·V⌋)` (logit-difference unlearning).
    - `nucleus`: the smallest set of most likely tokens whose mass reaches `value` (top-p; ties at the
      boundary are kept out by sorted order, the arg-max is always in).

    `stream` indexes `Plan.streams`. Every kind keeps at least the stream's arg-max.
    """

    stream: int
    kind: SetKind
    value: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a stream reads instead of the request's own prompt; at most one of `text` and `messages` is set.

    `template` names how messages are rendered ("chat" or "plain"), None means the model's own default.
    `last_tokens` keeps only the last tokens of the rendered prompt (contrastive decoding's blind amateur).
    """

    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None  # (role, content)
    template: Literal["chat", "plain"] | None = None
    last_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One voice: a registered model, what it reads, and how its distribution enters the sum.

    `weight` 0 is allowed (a stream that only defines a mask). `temperature` divides the logits before the
    normalisation. `inside` limits the term to a set of tokens: outside of it the term is 0.
    """

    role: str
    model: str
    weight: float = 1.0
    prompt: Prompt | None = None  # None: the request's own prompt
    temperature: float = 1.0
    inside: TokenSet | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """A rule vector added to the base (Instruction Following without Instruction Tuning, Hewitt et al. 2024).

    With t the number of tokens generated so far: the end-of-sequence tokens get
    `eos_ramp_weight · min(1, t / eos_ramp_tokens)`, every token generated before gets `−repetition`, and
    `offsets` are added to single tokens.
    """

    eos_ramp_tokens: int = 0
    eos_ramp_weight: float = 0.0
    repetition: float = 0.0
    offsets: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Streams, masks and rules of one composition. Stream 0 is the base: the reference of KL and of traces.

    A row whose masks leave no token keeps the base's arg-max.
    """

    streams: tuple[Stream, ...]
    masks: tuple[TokenSet, ...] = ()
    rules: Rules | None = None
    strategy: str = "plain"  # for metrics and messages only

    @property
    def weight_sum(self) -> float:
        """Sum of the weights: acts as an inverse temperature on what the streams agree on."""
        return sum(stream.weight for stream in self.streams)


def single(model: str) -> Plan:
    """The plan of one plain model."""
    return Plan((Stream("base", model),))
