"""What a probed position reports, written into the logits of that position: vLLM hands them out as log-probs.

A probe asks for as many alternatives as there are numbers; number i stands at token i, every other token is −inf.
This is the one way by which numbers of our own leave vLLM's workers through its public interface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from motet.composers.plan import Budget, Dynamic, Plan
from motet.server.engines.base import TokenTrace
from motet.server.engines.traces import top_pairs, trace_of
from motet.server.engines.vllm.wire import Probe

IMPOSSIBLE, NOT_A_NUMBER = -3e38, -2e38  # −inf and NaN as numbers that a sort leaves in place
NUM_SCALARS = 4  # log-prob, divergence, rank, whether the arg-max moved; strengths, streams and alternatives follow


@dataclass(frozen=True, slots=True)
class Probed:
    """The composed log-prob of a token, the alternatives, and its trace."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: TokenTrace


def num_strengths(plan: Plan) -> int:
    """How many α the rule solves for."""
    if isinstance(plan.rule, Dynamic):
        return (len(plan.streams) - 1) // 2
    return int(isinstance(plan.rule, Budget))


def payload_size(probe: Probe, plan: Plan) -> int:
    """How many numbers a position reports: at most the vocabulary holds."""
    return NUM_SCALARS + num_strengths(plan) + len(plan.streams) + 2 * (probe.top + 2 * probe.trace_top)


def payload_row(
    members: Tensor, composed: Tensor, alpha: Sequence[float], token: int, probe: Probe, plan: Plan
) -> Tensor:
    """(V,) of one position: composed log-probs (V,), those of the streams (K, V), and the token that is scored."""
    trace = trace_of(members, composed, alpha, token, probe.trace_top)
    numbers = [
        float(composed[token]),
        trace.kl,
        float(trace.base_rank),
        float(trace.argmax_moved),
        *alpha[: num_strengths(plan)],
        *trace.member_logprobs,
    ]
    for pairs in (top_pairs(composed, probe.top), trace.base_top, trace.composed_top):
        numbers += [number for pair in pairs for number in pair]
    row = torch.full_like(composed, -math.inf)
    row[: len(numbers)] = row.new_tensor([_safe(number) for number in numbers])
    return row


def read_payload(number: Callable[[int], float], probe: Probe, plan: Plan) -> Probed:
    """The inverse of `payload_row`; `number(i)` is what stands at token i."""
    values = [_unsafe(number(i)) for i in range(payload_size(probe, plan))]
    logprob, kl, rank, moved = values[:NUM_SCALARS]
    first = NUM_SCALARS + num_strengths(plan)
    last = first + len(plan.streams)
    cuts = (last, last + 2 * probe.top, last + 2 * (probe.top + probe.trace_top), len(values))
    top, base_top, composed_top = (_pairs(values[a:b]) for a, b in pairwise(cuts))
    alpha = tuple(value for value in values[NUM_SCALARS:first] if not math.isnan(value))
    trace = TokenTrace(tuple(values[first:last]), kl, int(rank), bool(moved), base_top, composed_top, alpha)
    return Probed(logprob, top, trace)


def _pairs(numbers: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), value) for token, value in zip(numbers[::2], numbers[1::2], strict=True))


def _safe(number: float) -> float:
    return NOT_A_NUMBER if math.isnan(number) else max(number, IMPOSSIBLE)


def _unsafe(number: float) -> float:
    return -math.inf if number < -2.5e38 else math.nan if number < -1.5e38 else number
