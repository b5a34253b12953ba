"""Traces of tokens as answers show them: what each member made of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from motet.engines.outputs import TokenOutput, TokenTrace, Voices
from motet.server.logprobs import LOWEST, finite
from motet.server.prepare import Job

MARGINAL_RANK = 3  # Lin et al. 2023 (URIAL): rank 0 unshifted, 1 and 2 marginal, from 3 on shifted


def shift_class(base_rank: int) -> str:
    if base_rank == 0:
        return "unshifted"
    return "marginal" if base_rank < MARGINAL_RANK else "shifted"


def traces(outputs: Iterable[TokenOutput], job: Job) -> list[dict[str, Any]]:
    return [_trace_entry(output, output.trace, job) for output in outputs if output.trace is not None]


def _trace_entry(output: TokenOutput, trace: TokenTrace, job: Job) -> dict[str, Any]:
    return {
        "token": job.tokenizer.label_of(output.token),
        "token_id": output.token,
        "logprob": finite(output.logprob),
        "members": _by_role(trace.member_logprobs, job),
        "kl": min(trace.kl, -LOWEST),
        "base_rank": trace.base_rank,
        "shift": shift_class(trace.base_rank),
        "argmax_moved": trace.argmax_moved,
        **_one_or_all("alpha", trace.alpha),
        **({} if trace.head is None else {"head": trace.head}),
        **_one_or_all("layer", trace.layers),
        "top": {"base": _top(trace.base_top, job), "composed": _top(trace.composed_top, job)},
        **({} if trace.voices is None else _voices(trace.voices, job)),
    }


def _voices(voices: Voices, job: Job) -> dict[str, Any]:
    """What each member says of the token and of its alternatives; `push` is null where the rule is no sum."""
    roles = [stream.role for stream in job.plan.streams]
    return {
        "ranks": dict(zip(roles, voices.ranks, strict=True)),
        "push": dict(zip(roles, voices.pushes, strict=True)) if voices.pushes else None,
        "alternatives": [
            {
                "token": job.tokenizer.label_of(one.token),
                "token_id": one.token,
                "logprob": finite(one.logprob),
                "members": _by_role(one.members, job),
            }
            for one in voices.alternatives
        ],
    }


def _by_role(logprobs: Iterable[float], job: Job) -> dict[str, float]:
    return {stream.role: finite(value) for stream, value in zip(job.plan.streams, logprobs, strict=True)}


def _one_or_all(name: str, values: Sequence[float]) -> dict[str, Any]:
    """One number where there is one pair of experts, or one early exit; a list where there are several."""
    return {} if not values else {name: values[0] if len(values) == 1 else list(values)}


def _top(pairs: Iterable[tuple[int, float]], job: Job) -> list[dict[str, Any]]:
    return [
        {"token": job.tokenizer.label_of(token), "token_id": token, "logprob": finite(value)} for token, value in pairs
    ]
