# type: ignore
"""Thresholds without sorting: the largest key τ such that the tokens with key ≥ τ weigh at least a target.

A float32 key becomes an int that sorts alike; four bits of τ are decided per pass over the row by weighing what lies
above 16 pivots, so that eight passes give τ exactly, whatever the distribution. All tokens that tie with τ are kept.
"""

import triton
import triton.language as tl


@triton.jit
def _ordered(x):
    """int64 in [0, 2³²) that sorts as the float32 `x` does; −0 and 0 alike."""
    bits = (x + 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0, bits + 2147483648, -1 - bits)


@triton.jit
def _unordered(key):
    """The float32 of an `_ordered` key; −inf below its key, where the codes are those of NaN."""
    key = tl.maximum(key, 8388607)
    bits = tl.where(key >= 2147483648, key - 2147483648, -1 - key)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def threshold(tokens: tl.constexpr, given, target, V, BLOCK: tl.constexpr):
    """The largest key τ (float32) such that the tokens with key ≥ τ weigh at least `target`; the lowest where none do.

    Parameters:
        tokens: a jit function of (offsets (BLOCK,) int32, valid (BLOCK,) bool, given) that returns the keys and the
            weights ≥ 0 of tokens, (BLOCK,) float32 each; the weight of a token that is not valid must be 0.
        given: tuple, what `tokens` reads.
        target: () float32: number or mass of tokens.
        V: tokens of the row.
    """
    prefix = tl.zeros((), tl.int64)
    step = tl.full((), 268435456, tl.int64)
    for _digit in range(8):
        pivots = prefix + tl.arange(0, 16).to(tl.int64) * step
        above = tl.zeros((16, BLOCK), tl.float32)
        for start in range(0, V, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            key, weight = tokens(offsets, offsets < V, given)
            above = above + tl.where(_ordered(key)[None, :] >= pivots[:, None], weight[None, :], 0.0)
        reached = tl.sum(above, 1) >= target
        prefix = tl.max(tl.where(reached, pivots, tl.min(pivots, 0)), 0)
        step = step // 16
    return _unordered(prefix)
