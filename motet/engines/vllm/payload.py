"""What a position reports beyond log-probs, written as log-probs: number i stands at token i.

This is the one way by which numbers of our own leave vLLM's workers through its public interface: a request asks for
as many alternatives as there are numbers. A token that is drawn carries them beside its log-prob; a token of a scored
prompt as a row of logits in which every other token is −inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from motet.composers.plan import BudgetRule, DynamicRule, Plan
from motet.engines.base import TokenTrace
from motet.engines.vllm.wire import Probe

MINUS_INFINITY, NOT_A_NUMBER = -3e38, -2e38  # −inf and NaN as numbers that a sort leaves in place
NUM_SCALARS = 3  # of a trace: divergence, rank, whether the arg-max moved; strengths, streams, alternatives follow


@dataclass(frozen=True, slots=True)
class Probed:
    """The composed log-prob of a token, the alternatives, and its trace where one was asked for."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: TokenTrace | None = None


def num_strengths(plan: Plan) -> int:
    """How many α the rule solves for."""
    if isinstance(plan.rule, DynamicRule):
        return (len(plan.streams) - 1) // 2
    return int(isinstance(plan.rule, BudgetRule))


def payload_size(probe: Probe, plan: Plan) -> int:
    """How many numbers a position reports: at most the vocabulary holds."""
    return 1 + 2 * probe.top + _trace_size(probe, plan)


def _trace_size(probe: Probe, plan: Plan) -> int:
    if probe.trace_top is None:
        return 0
    return NUM_SCALARS + num_strengths(plan) + len(plan.streams) + 2 * 2 * probe.trace_top


def write_payload(probed: Probed, plan: Plan) -> list[float]:
    """The numbers of a position."""
    numbers = [probed.logprob, *_numbers(probed.top)]
    trace = probed.trace
    if trace is not None:
        # a row whose rule solved for nothing has no α
        alpha = [*trace.alpha, *[math.nan] * num_strengths(plan)][: num_strengths(plan)]
        numbers += [trace.kl, float(trace.base_rank), float(trace.argmax_moved), *alpha, *trace.member_logprobs]
        numbers += [*_numbers(trace.base_top), *_numbers(trace.composed_top)]
    return [_safe(number) for number in numbers]


def read_payload(number: Callable[[int], float], probe: Probe, plan: Plan) -> Probed:
    """The inverse of `write_payload`; `number(i)` is what stands at token i."""
    values = [_unsafe(number(i)) for i in range(payload_size(probe, plan))]
    known = 1 + 2 * probe.top
    trace = None if probe.trace_top is None else _read_trace(values[known:], probe.trace_top, plan)
    return Probed(values[0], _pairs(values[1:known]), trace)


def _read_trace(values: Sequence[float], count: int, plan: Plan) -> TokenTrace:
    kl, rank, moved = values[:NUM_SCALARS]
    first = NUM_SCALARS + num_strengths(plan)
    last = first + len(plan.streams)
    base_top, composed_top = (_pairs(values[a:b]) for a, b in pairwise((last, last + 2 * count, len(values))))
    alpha = tuple(value for value in values[NUM_SCALARS:first] if not math.isnan(value))
    return TokenTrace(tuple(values[first:last]), kl, int(rank), bool(moved), base_top, composed_top, alpha)


def _numbers(pairs: Sequence[tuple[int, float]]) -> list[float]:
    return [number for pair in pairs for number in pair]


def _pairs(numbers: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), value) for token, value in zip(numbers[::2], numbers[1::2], strict=True))


def _safe(number: float) -> float:
    return NOT_A_NUMBER if math.isnan(number) else max(number, MINUS_INFINITY)


def _unsafe(number: float) -> float:
    return -math.inf if number < -2.5e38 else math.nan if number < -1.5e38 else number
