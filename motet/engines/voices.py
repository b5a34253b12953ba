"""What each voice of a composition says of one token: its rank, its push in nats, its log-probs of the alternatives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor

from motet.composers.plan import Plan, Stream
from motet.composers.rules import BudgetRule, DynamicRule, LinearRule, ReluRule
from motet.engines.outputs import Alternative, Voices
from motet.kernels.reference import outside_set, shift_rank

LOWEST = -9999.0  # stands for −inf, so that differences of two impossible tokens are numbers


def voices_of(
    plan: Plan, members: Tensor, composed: Tensor, token: Tensor, alpha: Sequence[float], alternatives: Iterable[int]
) -> Voices:
    """
    Args:
        plan: of the row.
        members: (K, V) log-probs of its streams.
        composed: (V,) composed log-probs, after the masks.
        token: () int64, the chosen one.
        alpha: the strengths that the plan's rule chose.
        alternatives: the tokens to report.
    """
    ids = list(alternatives)
    return Voices(
        ranks=tuple(cast("list[int]", shift_rank(members, token.expand(members.shape[0])).tolist())),
        pushes=pushes(plan, members, int(token), alpha),
        alternatives=tuple(
            Alternative(i, float(composed[i]), tuple(cast("list[float]", members[:, i].tolist()))) for i in ids
        ),
    )


def pushes(plan: Plan, members: Tensor, token: int, alpha: Sequence[float]) -> tuple[float, ...]:
    """What each stream adds to the token's score beyond the base's log-prob, in nats: with the rule vector r,
    `z[v] = L_0[v] + Σ_k push_k + r[v]` for every v inside the masks. None where the rule's score is no such sum.

    A stream's push is its weight times what it finds the token likelier than the base does, `w_k (L_k − L_0)`; the
    base's own is `(Σ_k w_k − 1) L_0`, 0 where the weights sum to 1.
    """
    base = max(float(members[0, token]), LOWEST)
    own = [_tempered(stream, members[k], token) for k, stream in enumerate(plan.streams)]
    cooled = own[0] - base  # what the base's own temperature does
    match plan.rule:
        case LinearRule():
            weights = [_weight(stream, members, token) for stream in plan.streams]
            return _shifted(weights, own, base, cooled, 1.0)
        case BudgetRule() if alpha:
            return _shifted([stream.weight for stream in plan.streams], own, base, cooled, alpha[0])
        case DynamicRule() if alpha:
            pairs = [(alpha[(k - 1) // 2] if k else 1.0, stream.weight) for k, stream in enumerate(plan.streams)]
            return (cooled, *(a * w * (value - base) for (a, w), value in list(zip(pairs, own, strict=True))[1:]))
        case ReluRule():
            return (cooled, -plan.rule.alpha * max(own[1] - own[0], 0.0), *[0.0] * (len(own) - 2))
        case _:
            return ()


def _shifted(
    weights: Sequence[float], own: Sequence[float], base: float, cooled: float, alpha: float
) -> tuple[float, ...]:
    """Pushes of `L_0 + α ((w_0 − 1) L_0 + Σ_{k≥1} w_k L_k)`, the first L_0 at the base's own temperature as all are."""
    others = [alpha * weight * (value - base) for weight, value in zip(weights[1:], own[1:], strict=True)]
    excess = (weights[0] - 1.0) * own[0] + math.fsum(weights[1:]) * base
    return (cooled + alpha * excess, *others)


def _weight(stream: Stream, members: Tensor, token: int) -> float:
    """A stream's weight, 0 where its gate is shut for the token."""
    gate = stream.inside
    if gate is not None and bool(outside_set(members[gate.stream][None], gate.kind, gate.value)[0, token]):
        return 0.0
    return stream.weight


def _tempered(stream: Stream, logprobs: Tensor, token: int) -> float:
    if stream.temperature != 1.0:
        logprobs = (logprobs / stream.temperature).log_softmax(-1)
    return max(float(logprobs[token]), LOWEST)
