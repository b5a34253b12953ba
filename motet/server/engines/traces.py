"""What each voice did to one token, from the distributions of a position: the same for every engine."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor

from motet.kernels.reference import kl_divergence
from motet.server.engines.base import TokenTrace


def trace_of(members: Tensor, composed: Tensor, alpha: float, token: int, count: int) -> TokenTrace:
    """The trace of `token`: composed log-probs (V,) against those of the streams (K, V), the base first; `count`
    alternatives before and after."""
    base = members[0]
    return TokenTrace(
        member_logprobs=tuple(cast("list[float]", members[:, token].tolist())),
        kl=float(kl_divergence(composed[None], base[None])),
        base_rank=int((base > base[token]).sum()),
        argmax_moved=bool(base.argmax() != composed.argmax()),
        base_top=top_pairs(base, count),
        composed_top=top_pairs(composed, count),
        alpha=None if math.isnan(alpha) else alpha,
    )


def top_pairs(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """(token, log-prob) of the most likely of (V,), best first."""
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    return tuple(zip(cast("list[int]", ids.tolist()), cast("list[float]", values.tolist()), strict=True))
