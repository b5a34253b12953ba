"""Drawn mixtures: a member is drawn by its share, then the token from that member alone.

Of `Σ_k w_k p_k` that is a draw as exact as any other, and one forward instead of K: the other members read what was
written when they are drawn themselves, several tokens in one forward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

from motet.composers.plan import Plan, Stream
from motet.composers.rules import LinearRule, MixtureRule
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.drafts import AUTO, OFF


@runtime_checkable
class DrawsMembers(Protocol):
    """An engine that draws mixtures so."""

    def draws_members(self, request: GenerationRequest) -> bool:
        """Whether it does in this request."""
        ...


def is_drawn(request: GenerationRequest) -> bool:
    """Whether a request's tokens are drawn from single members: where nobody reads their log-probs, asks for a draft
    or has set a seed, which draws the same tokens from the composed distribution everywhere; and where a draw from the
    mixture is one from a member, as it is not behind filters, masks and penalties, nor at other temperatures."""
    plan = request.plan
    return (
        request.by_member
        and request.sampling.max_tokens > 0
        and len(plan.streams) > 1
        and isinstance(plan.rule, MixtureRule)
        and not plan.masks
        and plan.rules is None
        and all(stream.tokens is None for stream in plan.streams)
        and request.speculation in (None, AUTO, OFF)
        and _is_plain(request.sampling)
    )


def _is_plain(sampling: SamplingParams) -> bool:
    """Whether everything that shapes or reports a distribution is left alone: all but what ends an answer."""
    ends = ("max_tokens", "stop_token_ids", "ignore_eos")
    return sampling == replace(SamplingParams(0), **{name: getattr(sampling, name) for name in ends})


def voice_at(plan: Plan, uniform: float) -> int:
    """The stream that a number in (0, 1] falls to: stream k with probability `w_k / Σ w`."""
    rest = uniform * plan.weight_sum
    for k, stream in enumerate(plan.streams):
        rest -= stream.weight
        if rest <= 0.0:
            return k
    return max(range(len(plan.streams)), key=lambda k: plan.streams[k].weight)  # rounding has left a rest


def alone(plan: Plan, k: int) -> Plan:
    """What is composed where stream k of a mixture is drawn: its own distribution."""
    stream = plan.streams[k]
    return Plan((Stream(stream.role, stream.model, temperature=stream.temperature),), rule=LinearRule())
