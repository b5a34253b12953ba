# type: ignore
"""Thresholds without sorting: the largest key τ such that the tokens with key ≥ τ weigh at least a target.

A float32 key becomes an int that sorts alike; four bits of τ are decided per pass over the row by weighing what lies
above 16 pivots, so that eight passes give τ exactly, whatever the distribution. All tokens that tie with τ are kept.
"""

import triton
import triton.language as tl


@triton.jit
def ordered(x):
    """int64 in [0, 2³²) that sorts as the float32 `x` does; −0 and 0 alike."""
    bits = (x + 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0, bits + 2147483648, -1 - bits)


@triton.jit
def unordered(key):
    """The float32 of an `ordered` key; −inf below its key, where the codes are those of NaN."""
    key = tl.maximum(key, 8388607)
    bits = tl.where(key >= 2147483648, key - 2147483648, -1 - key)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def pivots(prefix, step):
    """16 candidates (16,) int64: the key so far with every value of its next four bits."""
    return prefix + tl.arange(0, 16).to(tl.int64) * step


@triton.jit
def add_weights(above, x, w, candidates):
    """`above` (16, n) + the weight of each token under every pivot that its key reaches."""
    return above + tl.where(ordered(x)[None, :] >= candidates[:, None], w[None, :], 0.0)


@triton.jit
def decide(above, candidates, target):
    """The largest candidate that still reaches the target; the first where none does."""
    reached = tl.sum(above, 1) >= target
    return tl.max(tl.where(reached, candidates, tl.min(candidates, 0)), 0)
