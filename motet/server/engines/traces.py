"""What each voice did to one token, from the whole distributions of its position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from motet.kernels.reference import kl_divergence, shift_rank
from motet.server.engines.base import TokenTrace


def trace_of(members: Tensor, composed: Tensor, alpha: Sequence[float], token: int, count: int) -> TokenTrace:
    """The trace of `token`: composed log-probs (V,) against those of the streams (K, V), the base first; `count`
    alternatives before and after. `alpha` has NaN where the rule solved for nothing."""
    base = members[0]
    return TokenTrace(
        member_logprobs=tuple(cast("list[float]", members[:, token].tolist())),
        kl=float(kl_divergence(composed[None], base[None])),
        base_rank=int(shift_rank(base[None], torch.tensor([token], device=base.device))),
        argmax_moved=bool(base[composed.argmax()] < base.amax()),  # a tie of the base is no move
        base_top=top_pairs(base, count),
        composed_top=top_pairs(composed, count),
        alpha=tuple(value for value in alpha if not math.isnan(value)),
    )


def top_pairs(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """(token, log-prob) of the most likely of (V,), best first."""
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    return tuple(zip(cast("list[int]", ids.tolist()), cast("list[float]", values.tolist()), strict=True))
