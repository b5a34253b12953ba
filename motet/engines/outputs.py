"""What comes out of an engine: tokens with what is reported of them, and counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there: its composed log-prob, and that of each stream (plan order)."""

    token: int
    logprob: float
    members: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Voices:
    """What each stream (plan order) says of one token: the chosen token's rank under it (0 = arg-max), and its push in
    nats (see `engines.voices.pushes`; none where the rule's score is no sum of pushes). `alternatives` are the tokens
    of both tops, those after composition first."""

    ranks: tuple[int, ...]
    pushes: tuple[float, ...]
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What each voice did to one token.

    `member_logprobs[k]` is stream k's own log-prob of the chosen token (plan order, temperature 1),
    `kl` is KL(composed ‖ base) in nats, `base_rank` the chosen token's rank under the base (0 = arg-max),
    `argmax_moved` whether base and composed disagree about the most likely token. `alpha` are the strengths that a rule
    chose for this token, one per pair of experts, or the share of a cascade's small model, or those of adapters; none
    where the rule has a fixed one. `voices` only where the request asks for its members. `head` is the number that the
    base's head says of the token's place, where the composition asks for it, `layers` the early layers that were
    chosen, one per early exit.
    """

    member_logprobs: tuple[float, ...]
    kl: float
    base_rank: int
    argmax_moved: bool
    base_top: tuple[tuple[int, float], ...]
    composed_top: tuple[tuple[int, float], ...]
    alpha: tuple[float, ...] = ()
    voices: Voices | None = None
    head: float | None = None
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of one choice. `logprob` is the composed log-prob; `top` is best first and, where the chosen token
    is among it, holds the very same float. `finish` is set on the last token of the choice. `confidence`: how sure the
    reported distribution was, where the request names a measure. `writer`: the stream that the base's head has chosen
    to write it."""

    choice: int
    token: int
    logprob: float
    forced: bool = False
    top: tuple[tuple[int, float], ...] = ()
    trace: TokenTrace | None = None
    finish: FinishReason | None = None
    confidence: float | None = None
    writer: int | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for /metrics."""

    running: int = 0  # choices being decoded or prefilled
    waiting: int = 0  # choices admitted to the queue, without memory yet
    kv_bytes_used: int = 0
    kv_bytes_budget: int = 0
    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there
    steps: int = 0
    drafts: int = 0  # rounds of speculation
    draft_tokens: int = 0  # guessed in them
    accepted_tokens: int = 0  # of them right
    accepted_at: tuple[int, ...] = ()  # of them at each place of their round
    restarts: int = 0  # after a defect that ended the engine
    preemptions: int = 0  # of choices that gave their memory up and began anew
    forward_seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # per model, cumulative


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step, for traces; moments are nanoseconds since 1970."""

    began: int
    ended: int
    requests: tuple[str, ...]  # ids of those that were computed
    choices: int
    tokens: int  # that were handed out, scored ones included
    failures: int  # choices
