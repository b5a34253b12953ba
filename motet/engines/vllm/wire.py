"""What travels between the server and vLLM's workers: a request's rows, and the numbers reported of its tokens.

A row is plain data inside vLLM's `extra_args`. What a position reports beyond log-probs is written as log-probs, number
i at token i: the one way by which numbers of our own leave vLLM's workers through its public interface. A request asks
for as many alternatives as there are numbers. A token that is drawn carries them beside its log-prob; a token of a
scored prompt as a row of logits in which every other token is −inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, cast

from motet.composers.confidence import Confidence
from motet.composers.plan import Plan, Prompt, RuleVector, Stream, TokenSet
from motet.composers.rules import (
    BudgetRule,
    CascadeRule,
    DiscriminatorRule,
    DivergenceRule,
    DynamicRule,
    LinearRule,
    MixtureRule,
    ReluRule,
    RoutedRule,
    SparseRule,
)
from motet.composers.schedule import Schedule, SchedulePoint, ThoughtSpelling
from motet.engines.base import SamplingParams, ThoughtPhase
from motet.engines.outputs import Alternative, TokenTrace, Voices

KEY = "motet"  # in `extra_args`
MINUS_INFINITY, NOT_A_NUMBER = -3e38, -2e38  # −inf and NaN as numbers that a sort leaves in place
NUM_SCALARS = 3  # of a trace: divergence, rank, whether the arg-max moved; strengths, streams, alternatives follow


@dataclass(frozen=True, slots=True)
class Probe:
    """The distributions at the request's own tokens are reported, from the token at index `start` on (≥ 1).

    `top` alternatives beside each token, how sure the distribution is by `confidence`, and what each voice did to it
    with `trace_top` alternatives, if any; with `members` also what each says of it and of them.
    """

    start: int
    top: int
    trace_top: int | None
    members: bool = False
    confidence: Confidence | None = None

    @property
    def reads_rows(self) -> bool:
        """As `SamplingParams.reads_rows`."""
        return self.members or self.confidence is not None


def probe_of(start: int, sampling: SamplingParams) -> Probe:
    """What a request wants to know of its tokens from index `start` on."""
    return Probe(start, sampling.top_logprobs, sampling.trace_top, sampling.trace_members, sampling.confidence)


@dataclass(frozen=True, slots=True)
class Link:
    """One context of a choice whose streams read several: the requests of a `group` run in lockstep.

    Of `size` contexts this is number `view`; `views[k]` is the number of the one that stream k reads.
    """

    group: str
    view: int
    size: int
    views: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One vLLM request: a choice, or one context of it.

    `ends` are the tokens that a rule's ramp raises and that `min_tokens` bans. Tokens from index `written_from` on
    count for rules as written by the composition, those from `drawn_from` on are drawn under `draw`, seeded by `key`;
    without it drawing is vLLM's; `grammar` is the text of its grammar, which stands in `draw` where nothing travels,
    `thought` what comes before the answer that it holds for, `closing` when its open JSON is closed. `forced` tokens
    are taken instead of drawn ones, one per step.
    """

    plan: Plan
    ends: tuple[int, ...] = ()
    written_from: int = 0
    drawn_from: int = 0
    draw: SamplingParams | None = None
    key: str = ""
    probe: Probe | None = None
    link: Link | None = None
    forced: tuple[int, ...] = ()
    grammar: str = ""
    thought: ThoughtPhase | None = None
    closing: int | None = None


CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        BudgetRule,
        CascadeRule,
        DiscriminatorRule,
        DivergenceRule,
        DynamicRule,
        LinearRule,
        Link,
        MixtureRule,
        Plan,
        Probe,
        Prompt,
        ReluRule,
        RoutedRule,
        RowSpec,
        RuleVector,
        SparseRule,
        SamplingParams,
        Schedule,
        SchedulePoint,
        Stream,
        ThoughtPhase,
        ThoughtSpelling,
        TokenSet,
    )
}


def plain(value: object) -> Any:
    """Frozen data → numbers, strings, lists and dictionaries with a `type`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {
            field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init
        }
    if isinstance(value, tuple):
        return [plain(item) for item in cast("Sequence[object]", value)]
    return value


def rebuilt(value: Any) -> Any:
    """The inverse of `plain`.

    Raises:
        ValueError, TypeError, KeyError: the data is not what `plain` writes.
    """
    if isinstance(value, dict):
        entries = dict(cast("dict[str, Any]", value))
        cls = CLASSES[entries.pop("type")]
        return cls(**{name: rebuilt(entry) for name, entry in entries.items()})
    if isinstance(value, list | tuple):
        return tuple(rebuilt(item) for item in cast("Sequence[Any]", value))
    return value


def read_spec(value: Any) -> RowSpec:
    """The row of a request, from `extra_args[KEY]`.

    Raises:
        ValueError: it is malformed.
    """
    try:
        spec = rebuilt(value)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"extra_args[{KEY!r}] is malformed: {error}") from error
    if not isinstance(spec, RowSpec):
        raise ValueError(f"extra_args[{KEY!r}] is no row")
    return spec


@dataclass(frozen=True, slots=True)
class Probed:
    """The composed log-prob of a token, the alternatives, and its trace and the confidence where they were asked
    for."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: TokenTrace | None = None
    confidence: float | None = None


