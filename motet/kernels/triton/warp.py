# type: ignore
"""Top-k, then top-p on what is left, then min-p: one threshold per row, without sorting.

Tokens that tie with the threshold are kept; the oracle keeps them out by sorted order.
"""

import triton
import triton.language as tl

from motet.kernels.triton.load import add_mass, is_left_out
from motet.kernels.triton.search import add_weights, decide, pivots, unordered


@triton.jit
def _search(scores, floor, best, inverse, scale, counts, target, V, BLOCK: tl.constexpr):
    """The largest τ ≥ `floor` whose tokens number `target` (where `counts`) or have that mass."""
    prefix = tl.zeros((), tl.int64)
    step = tl.full((), 268435456, tl.int64)
    for _digit in range(8):
        candidates = pivots(prefix, step)
        above = tl.zeros((16, BLOCK), tl.float32)
        for start in range(0, V, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            x = tl.load(scores + offsets, offsets < V, -float("inf"))
            mass = tl.where(counts, 1.0, tl.exp((x - best) * inverse) * scale)
            w = tl.where((x > -float("inf")) & (x >= floor), mass, 0.0)
            above = add_weights(above, x, w, candidates)
        prefix = decide(above, candidates, target)
        step = step // 16
    return tl.maximum(unordered(prefix), floor)


@triton.jit
def warp_threshold(scores, info, params, tau, V, ONLY: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (R). `scores` (R, V) float32, contiguous; `params` (R, 4) float32: temperature (0 is greedy), top-k, top-p,
    min-p; `tau` (R) is written, −inf where nothing is filtered. A top-k above 2²⁴ would not be exact."""
    r = tl.program_id(0).to(tl.int64)
    if is_left_out(info, r, ONLY):
        return
    scores += r * V
    temperature = tl.load(params + r * 4)
    top_k = tl.load(params + r * 4 + 1)
    top_p = tl.load(params + r * 4 + 2)
    min_p = tl.load(params + r * 4 + 3)
    threshold = -float("inf")
    if (temperature > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0)):
        inverse = 1.0 / temperature
        best = -float("inf")
        for start in range(0, V, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            best = tl.maximum(best, tl.max(tl.load(scores + offsets, offsets < V, -float("inf")), 0))
        if top_k > 0:
            threshold = _search(scores, threshold, best, inverse, 1.0, True, tl.minimum(top_k, V), V, BLOCK)
        if top_p < 1.0:
            m = -float("inf")
            s = 0.0
            for start in range(0, V, BLOCK):
                offsets = start + tl.arange(0, BLOCK)
                x = tl.load(scores + offsets, offsets < V, -float("inf"))
                m, s = add_mass(m, s, tl.where(x >= threshold, (x - best) * inverse, -float("inf")))
            threshold = _search(scores, threshold, best, inverse, tl.exp(-m) / s, False, top_p, V, BLOCK)
        if min_p > 0:
            threshold = tl.maximum(threshold, best + temperature * tl.log(min_p))
    tl.store(tau + r, threshold)
