# type: ignore
"""The tokens that a difference of two streams disfavours most: how low it must be, by counting."""

import triton
import triton.language as tl

from motet.kernels.triton.columns import COUNT, DIVERGENCE, KIND, RULE, TIE
from motet.kernels.triton.scores import difference
from motet.kernels.triton.search import threshold


@triton.jit
def _tokens(offsets, valid, given):
    """How far the difference lies below 0, and 1 where it does: see `search.threshold`."""
    buffers, stream, weight, lse, r = given[0]
    K: tl.constexpr = given[1]
    DTYPE: tl.constexpr = given[2]
    below = -difference(buffers, stream, weight, lse, r, offsets, valid, K, DTYPE)
    return below, tl.where(valid & (below > TIE), 1.0, 0.0)


@triton.jit
def divergence_threshold(
    buffers, stream, weight, rule, lse, solved, V, PAIRS, K: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The difference L_1 − L_2 up to which tokens are impossible, in rows of the rule. Grid (R).

    Parameters:
        buffers, stream, weight, rule, lse: tables, see `columns`.
        solved: table, written in its first column; before, it holds −inf there.
        PAIRS: columns of `solved`.
        K: slots of a row.
        DTYPE: see `load.load_logits`.
    """
    r = tl.program_id(0).to(tl.int64)
    if tl.load(rule + r * RULE + KIND).to(tl.int32) == DIVERGENCE:
        count = tl.load(rule + r * RULE + COUNT)
        if count > 0:
            found = threshold(_tokens, ((buffers, stream, weight, lse, r), K, DTYPE), count, V, BLOCK)
            tl.store(solved + r * PAIRS, -found)