def num_strengths(plan: Plan) -> int:
    """How many α the rule chooses."""
    if isinstance(plan.rule, DynamicRule):
        return (len(plan.streams) - 1) // 2
    return int(isinstance(plan.rule, BudgetRule | CascadeRule | SparseRule))


def payload_size(probe: Probe, plan: Plan) -> int:
    """How many numbers a position reports: at most the vocabulary holds."""
    return _num_plain(probe) + _trace_size(probe, plan)


def _num_plain(probe: Probe) -> int:
    """Numbers before those of the trace."""
    return 1 + 2 * probe.top + (probe.confidence is not None)


def _trace_size(probe: Probe, plan: Plan) -> int:
    if probe.trace_top is None:
        return 0
    streams = len(plan.streams)
    voices = 2 * streams + 2 * probe.trace_top * (1 + streams) if probe.members else 0
    return NUM_SCALARS + num_strengths(plan) + streams + 2 * 2 * probe.trace_top + voices


def write_payload(probed: Probed, plan: Plan) -> list[float]:
    """The numbers of a position."""
    sure = () if probed.confidence is None else (probed.confidence,)
    numbers = [probed.logprob, *_numbers(probed.top), *sure]
    trace = probed.trace
    if trace is not None:
        # a row whose rule solved for nothing has no α
        alpha = [*trace.alpha, *[math.nan] * num_strengths(plan)][: num_strengths(plan)]
        numbers += [trace.kl, float(trace.base_rank), float(trace.argmax_moved), *alpha, *trace.member_logprobs]
        numbers += [*_numbers(trace.base_top), *_numbers(trace.composed_top)]
        numbers += _voices_numbers(trace, len(plan.streams))
    return [_safe(number) for number in numbers]


def _voices_numbers(trace: TokenTrace, streams: int) -> list[float]:
    """Ranks, pushes (NaN where there are none), and of each alternative its log-probs: its token stands in the tops,
    and tokens of both stand once, so that the list is filled up with NaN."""
    voices = trace.voices
    if voices is None:
        return []
    pushed = voices.pushes or (math.nan,) * streams
    known = [number for one in voices.alternatives for number in (one.logprob, *one.members)]
    missing = (len(trace.base_top) + len(trace.composed_top)) * (1 + streams) - len(known)
    return [*map(float, voices.ranks), *pushed, *known, *[math.nan] * missing]


def read_payload(number: Callable[[int], float], probe: Probe, plan: Plan) -> Probed:
    """The inverse of `write_payload`; `number(i)` is what stands at token i."""
    values = [_unsafe(number(i)) for i in range(payload_size(probe, plan))]
    known = _num_plain(probe)
    trace = None if probe.trace_top is None else _read_trace(values[known:], probe.trace_top, plan)
    if trace is not None and probe.members:
        before = payload_size(replace(probe, members=False), plan)
        trace = replace(trace, voices=_read_voices(values[before:], trace, len(plan.streams)))
    sure = None if probe.confidence is None else values[known - 1]
    return Probed(values[0], _pairs(values[1 : 1 + 2 * probe.top]), trace, sure)


def _read_trace(values: Sequence[float], count: int, plan: Plan) -> TokenTrace:
    kl, rank, moved = values[:NUM_SCALARS]
    first = NUM_SCALARS + num_strengths(plan)
    last = first + len(plan.streams)
    ends = (last, last + 2 * count, last + 4 * count)
    base_top, composed_top = (_pairs(values[a:b]) for a, b in pairwise(ends))
    alpha = tuple(value for value in values[NUM_SCALARS:first] if not math.isnan(value))
    return TokenTrace(tuple(values[first:last]), kl, int(rank), bool(moved), base_top, composed_top, alpha)


def _read_voices(values: Sequence[float], trace: TokenTrace, streams: int) -> Voices:
    tokens = dict.fromkeys(token for token, _ in (*trace.composed_top, *trace.base_top))
    rows = [values[at : at + 1 + streams] for at in range(2 * streams, len(values), 1 + streams)]
    return Voices(
        ranks=tuple(int(rank) for rank in values[:streams]),
        pushes=tuple(push for push in values[streams : 2 * streams] if not math.isnan(push)),
        alternatives=tuple(Alternative(t, row[0], tuple(row[1:])) for t, row in zip(tokens, rows, strict=False)),
    )


def _numbers(pairs: Sequence[tuple[int, float]]) -> list[float]:
    return [number for pair in pairs for number in pair]


def _pairs(numbers: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), value) for token, value in zip(numbers[::2], numbers[1::2], strict=True))


def _safe(number: float) -> float:
    return NOT_A_NUMBER if math.isnan(number) else max(number, MINUS_INFINITY)


def _unsafe(number: float) -> float:
    return -math.inf if number < -2.5e38 else math.nan if number < -1.5e38 else number
