"""What each voice did to one token, from what a step has decoded: the same for every engine."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor

from motet.engines.base import TokenTrace
from motet.kernels.decode import Decoded


def traced_top(count: int | None) -> int:
    """Alternatives that a step decodes for a trace of `count` alternatives: its most likely token at least."""
    return 0 if count is None else max(1, count)


def trace_of(members: Tensor, decoded: Decoded, row: int, count: int) -> TokenTrace:
    """The trace of row `row`: what was decoded, beside the log-probs (K, V) of its streams, the base first; `count`
    alternatives before and after. The row is one of `DecodeRows.trace`, with `traced_top(count)` alternatives."""
    assert decoded.kl is not None
    assert decoded.base_rank is not None
    assert decoded.top_values is not None
    assert decoded.top_tokens is not None
    base_top = _pairs(*members[0].topk(min(count, members.shape[-1])))
    composed_top = _pairs(decoded.top_values[row], decoded.top_tokens[row])
    return TokenTrace(
        member_logprobs=tuple(_floats(members[:, decoded.token[row]])),
        kl=float(decoded.kl[row]),
        base_rank=int(decoded.base_rank[row]),
        argmax_moved=bool(members[0, composed_top[0][0]] < members[0].amax()),  # a tie of the base is no move
        base_top=base_top,
        composed_top=composed_top[:count],
        alpha=tuple(alpha for alpha in _floats(decoded.alpha[row]) if not math.isnan(alpha)),
    )


def top_of(decoded: Decoded, row: int, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most likely tokens of a row, best first."""
    if not count or decoded.top_values is None or decoded.top_tokens is None:
        return ()
    return _pairs(decoded.top_values[row], decoded.top_tokens[row])[:count]


def _pairs(values: Tensor, tokens: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple(zip(cast("list[int]", tokens.tolist()), _floats(values), strict=True))


def _floats(values: Tensor) -> list[float]:
    return cast("list[float]", values.tolist())
